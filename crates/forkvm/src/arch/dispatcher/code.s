# The dispatcher's code (Intel syntax; names in braces are in code.rs). RBX is its page's address throughout; the arguments are where
# the call has them.
.pushsection .rodata.forkvm_dispatcher, "a", @progbits
.balign 16
forkvm_dispatcher:
# Where the ring-0 stub of `syscall` goes on, which has kept RCX: the first address.
forkvm_dispatch:
  mov [rip + forkvm_dispatcher + {state} + {rbx}], rbx
  lea rbx, [rip + forkvm_dispatcher + {state}]
  mov [rbx + {rax}], rax
  mov [rbx + {rdx}], rdx
  mov [rbx + {rsi}], rsi
  mov [rbx + {rdi}], rdi
  mov [rbx + {r8}], r8
  mov [rbx + {r9}], r9
  mov [rbx + {r10}], r10
  mov [rbx + {r11}], r11
  mov [rbx + {rsp}], rsp
  cld
# From here on the call is whole in its page.
forkvm_dispatch_kept:
  cmp dword ptr [rbx + {queued}], {most_queued}
  jae forkvm_dispatch_exit
  cmp rax, {numbers}
  jae forkvm_dispatch_exit
  movzx eax, byte ptr [rbx + rax + {table}]
  cmp eax, {constant}
  jae 2f
  cmp eax, {ways}
  jae forkvm_dispatch_exit
  lea r11, [rip + forkvm_dispatch_ways]
  movsxd rax, dword ptr [r11 + rax * 4]
  add rax, r11
  jmp rax
2:
  cmp eax, {constant} + {most_constants}
  jae forkvm_dispatch_exit
  mov rax, [rbx + rax * 8 + {constants} - {constant} * 8]
  jmp forkvm_dispatch_done
.balign 4
forkvm_dispatch_ways:
.irp way, exit, accept, accept4, read, receive, read_vector, write, send, write_vector, send_message, set_option, epoll_control, epoll_wait, epoll_pwait, shutdown, local_name, peer_name, futex, signal_mask, robust_list, close, status, status_at
  .long forkvm_dispatch_\way - forkvm_dispatch_ways
.endr
# Ends the call unless EDI is the connection. Changes EAX.
.macro forkvm_of_connection
  mov eax, [rbx + {connection}]
  test eax, eax
  js forkvm_dispatch_exit
  cmp edi, eax
  jne forkvm_dispatch_exit
.endm
# Ends the call unless EDI is one of four. Changes ECX, which is its place.
.macro forkvm_one_of list
  test edi, edi
  js forkvm_dispatch_exit
  xor ecx, ecx
2:
  cmp edi, [rbx + rcx * 4 + \list]
  je 3f
  inc ecx
  cmp ecx, {most_alike}
  jb 2b
  jmp forkvm_dispatch_exit
3:
.endm
# Ends the call unless a buffer is short, and where a program's memory can be: all of it is looked at, also what is not
# filled. Changes RAX.
.macro forkvm_check_buffer start, length
  mov rax, \length
  shr rax, 31
  jnz forkvm_dispatch_exit
  mov rax, \start
  shr rax, 47
  jnz forkvm_dispatch_exit
  mov rax, \start
  add rax, \length
# The last page of all is nobody's (USER_END).
  add rax, 4095
  shr rax, 47
  jnz forkvm_dispatch_exit
.endm
# Ends the call unless so many bytes of output are free, and takes them: R9 is where. Changes EAX.
.macro forkvm_take bytes
  mov eax, [rbx + {output_used}]
  cmp eax, {output_len} - \bytes
  ja forkvm_dispatch_exit
  lea r9, [rbx + rax + {output}]
  add dword ptr [rbx + {output_used}], \bytes
.endm

forkvm_dispatch_accept:
  xor r10d, r10d
forkvm_dispatch_accept4:
# SOCK_CLOEXEC and SOCK_NONBLOCK.
  test r10d, ~0x80800
  jnz forkvm_dispatch_exit
  forkvm_one_of {listeners}
  test dword ptr [rbx + {facts}], {acceptable}
  jnz 4f
  mov eax, [rbx + {facts}]
  and eax, {none_waits} + {never_blocks}
  cmp eax, {none_waits} + {never_blocks}
  jne forkvm_dispatch_exit
  mov rax, -{eagain}
  jmp forkvm_dispatch_done
4:
  test rsi, rsi
  jz 5f
  mov eax, [rbx + {peer_len}]
  test eax, eax
  jz forkvm_dispatch_exit
  mov ecx, [rdx]
  test ecx, ecx
  js forkvm_dispatch_exit
  cmp ecx, eax
  cmova ecx, eax
  mov r8, rdi
  mov rdi, rsi
  lea rsi, [rbx + {peer}]
  rep movsb
  mov [rdx], eax
  mov rdi, r8
5:
  mov ecx, [rbx + {next_descriptor}]
  mov [rbx + {connection}], ecx
  and dword ptr [rbx + {facts}], ~{acceptable}
  or dword ptr [rbx + {facts}], {none_waits}
  xor esi, esi
  xor edx, edx
  xor r8d, r8d
  xor r9d, r9d
  mov eax, {nr_accept4}
  jmp forkvm_dispatch_enqueue

forkvm_dispatch_receive:
# MSG_DONTWAIT and MSG_NOSIGNAL; no address.
  test r10d, ~0x4040
  jnz forkvm_dispatch_exit
  test r8, r8
  jnz forkvm_dispatch_exit
forkvm_dispatch_read:
  forkvm_of_connection
  forkvm_check_buffer rsi, rdx
  mov ecx, [rbx + {input_end}]
  mov esi, [rbx + {input_at}]
  sub ecx, esi
  jbe forkvm_dispatch_exit
  test rdx, rdx
  jle forkvm_dispatch_exit
  cmp rcx, rdx
  cmova rcx, rdx
  lea rsi, [rbx + rsi + {input}]
  mov r8, rdi
  mov rdi, [rbx + {rsi}]
  mov r9, rsi
  mov rdx, rcx
  rep movsb
  mov rdi, r8
  mov rsi, r9
  jmp forkvm_dispatch_was_read
forkvm_dispatch_read_vector:
  forkvm_of_connection
  cmp rdx, 8
  ja forkvm_dispatch_exit
  test edx, edx
  jz forkvm_dispatch_exit
  mov r8, rsi
  mov r9d, edx
# All are looked at before any is filled.
  mov rcx, rsi
  mov r10d, edx
2:
  forkvm_check_buffer [rcx], [rcx+8]
  add rcx, 16
  dec r10d
  jnz 2b
  mov edx, [rbx + {input_end}]
  mov esi, [rbx + {input_at}]
  sub edx, esi
  jbe forkvm_dispatch_exit
  lea rsi, [rbx + rsi + {input}]
  mov r10, rsi
  mov r11, rdi
2:
  mov rcx, [r8 + 8]
  mov rdi, [r8]
  cmp rcx, rdx
  cmova rcx, rdx
  sub rdx, rcx
  rep movsb
  add r8, 16
  dec r9d
  jnz 2b
  mov rdi, r11
  mov rdx, rsi
  mov rsi, r10
  sub rdx, r10
  jz forkvm_dispatch_exit
# RDX bytes of the input, which begin at RSI.
forkvm_dispatch_was_read:
  add [rbx + {input_at}], edx
  and dword ptr [rbx + {facts}], ~{untold}
  mov rcx, rdx
  xor r10d, r10d
  xor r8d, r8d
  xor r9d, r9d
  xor eax, eax
  jmp forkvm_dispatch_enqueue

forkvm_dispatch_write:
  test edi, edi
  js forkvm_dispatch_exit
  cmp edi, [rbx + {connection}]
  je 4f
# A counter: eight bytes, which keep it far from its end.
  xor ecx, ecx
2:
  cmp edi, [rbx + rcx * 4 + {counters}]
  je 3f
  inc ecx
  cmp ecx, {most_counters}
  jb 2b
  jmp forkvm_dispatch_exit
3:
  cmp rdx, 8
  jb forkvm_dispatch_exit
  mov rcx, [rsi]
  mov rax, rcx
  shr rax, 32
  jnz forkvm_dispatch_exit
  forkvm_take 16
  mov [r9], rcx
  mov rsi, r9
  mov edx, 8
  and dword ptr [rbx + {facts}], ~{others_quiet}
  jmp forkvm_dispatch_was_written
forkvm_dispatch_send:
  test r10d, ~0x4040
  jnz forkvm_dispatch_exit
  test r8, r8
  jnz forkvm_dispatch_exit
  forkvm_of_connection
4:
  test rdx, rdx
  jz forkvm_dispatch_exit
  forkvm_check_buffer rsi, rdx
  mov eax, [rbx + {may_send}]
  cmp rdx, rax
  ja forkvm_dispatch_exit
  mov eax, [rbx + {output_used}]
  lea rcx, [rax + rdx]
  cmp rcx, {output_len}
  ja forkvm_dispatch_exit
  mov r8, rdi
  lea rdi, [rbx + rax + {output}]
  mov r9, rdi
  mov rcx, rdx
  rep movsb
  mov rdi, r8
  mov rsi, r9
# RDX bytes for the connection, at RSI.
forkvm_dispatch_was_sent:
  add [rbx + {output_used}], edx
  sub [rbx + {may_send}], edx
forkvm_dispatch_was_written:
  mov rcx, rdx
  xor r10d, r10d
  xor r8d, r8d
  xor r9d, r9d
  mov eax, {nr_write}
  jmp forkvm_dispatch_enqueue
# struct msghdr: no address, nothing besides the bytes.
forkvm_dispatch_send_message:
  forkvm_of_connection
  test edx, ~0x4040
  jnz forkvm_dispatch_exit
  cmp qword ptr [rsi], 0
  jne forkvm_dispatch_exit
  cmp qword ptr [rsi + 40], 0
  jne forkvm_dispatch_exit
  mov rdx, [rsi + 24]
  mov rsi, [rsi + 16]
  jmp 2f
forkvm_dispatch_write_vector:
  forkvm_of_connection
2:
  cmp rdx, 64
  ja forkvm_dispatch_exit
  test edx, edx
  jz forkvm_dispatch_exit
  mov r8, rsi
  mov r9d, edx
# What may be sent, and what there is room for.
  mov edx, {output_len}
  sub edx, [rbx + {output_used}]
  cmp edx, [rbx + {may_send}]
  cmova edx, [rbx + {may_send}]
  mov eax, [rbx + {output_used}]
  mov r11, rdi
  lea rdi, [rbx + rax + {output}]
  mov r10, rdi
2:
  mov rcx, [r8 + 8]
  mov rsi, [r8]
  forkvm_check_buffer rsi, rcx
  cmp rcx, rdx
  ja forkvm_dispatch_exit
  sub rdx, rcx
  rep movsb
  add r8, 16
  dec r9d
  jnz 2b
  mov rdx, rdi
  mov rdi, r11
  mov rsi, r10
  sub rdx, r10
  jz forkvm_dispatch_exit
  jmp forkvm_dispatch_was_sent

forkvm_dispatch_set_option:
  forkvm_of_connection
  cmp r8d, 4
  jne forkvm_dispatch_exit
  test dword ptr [rbx + {facts}], {inet}
  jz forkvm_dispatch_exit
  mov ecx, [r10]
  cmp esi, 1
  jne 2f
# SO_KEEPALIVE
  cmp edx, 9
  je 4f
  jmp forkvm_dispatch_exit
2:
  cmp esi, 6
  jne forkvm_dispatch_exit
# TCP_NODELAY, TCP_CORK, TCP_QUICKACK
  cmp edx, 1
  je 4f
  cmp edx, 3
  je 4f
  cmp edx, 12
  je 4f
# TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, which have to be in bounds.
  lea eax, [rcx - 1]
  cmp eax, 127
  jae forkvm_dispatch_exit
  lea eax, [rdx - 4]
  cmp eax, 2
  ja forkvm_dispatch_exit
4:
  forkvm_take 16
  mov [r9], ecx
  mov r10, r9
  xor r9d, r9d
  xor ecx, ecx
  mov eax, {nr_setsockopt}
  jmp forkvm_dispatch_enqueue

forkvm_dispatch_epoll_control:
  forkvm_one_of {epolls}
  mov eax, [rbx + {connection}]
  test eax, eax
  js forkvm_dispatch_exit
  cmp edx, eax
  jne forkvm_dispatch_exit
  mov ecx, [rbx + {facts}]
  cmp esi, 2
  je 4f
  cmp esi, 1
  je 2f
  cmp esi, 3
  jne forkvm_dispatch_exit
  xor ecx, {watched}
2:
# It is to be watched, as it was not yet, or for something else.
  test ecx, {watched}
  jnz forkvm_dispatch_exit
  mov ecx, [r10]
  mov r8, [r10 + 4]
# EPOLLEXCLUSIVE
  test ecx, 1 << 28
  jnz forkvm_dispatch_exit
  forkvm_take 16
  mov [r9], ecx
  mov [r9 + 4], r8
  mov r10, r9
  mov [rbx + {watched_for}], ecx
  mov [rbx + {watch_data}], r8
  or dword ptr [rbx + {facts}], {watched} + {untold}
  jmp 5f
4:
  test ecx, {watched}
  jz forkvm_dispatch_exit
  and dword ptr [rbx + {facts}], ~({watched} + {untold})
  xor r10d, r10d
5:
  xor r8d, r8d
  xor r9d, r9d
  xor ecx, ecx
  mov eax, {nr_epoll_ctl}
  jmp forkvm_dispatch_enqueue

forkvm_dispatch_epoll_pwait:
  test r8, r8
  jnz forkvm_dispatch_exit
forkvm_dispatch_epoll_wait:
  forkvm_one_of {epolls}
  mov eax, [rbx + {facts}]
  and eax, {others_quiet} + {watched} + {untold} + {acceptable}
  cmp eax, {others_quiet} + {watched} + {untold}
  jne forkvm_dispatch_exit
  lea eax, [rdx - 1]
  cmp eax, 4096
  jae forkvm_dispatch_exit
  mov r8d, [rbx + {ready}]
  mov ecx, [rbx + {input_end}]
  cmp ecx, [rbx + {input_at}]
  jbe 2f
# EPOLLIN, EPOLLRDNORM
  or r8d, 0x41
2:
  movzx ecx, word ptr [rbx + {watched_for}]
# EPOLLERR, EPOLLHUP
  or ecx, 0x18
  and r8d, ecx
  jz forkvm_dispatch_exit
  mov rcx, [rbx + {watch_data}]
  forkvm_take 16
  mov [rsi], r8d
  mov [rsi + 4], rcx
  and dword ptr [rbx + {facts}], ~{untold}
  mov rsi, r9
  xor r10d, r10d
  xor r8d, r8d
  xor r9d, r9d
  mov ecx, 1
  mov eax, {nr_epoll_wait}
  jmp forkvm_dispatch_enqueue

forkvm_dispatch_shutdown:
  forkvm_of_connection
  lea eax, [rsi - 1]
  cmp eax, 1
  ja forkvm_dispatch_exit
# What it is ready for now, what is read, and who is at the other end, is the host's to say.
  mov dword ptr [rbx + {may_send}], 0
  mov dword ptr [rbx + {peer_len}], 0
  and dword ptr [rbx + {facts}], ~{others_quiet}
  test eax, eax
  jz 2f
# SHUT_RDWR
  mov eax, [rbx + {input_end}]
  mov [rbx + {input_at}], eax
2:
  xor ecx, ecx
  xor edx, edx
  xor r10d, r10d
  xor r8d, r8d
  xor r9d, r9d
  mov eax, {nr_shutdown}
  jmp forkvm_dispatch_enqueue

forkvm_dispatch_local_name:
  mov r9d, {local}
  mov r8d, [rbx + {local_len}]
  jmp 2f
forkvm_dispatch_peer_name:
  mov r9d, {peer}
  mov r8d, [rbx + {peer_len}]
2:
  forkvm_of_connection
  test r8d, r8d
  jz forkvm_dispatch_exit
  mov ecx, [rdx]
  test ecx, ecx
  js forkvm_dispatch_exit
  cmp ecx, r8d
  cmova ecx, r8d
  mov rdi, rsi
  lea rsi, [rbx + r9]
  rep movsb
  mov [rdx], r8d
  xor eax, eax
  jmp forkvm_dispatch_done

forkvm_dispatch_futex:
  test dword ptr [rbx + {facts}], {futexes_known}
  jz forkvm_dispatch_exit
# FUTEX_WAKE, private or not: there is nobody else.
  or esi, 0x80
  cmp esi, 0x81
  jne forkvm_dispatch_exit
  test edi, 3
  jnz forkvm_dispatch_exit
  test edx, edx
  jle forkvm_dispatch_exit
  mov eax, [rdi]
  xor ecx, ecx
  mov r8d, [rbx + {futex_count}]
  cmp r8d, {most_futexes}
  ja forkvm_dispatch_exit
  lea r9, [rbx + {futexes}]
2:
  dec r8d
  js 4f
  cmp [r9], rdi
  jne 3f
# No futex's address is odd.
  mov qword ptr [r9], 1
  inc ecx
  cmp ecx, edx
  je 4f
3:
  add r9, 8
  jmp 2b
4:
  mov eax, ecx
  test ecx, ecx
  jz forkvm_dispatch_done
  xor r10d, r10d
  xor r8d, r8d
  xor r9d, r9d
  mov eax, {nr_futex}
  jmp forkvm_dispatch_enqueue

forkvm_dispatch_signal_mask:
  test dword ptr [rbx + {facts}], {no_signals}
  jz forkvm_dispatch_exit
  cmp r10, 8
  jne forkvm_dispatch_exit
  mov r8, [rbx + {mask}]
  test rsi, rsi
  jz 5f
  mov rcx, [rsi]
  mov r11, rcx
  cmp edi, 2
  ja forkvm_dispatch_exit
  je 3f
  test edi, edi
  jz 2f
  not r11
  and r11, r8
  jmp 3f
2:
  or r11, r8
3:
  test rdx, rdx
  jz 4f
  mov [rdx], r8
4:
  forkvm_take 16
  mov [r9], rcx
# SIGKILL and SIGSTOP are never blocked.
  and r11, ~0x40100
  mov [rbx + {mask}], r11
  mov rsi, r9
  xor edx, edx
  xor r8d, r8d
  xor r9d, r9d
  xor ecx, ecx
  mov eax, {nr_rt_sigprocmask}
  jmp forkvm_dispatch_enqueue
5:
  xor eax, eax
  test rdx, rdx
  jz forkvm_dispatch_done
  mov [rdx], r8
  jmp forkvm_dispatch_done

forkvm_dispatch_status_at:
# AT_EMPTY_PATH, and no path.
  cmp r10d, 0x1000
  jne forkvm_dispatch_exit
  cmp byte ptr [rsi], 0
  jne forkvm_dispatch_exit
  mov rsi, rdx
forkvm_dispatch_status:
  test edi, edi
  js forkvm_dispatch_exit
  cmp edi, [rbx + {status_of}]
  jne forkvm_dispatch_exit
  mov rdi, rsi
  lea rsi, [rbx + {status}]
  mov ecx, {status_len}
  rep movsb
  xor eax, eax
  jmp forkvm_dispatch_done

forkvm_dispatch_close:
  test edi, edi
  js forkvm_dispatch_exit
  xor ecx, ecx
2:
  cmp edi, [rbx + rcx * 4 + {closable}]
  je 3f
  inc ecx
  cmp ecx, {most_closable}
  jb 2b
  jmp forkvm_dispatch_exit
3:
  mov dword ptr [rbx + rcx * 4 + {closable}], -1
# A connection would get this one, if it is lower than the next one was.
  and dword ptr [rbx + {facts}], ~{acceptable}
  cmp edi, [rbx + {status_of}]
  jne 2f
  mov dword ptr [rbx + {status_of}], -1
2:
  xor esi, esi
  xor edx, edx
  xor r10d, r10d
  xor r8d, r8d
  xor r9d, r9d
  xor ecx, ecx
  mov eax, {nr_close}
  jmp forkvm_dispatch_enqueue

forkvm_dispatch_robust_list:
  cmp rsi, 24
  jne forkvm_dispatch_exit
  xor ecx, ecx
  mov eax, {nr_set_robust_list}
# Call RAX with the arguments in its registers was answered RCX: last in the queue, and seen only when it is whole.
forkvm_dispatch_enqueue:
  mov r11d, [rbx + {queued}]
  shl r11, 6
  lea r11, [rbx + r11 + {queue}]
  mov [r11], rax
  mov [r11 + 8], rdi
  mov [r11 + 16], rsi
  mov [r11 + 24], rdx
  mov [r11 + 32], r10
  mov [r11 + 40], r8
  mov [r11 + 48], r9
  mov [r11 + 56], rcx
  mov rax, rcx
  inc dword ptr [rbx + {queued}]
# RAX is the answer.
.macro forkvm_restore
  mov rcx, [rbx + {rcx}]
  mov rdx, [rbx + {rdx}]
  mov rsi, [rbx + {rsi}]
  mov rdi, [rbx + {rdi}]
  mov r8, [rbx + {r8}]
  mov r9, [rbx + {r9}]
  mov r10, [rbx + {r10}]
  mov r11, [rbx + {r11}]
  lea rsp, [rbx + {stack_top}]
  mov rbx, [rbx + {rbx}]
  push r11
  popfq
  mov rsp, [rip + forkvm_dispatcher + {state} + {rsp}]
.endm
forkvm_dispatch_done:
  forkvm_restore
  jmp rcx
# The call leaves as it came.
forkvm_dispatch_exit:
  mov rax, [rbx + {rax}]
  forkvm_restore
forkvm_dispatch_out:
  out {syscall}, eax
  jmp rcx
# Where `syscall` arrives in ring 3. The call is not in the page yet, so it is none that is being answered.
forkvm_dispatch_ring3:
  mov [rip + forkvm_dispatcher + {state} + {rcx}], rcx
  jmp forkvm_dispatch
.org forkvm_dispatcher + {code_len}
.irp label, dispatcher, dispatch_ring3, dispatch_kept, dispatch_done, dispatch_out
  .globl forkvm_\label
  .hidden forkvm_\label
.endr
.popsection
