//! The few instructions of ours that run in the guest.
//!
//! Ring 0 has one handler for each exception, and the `syscall` entry where the processor enters ring 0 for it.
//! Ring 3 has the `syscall` entry of `kvm_pvm` (where `syscall` arrives in ring 3), the return addresses of
//! `main()` and of handlers, the saving of vector state, and the entry of a request.

use std::arch::global_asm;

use super::layout::{
    CLEARED_FOR, DISPATCHED_RCX, DISPATCHER, FROZEN_BASES, KERNEL_STUBS, PAGE, REQUEST_AREA,
    USER_STUBS, XSAVE_IMAGE, monitor,
};

/// Where `syscall` from ring 3 arrives on this host's KVM. Found by trying, never by module name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyscallEntry {
    /// At LSTAR, still in ring 3 (`kvm_pvm`).
    Ring3,
    /// At LSTAR in ring 0, as the manuals say (Intel, AMD).
    Ring0,
}

/// Port of hypercalls.
pub const PORT_HYPERCALL: u16 = 0;
/// Port by which the `syscall` stubs exit.
pub const PORT_SYSCALL: u16 = 4;
/// The instruction `syscall` (Intel SDM Vol. 2B, SYSCALL: 0F 05).
pub const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `out PORT_SYSCALL, eax` (Intel SDM Vol. 2B, OUT: E7 ib), which may stand in its place where that runs in ring 3.
pub const OUT_SYSCALL: [u8; SYSCALL.len()] = [0xe7, PORT_SYSCALL as u8];
/// Port of a `syscall` from 32-bit code, which is not supported (ring 0 only).
pub const PORT_SYSCALL_32: u16 = 0x70;
/// Exceptions exit by this port plus their vector (ring 0 only).
pub const PORT_EXCEPTION: u16 = 0x80;
/// A page fault's port.
pub const PORT_PAGE_FAULT: u16 = PORT_EXCEPTION + 14;

/// Hypercall number of the stub a returning function lands in; RDI and RDX hold its result. Outside the numbers of the guest
/// interface.
pub const HANDLER_RETURNED: u32 = 0x7f00_0001;
/// Hypercall number of the stub `main()` returns to; RDI holds its result.
pub const MAIN_RETURNED: u32 = 0x7f00_0002;
/// Hypercall number that ends the saving of vector state.
pub const STATE_SAVED: u32 = 0x7f00_0003;

/// Bytes between the handlers of two exceptions.
const EXCEPTION_STRIDE: u64 = 16;

global_asm!(
    ".pushsection .rodata.forkvm_stubs, \"a\", @progbits",
    ".balign 16",
    "forkvm_kernel_stubs:",
    // One handler an exception: tell the host which. It reads the frame from the ring-0 stack and never resumes here.
    ".set forkvm_vector, 0",
    ".rept 32",
    "  .balign {stride}",
    "  out {exception} + forkvm_vector, eax",
    "  hlt",
    "  .set forkvm_vector, forkvm_vector + 1",
    ".endr",
    ".balign 16",
    // `syscall` in ring 0, on the user's stack, which it must not touch. RCX and R11 are the return state.
    "forkvm_syscall_ring0:",
    "  out {syscall}, eax",
    "  sysretq",
    // The same where the dispatcher answers calls: it goes on there, in ring 3, and keeps the call's RCX for it.
    "forkvm_dispatch_ring0:",
    "  mov [rip + forkvm_kernel_stubs + {kept_rcx}], rcx",
    "  lea rcx, [rip + forkvm_kernel_stubs + {dispatch}]",
    "  sysretq",
    "forkvm_syscall_32:",
    "  out {syscall32}, eax",
    "  hlt",
    // Table entries that lost something: rewrites each with what it is, which shadow page tables notice, and has the
    // processor forget the page. RSI: pairs of the entry's and the page's address; ECX: how many. On the stack lie the
    // program's RSI, RDI, RCX and RAX and the frame for `iretq`.
    "forkvm_remove:",
    "  mov rdi, [rsi]",
    "  mov rax, [rdi]",
    "  mov [rdi], rax",
    "  mov rdi, [rsi + 8]",
    "  invlpg [rdi]",
    "  add rsi, 16",
    "  dec ecx",
    "  jnz forkvm_remove",
    "  pop rsi",
    "  pop rdi",
    "  pop rcx",
    "  pop rax",
    "  iretq",
    // A page, as the array below is; the assembler refuses more.
    ".org forkvm_kernel_stubs + {page}",
    "",
    ".balign 16",
    "forkvm_user_stubs:",
    // `syscall` in ring 3: nothing to restore, no stack used, so the red zone stays whole.
    "forkvm_syscall_ring3:",
    "  out {syscall}, eax",
    "  jmp rcx",
    // Before a server's connection: selectors a program loads outlive the host's reset of the segment registers on kvm_pvm, and
    // another machine on the thread sees them as well. Changes nothing else; see `Cleared`.
    "forkvm_clear_selectors:",
    "  mov r11d, 0",
    "  mov ds, r11d",
    "  mov es, r11d",
    "  mov fs, r11d",
    "  mov gs, r11d",
    "  mov r11, [rip + forkvm_user_stubs - {cleared_offset}]",
    "  wrfsbase r11",
    "  mov r11, [rip + forkvm_user_stubs - {cleared_offset} + 8]",
    "  wrgsbase r11",
    "  mov r11, [rip + forkvm_user_stubs - {cleared_offset} + 16]",
    "  jmp [rip + forkvm_user_stubs - {cleared_offset} + 24]",
    "forkvm_handler_returned:",
    "  mov rdi, rax",
    "  mov eax, {handler_returned}",
    "  out {hypercall}, eax",
    "  ud2",
    "forkvm_main_returned:",
    "  mov edi, eax",
    "  mov eax, {main_returned}",
    "  out {hypercall}, eax",
    "  ud2",
    "forkvm_save_state:",
    "  mov eax, -1",
    "  mov edx, -1",
    "  xsave64 [r11]",
    "  mov eax, {state_saved}",
    "  out {hypercall}, eax",
    "  ud2",
    // Entry of a request. First PKRU: a guest that denied key 0 would make every load below fault.
    "forkvm_enter_pku:",
    "  xor eax, eax",
    "  xor ecx, ecx",
    "  xor edx, edx",
    "  wrpkru",
    // AMD before Zen 2 leaves the last x87 instruction's addresses and opcode in place at an xrstor that restores no
    // pending exception (Linux: X86_BUG_FXSAVE_LEAK): let that be an instruction of ours.
    "forkvm_enter_fsgsbase:",
    "  fnclex",
    "  emms",
    "  fild dword ptr [rip + forkvm_user_stubs + {bases_offset}]",
    // All vector state the processor has, AMX included, from the frozen image.
    "  mov eax, -1",
    "  mov edx, -1",
    "  xrstor64 [rip + forkvm_user_stubs + {xsave_offset}]",
    // Selectors a guest loads outlive the host's reset of the segment registers on kvm_pvm.
    "  xor eax, eax",
    "  mov ds, eax",
    "  mov es, eax",
    "  mov fs, eax",
    "  mov gs, eax",
    "  mov rax, [rip + forkvm_user_stubs + {bases_offset}]",
    "  wrfsbase rax",
    "  mov rax, [rip + forkvm_user_stubs + {bases_offset} + 8]",
    "  wrgsbase rax",
    "forkvm_enter_registers:",
    "  mov rax, [rip + forkvm_user_stubs + {block_offset} + 8]",
    "  mov rcx, [rip + forkvm_user_stubs + {block_offset} + 16]",
    "  mov rdx, [rip + forkvm_user_stubs + {block_offset} + 24]",
    "  jmp [rip + forkvm_user_stubs + {block_offset}]",
    // Without FSGSBASE only the host can set the bases; there (old Intel, AMD) it resets the selectors too.
    "forkvm_enter_plain:",
    "  fnclex",
    "  emms",
    "  fild dword ptr [rip + forkvm_user_stubs + {bases_offset}]",
    "  mov eax, -1",
    "  mov edx, -1",
    "  xrstor64 [rip + forkvm_user_stubs + {xsave_offset}]",
    "  jmp forkvm_enter_registers",
    // A bare round trip, the measure of what a request can cost at best.
    "forkvm_round_trip:",
    "  out {hypercall}, eax",
    "  jmp forkvm_round_trip",
    // Probes: each tries one instruction in ring 3.
    "forkvm_probe_syscall:",
    "  syscall",
    "  out {hypercall}, eax",
    "  ud2",
    "forkvm_probe_xsave:",
    "  xor ecx, ecx",
    "  xgetbv",
    "  out {hypercall}, eax",
    "  ud2",
    "forkvm_probe_fsgsbase:",
    "  rdfsbase rax",
    "  wrfsbase rax",
    "  out {hypercall}, eax",
    "  ud2",
    "forkvm_probe_counter:",
    "  rdtsc",
    "  shl rdx, 32",
    "  or rax, rdx",
    "  out {hypercall}, eax",
    "  ud2",
    "forkvm_probe_pku:",
    "  xor ecx, ecx",
    "  rdpkru",
    "  wrpkru",
    "  out {hypercall}, eax",
    "  ud2",
    ".org forkvm_user_stubs + {page}",
    // Seen by all of this crate's object files, and by nobody else.
    ".irp label, kernel_stubs, syscall_ring0, dispatch_ring0, syscall_32, remove, user_stubs, syscall_ring3, clear_selectors, handler_returned, main_returned, save_state, enter_pku, enter_fsgsbase, enter_plain, round_trip, probe_syscall, probe_xsave, probe_fsgsbase, probe_counter, probe_pku",
    "  .globl forkvm_\\label",
    "  .hidden forkvm_\\label",
    ".endr",
    ".popsection",
    page = const PAGE,
    stride = const EXCEPTION_STRIDE,
    exception = const PORT_EXCEPTION,
    syscall = const PORT_SYSCALL,
    syscall32 = const PORT_SYSCALL_32,
    hypercall = const PORT_HYPERCALL,
    handler_returned = const HANDLER_RETURNED,
    main_returned = const MAIN_RETURNED,
    state_saved = const STATE_SAVED,
    xsave_offset = const XSAVE_IMAGE - USER_STUBS,
    bases_offset = const FROZEN_BASES - USER_STUBS,
    block_offset = const REQUEST_AREA - USER_STUBS,
    cleared_offset = const USER_STUBS - CLEARED_FOR,
    dispatch = const DISPATCHER - monitor(KERNEL_STUBS),
    kept_rcx = const DISPATCHED_RCX - monitor(KERNEL_STUBS),
);

/// A page of code.
type Code = [u8; PAGE as usize];

// SAFETY: both are defined above, each a page long by its `.org`, in a section that nothing writes.
unsafe extern "C" {
    safe static forkvm_kernel_stubs: Code;
    safe static forkvm_user_stubs: Code;
}

macro_rules! labels {
    ($($name:ident),* $(,)?) => {
        // SAFETY: all are defined above, inside one of the two pages, before its last byte.
        unsafe extern "C" { $( safe static $name: u8; )* }
    };
}

labels!(
    forkvm_syscall_ring0,
    forkvm_dispatch_ring0,
    forkvm_syscall_32,
    forkvm_remove,
    forkvm_syscall_ring3,
    forkvm_clear_selectors,
    forkvm_handler_returned,
    forkvm_main_returned,
    forkvm_save_state,
    forkvm_enter_pku,
    forkvm_enter_fsgsbase,
    forkvm_enter_plain,
    forkvm_round_trip,
    forkvm_probe_syscall,
    forkvm_probe_xsave,
    forkvm_probe_fsgsbase,
    forkvm_probe_counter,
    forkvm_probe_pku,
);

fn offset(base: &'static Code, label: &'static u8) -> u64 {
    ((&raw const *label).addr() - (&raw const *base).addr()) as u64
}

/// The ring-0 code, to be copied to [`super::layout::KERNEL_STUBS`].
pub fn kernel() -> &'static Code {
    &forkvm_kernel_stubs
}

/// The ring-3 code, to be copied to [`USER_STUBS`].
pub fn user() -> &'static Code {
    &forkvm_user_stubs
}

/// Offset of an exception's handler in the ring-0 code.
pub fn exception_offset(vector: u8) -> u64 {
    u64::from(vector) * EXCEPTION_STRIDE
}

fn user_address(label: &'static u8) -> u64 {
    super::layout::monitor(USER_STUBS) + offset(&forkvm_user_stubs, label)
}

fn kernel_address(label: &'static u8) -> u64 {
    super::layout::monitor(super::layout::KERNEL_STUBS) + offset(&forkvm_kernel_stubs, label)
}

/// Virtual addresses of the stubs.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// LSTAR where `syscall` stays in ring 3.
    pub syscall_ring3: u64,
    /// LSTAR where `syscall` enters ring 0.
    pub syscall_ring0: u64,
    /// The same where the dispatcher answers calls.
    pub dispatch_ring0: u64,
    /// CSTAR: `syscall` from 32-bit code (AMD).
    pub syscall_32: u64,
    /// Makes the processor notice table entries that lost something (ring 0).
    pub remove: u64,
    /// Clears the selectors, then goes on as [`Cleared`] says. Needs FSGSBASE.
    pub clear_selectors: u64,
    /// Return address of a request's handler, and of other functions that the host calls.
    pub handler_returned: u64,
    /// Return address of `main()`.
    pub main_returned: u64,
    /// Saves the vector state to `[R11]`, then makes hypercall [`STATE_SAVED`].
    pub save_state: u64,
    /// Entry of a request with protection keys and FSGSBASE.
    pub enter_pku: u64,
    /// Entry of a request with FSGSBASE.
    pub enter_fsgsbase: u64,
    /// Entry of a request with neither.
    pub enter_plain: u64,
    /// An endless loop of bare exits.
    pub round_trip: u64,
    /// Tries `syscall`.
    pub probe_syscall: u64,
    /// Tries `xgetbv`, which faults unless XSAVE is on. EAX then holds XCR0.
    pub probe_xsave: u64,
    /// Tries `rdfsbase` and `wrfsbase`.
    pub probe_fsgsbase: u64,
    /// Reads the processor's counter into RAX.
    pub probe_counter: u64,
    /// Tries `rdpkru` and `wrpkru`.
    pub probe_pku: u64,
}

/// Where the stubs lie in every guest.
pub fn addresses() -> Addresses {
    Addresses {
        syscall_ring3: user_address(&forkvm_syscall_ring3),
        syscall_ring0: kernel_address(&forkvm_syscall_ring0),
        dispatch_ring0: kernel_address(&forkvm_dispatch_ring0),
        syscall_32: kernel_address(&forkvm_syscall_32),
        remove: kernel_address(&forkvm_remove),
        clear_selectors: user_address(&forkvm_clear_selectors),
        handler_returned: user_address(&forkvm_handler_returned),
        main_returned: user_address(&forkvm_main_returned),
        save_state: user_address(&forkvm_save_state),
        enter_pku: user_address(&forkvm_enter_pku),
        enter_fsgsbase: user_address(&forkvm_enter_fsgsbase),
        enter_plain: user_address(&forkvm_enter_plain),
        round_trip: user_address(&forkvm_round_trip),
        probe_syscall: user_address(&forkvm_probe_syscall),
        probe_xsave: user_address(&forkvm_probe_xsave),
        probe_fsgsbase: user_address(&forkvm_probe_fsgsbase),
        probe_counter: user_address(&forkvm_probe_counter),
        probe_pku: user_address(&forkvm_probe_pku),
    }
}

/// What the stub that clears the selectors takes from [`CLEARED_FOR`]: the bases go with them.
#[derive(Debug, Clone, Copy)]
pub struct Cleared {
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// R11, which it uses.
    pub r11: u64,
    /// Where to go on.
    pub rip: u64,
}

impl Cleared {
    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let fields = [self.fs_base, self.gs_base, self.r11, self.rip];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

/// The block at the start of the request area from which the entry stub takes what it needs itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct EntryBlock {
    /// Where to go on.
    pub rip: u64,
    /// RAX there.
    pub rax: u64,
    /// RCX there.
    pub rcx: u64,
    /// RDX there.
    pub rdx: u64,
    /// The fork's number, for the program to read at [`Self::FORK`].
    pub fork: u32,
}

impl EntryBlock {
    /// Bytes of the block.
    pub const LEN: u64 = 40;
    /// Where in it a program finds the fork's number, twice (`vcpuid()` and `vcpureqid()` of the guest interface). GS
    /// base points at it unless the program sets that itself.
    pub const FORK: u64 = 32;

    /// The block's bytes.
    pub fn to_bytes(self) -> [u8; Self::LEN as usize] {
        let mut bytes = [0; Self::LEN as usize];
        let fork = u64::from(self.fork);
        for (field, value) in bytes.chunks_exact_mut(8).zip([
            self.rip,
            self.rax,
            self.rcx,
            self.rdx,
            fork << 32 | fork,
        ]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exception_has_its_own_port() {
        for vector in 0..32u8 {
            let at = exception_offset(vector) as usize;
            // out imm8, eax (Intel SDM Vol. 2B, OUT: E7 ib)
            assert_eq!(kernel()[at..at + 2], [0xe7, PORT_EXCEPTION as u8 + vector]);
        }
    }
}
