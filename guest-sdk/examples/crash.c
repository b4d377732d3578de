// One URL for each way to die, and a few that look like one but must be answered.
//
//   /list   all names with what has to come of them:
//             fails    the request fails: 500, or what on_error answers
//             limits   the same, but only when the time or memory limit is reached
//             answers  a response with status 200, though the program misbehaved
//             either   fails or answers: it depends on the CPU and on KVM
//   /NAME   does it; when it comes back alive where it should not: 200 "survived NAME"
//
// Whatever the outcome, the next request must be served as if nothing had happened.
//
// crash on_error         registers an error handler that answers 500 with the error's text
// crash on_error-crash   one that crashes itself: a plain 500
// crash on_error-loop    one that never ends: a plain 500
// (or built with -DON_ERROR_MODE='"on_error"' where arguments can't be passed)

#define _GNU_SOURCE
#include <kvm_api.h>

#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define NONCANONICAL 0x8000000000000000ul
#define KERNEL_HALF 0xffffffff81000000ul
#define UNMAPPED 0x10ul

static const char read_only[PAGE] __attribute__((aligned(PAGE))) = "not to be written";
static char data[PAGE] __attribute__((aligned(PAGE)));
static char text[8192];

// Hides from the compiler what it would warn about, or drop.
static uintptr_t opaque(uintptr_t value)
{
	__asm__ volatile("" : "+r"(value));
	return value;
}

static void *at(uintptr_t address)
{
	return (void *)opaque(address);
}

static void read_byte(uintptr_t address)
{
	(void)*(volatile char *)at(address);
}

static void write_byte(uintptr_t address)
{
	*(volatile char *)at(address) = 1;
}

static void jump(uintptr_t address)
{
	__asm__ volatile("jmp *%0" ::"r"(address));
}

static void answer(const char *what)
{
	backend_response_str(200, "text/plain", what);
}

// ---------------------------------------------------------------- memory

static void null_read(void) { read_byte(0); }
static void null_write(void) { write_byte(0); }
static void null_call(void) { ((void (*)(void))opaque(0))(); }
static void write_text(void) { write_byte((uintptr_t)&write_text); }
static void write_rodata(void) { write_byte((uintptr_t)read_only); }
static void read_kernel(void) { read_byte(KERNEL_HALF); }
static void write_kernel(void) { write_byte(KERNEL_HALF); }
static void noncanonical_read(void) { read_byte(NONCANONICAL); }
static void noncanonical_jump(void) { jump(NONCANONICAL); }
static void kernel_jump(void) { jump(KERNEL_HALF); }
static void top_jump(void) { jump(0x00007ffffffffffful); }

static void exec_stack(void)
{
	volatile unsigned char code[16] = {0xc3}; // ret

	((void (*)(void))opaque((uintptr_t)code))();
}

static void exec_data(void)
{
	data[0] = (char)0xc3;
	((void (*)(void))opaque((uintptr_t)data))();
}

static void exec_heap(void)
{
	char *code = malloc(16);

	code[0] = (char)0xc3;
	((void (*)(void))opaque((uintptr_t)code))();
}

static int recurse(volatile char *caller)
{
	volatile char frame[PAGE];

	frame[0] = caller[0];
	frame[PAGE - 1] = 1;
	if (opaque(1))
		return recurse(frame) + frame[1];
	return 0;
}

static void stack_overflow(void) { recurse(data); }

// Low pages, where a monitor likes to keep what belongs to it: not mapped, or not for us.
static void monitor_page(void)
{
	for (uintptr_t page = PAGE; page < 16 * PAGE; page += PAGE)
		read_byte(page);
}

static void read_gdt(void)
{
	uintptr_t base;

	__asm__ volatile("sgdt %0" : "=m"(data));
	memcpy(&base, data + 2, sizeof base);
	read_byte(base);
}

static void write_gdt(void)
{
	uintptr_t base;

	__asm__ volatile("sgdt %0" : "=m"(data));
	memcpy(&base, data + 2, sizeof base);
	write_byte(base + 8);
}

static void write_idt(void)
{
	uintptr_t base;

	__asm__ volatile("sidt %0" : "=m"(data));
	memcpy(&base, data + 2, sizeof base);
	write_byte(base + 14 * 16);
}

// ---------------------------------------------------------------- CPU exceptions

static void ud2(void) { __asm__ volatile("ud2"); }
static void div0(void) { __asm__ volatile("xorl %%ecx, %%ecx; movl $1, %%eax; cltd; idivl %%ecx" ::: "rax", "rcx", "rdx"); }
static void int3(void) { __asm__ volatile("int3"); }
static void int80(void) { __asm__ volatile("movl $20, %%eax; int $0x80" ::: "rax", "memory"); }
static void int13(void) { __asm__ volatile("int $13"); }
static void int255(void) { __asm__ volatile("int $255"); }
static void icebp(void) { __asm__ volatile(".byte 0xf1"); }
static void sysenter(void) { __asm__ volatile("sysenter" ::: "rax", "rcx", "rdx", "memory"); }
static void movaps_unaligned(void) { __asm__ volatile("movaps 1(%0), %%xmm0" ::"r"(data) : "xmm0"); }
static void cmpxchg16b_unaligned(void) { __asm__ volatile("lock cmpxchg16b 8(%0)" ::"r"(data) : "rax", "rdx", "memory"); }

static void alignment_check(void)
{
	__asm__ volatile("pushfq; orl $0x40000, (%%rsp); popfq\n\t"
			 "movl 1(%0), %%eax\n\t"
			 "pushfq; andl $~0x40000, (%%rsp); popfq" ::"r"(data) : "rax", "memory");
}

static void single_step(void)
{
	__asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; nop; nop" ::: "memory");
}

// The trap that `popfq` arms is held back over `mov %ss` and is due just behind `syscall`.
static void mov_ss_syscall(void)
{
	__asm__ volatile("movl %%ss, %%edx; movl $39, %%eax\n\t"
			 "pushfq; orl $0x100, (%%rsp); popfq\n\t"
			 "movl %%edx, %%ss; syscall; nop; nop" ::: "rax", "rcx", "rdx", "r11", "memory");
}

static void sse_fpe(void)
{
	uint32_t mxcsr = 0x1f80 & ~(1u << 9); // unmask division by zero

	__asm__ volatile("ldmxcsr %0; pxor %%xmm1, %%xmm1; movl $1, %%eax; cvtsi2ss %%eax, %%xmm0\n\t"
			 "divss %%xmm1, %%xmm0" ::"m"(mxcsr) : "rax", "xmm0", "xmm1");
}

static void x87_fpe(void)
{
	uint16_t control = 0x037f & ~4; // likewise

	__asm__ volatile("fldcw %0; fld1; fldz; fdivrp; fwait; fstp %%st(0)" ::"m"(control));
}

static void noncanonical_rsp(void)
{
	__asm__ volatile("movq %0, %%rsp; pushq %%rax" ::"r"(NONCANONICAL) : "memory");
}

static void kernel_rsp(void)
{
	__asm__ volatile("movq %0, %%rsp; pushq %%rax" ::"r"(KERNEL_HALF) : "memory");
}

static void low_rsp(void)
{
	__asm__ volatile("movq %0, %%rsp; pushq %%rax" ::"r"(0x3000ul) : "memory");
}

// The exception comes when there is no stack to push anything to.
static void ud2_without_stack(void)
{
	__asm__ volatile("movq %0, %%rsp; ud2" ::"r"(NONCANONICAL) : "memory");
}

// ---------------------------------------------------------------- privileged instructions

static void hlt(void) { __asm__ volatile("hlt"); }
static void cli(void) { __asm__ volatile("cli"); }
static void rdmsr(void) { __asm__ volatile("rdmsr" ::"c"(0xc0000100) : "rax", "rdx"); }
static void wrmsr(void) { __asm__ volatile("wrmsr" ::"c"(0xc0000082), "a"(0), "d"(0)); }
static void mov_cr3(void) { __asm__ volatile("movq %0, %%cr3" ::"r"(0x10000ul)); }
static void read_cr0(void) { __asm__ volatile("movq %%cr0, %%rax" ::: "rax"); }
static void mov_dr7(void) { __asm__ volatile("movq %0, %%dr7" ::"r"(0ul)); }
static void lgdt(void) { __asm__ volatile("lgdt %0" ::"m"(data)); }
static void lidt(void) { __asm__ volatile("lidt %0" ::"m"(data)); }
static void ltr(void) { __asm__ volatile("ltr %w0" ::"r"(0x40)); }
static void invlpg(void) { __asm__ volatile("invlpg %0" ::"m"(data)); }
static void wbinvd(void) { __asm__ volatile("wbinvd"); }
static void clts(void) { __asm__ volatile("clts"); }
static void swapgs(void) { __asm__ volatile("swapgs"); }
static void xsetbv(void) { __asm__ volatile("xsetbv" ::"a"(7), "d"(0), "c"(0)); }
static void rdpmc(void) { __asm__ volatile("rdpmc" ::"c"(0) : "rax", "rdx"); }
static void mwait(void) { __asm__ volatile("monitor; mwait" ::"a"(data), "c"(0), "d"(0)); }
// A call to the hypervisor from ring 3: an exception here, refused with a result there.
static void vmcall(void) { __asm__ volatile("vmcall" ::: "rax", "memory"); }
static void vmmcall(void) { __asm__ volatile("vmmcall" ::: "rax", "memory"); }
static void sysretq(void) { __asm__ volatile("sysretq" ::: "memory"); }
static void bad_selector(void) { __asm__ volatile("movw %w0, %%ds" ::"r"(0x18)); }
static void kernel_selector(void) { __asm__ volatile("movw %w0, %%ss" ::"r"(0x18)); }

// Returns with `iretq` and `lretq`, and a far call, to the selector of the kernel's code.
static void iretq(void)
{
	__asm__ volatile("leaq 1f(%%rip), %%rax; movq %%rsp, %%rcx\n\t"
			 "pushq $0x18; pushq %%rcx; pushfq; pushq $0x10; pushq %%rax; iretq; 1:" ::
				 : "rax", "rcx", "memory");
}

static void lretq(void)
{
	__asm__ volatile("leaq 1f(%%rip), %%rax; pushq $0x10; pushq %%rax; lretq; 1:" ::: "rax", "memory");
}

static void lcall(void)
{
	const struct {
		uint32_t offset;
		uint16_t selector;
	} __attribute__((packed)) target = {0, 0x10};

	__asm__ volatile("lcall *%0" ::"m"(target) : "memory");
}

static void iopl(void)
{
	__asm__ volatile("pushfq; orl $0x3000, (%%rsp); popfq; cli" ::: "memory");
}

static void wrfsbase_noncanonical(void) { __asm__ volatile("wrfsbase %0" ::"r"(NONCANONICAL)); }

// ---------------------------------------------------------------- ports

static void in(void) { __asm__ volatile("inb $0x60, %%al" ::: "rax"); }
static void in_dx(void) { __asm__ volatile("inl %%dx, %%eax" ::"d"(0xbfff) : "rax"); }
static void in_hypercall_port(void) { __asm__ volatile("inl $0, %%eax" ::: "rax"); }
static void rep_insl(void) { __asm__ volatile("rep insl" ::"D"(data), "c"(10), "d"(0) : "memory"); }
// KVM hands out each of the ten as if it were an `out` of its own, so it may pass for unknown hypercalls.
static void rep_outsl(void) { __asm__ volatile("rep outsl" ::"S"(data), "c"(10), "d"(0) : "memory"); }
static void out_other_port(void) { __asm__ volatile("outb %%al, $0x80" ::"a"(0)); }
static void out_byte(void) { __asm__ volatile("outb %%al, $0" ::"a"(0)); }
static void out_high_port(void) { __asm__ volatile("outl %%eax, %%dx" ::"a"(0), "d"(0xfffc)); }

// ---------------------------------------------------------------- 32-bit code
//
// A far return to the 32-bit code segment is not privileged. The labels are reachable only in a program
// that lies below 4 GiB; elsewhere the far return itself faults, which is as good.

#define ENTER_32BIT "pushq $0x23; leaq 1f(%%rip), %%rax; pushq %%rax; lretq\n\t.code32\n1:\t"
#define LEAVE_32BIT "\n\tud2\n\t.code64"

static void lret32(void) { __asm__ volatile(ENTER_32BIT "ud2" LEAVE_32BIT ::: "rax", "memory"); }
static void lret32_int80(void) { __asm__ volatile(ENTER_32BIT "movl $20, %%eax; int $0x80" LEAVE_32BIT ::: "rax", "memory"); }
static void lret32_sysenter(void) { __asm__ volatile(ENTER_32BIT "movl $20, %%eax; movl %%esp, %%ebp; sysenter" LEAVE_32BIT ::: "rax", "memory"); }
static void lret32_loop(void) { __asm__ volatile(ENTER_32BIT "2: jmp 2b" LEAVE_32BIT ::: "rax", "memory"); }

// A response from there, with a status that can't be.
static void lret32_response(void)
{
	__asm__ volatile(ENTER_32BIT "movl $0x10010, %%eax; movl $0x777, %%edi; outl %%eax, $0" LEAVE_32BIT ::
				 : "rax", "rdi", "memory");
}

// ---------------------------------------------------------------- leaving without a response

static void exit0(void) { exit(0); }
static void exit1(void) { exit(1); }
static void exit_now(void) { _exit(0); }
static void exit_thread(void) { syscall(SYS_exit, 0); }
static void do_abort(void) { abort(); }
static void raise_segv(void) { raise(SIGSEGV); }
static void raise_kill(void) { kill(getpid(), SIGKILL); }

// `return` is the one function whose return is not taken for survival.
static void do_return(void) {}

// ---------------------------------------------------------------- limits

static void loop(void) { for (;;) __asm__ volatile(""); }
static void loop_pause(void) { for (;;) __asm__ volatile("pause"); }
static void loop_syscalls(void) { for (;;) syscall(SYS_getppid); }
static void loop_hypercalls(void) { for (;;) kvm_hypercall(0x7ffff, 0, 0, 0, 0, 0, 0); }
static void loop_print(void) { for (;;) dprintf(1, "for ever\n"); }

static void loop_cpuid(void)
{
	unsigned a, b, c, d;

	for (;;)
		__cpuid(0, a, b, c, d);
}

static void loop_sleep(void)
{
	const struct timespec hour = {3600, 0};

	for (;;)
		nanosleep(&hour, NULL);
}

// Takes memory from the system in big pieces, smaller ones when those run out, and writes to every page.
static void oom(void)
{
	for (size_t size = 64 << 20; size >= PAGE; size /= 2) {
		for (;;) {
			volatile char *piece = mmap(NULL, size, PROT_READ | PROT_WRITE,
						    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (piece == MAP_FAILED)
				break;
			for (size_t i = 0; i < size; i += PAGE)
				piece[i] = 1;
		}
	}
	abort(); // there is no more, and no limit has struck
}

static void malloc_oom(void)
{
	for (;;) {
		volatile char *piece = malloc(1 << 20);

		for (size_t i = 0; i < 1 << 20; i += PAGE) // the NULL of the end is written to as well
			piece[i] = 1;
	}
}

// Memory that the system writes, not the program: over a small memory limit at once, else for ever.
static void oom_system(void)
{
	const size_t size = 12 << 20, step = 64 << 10;
	char *piece = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (size_t i = 0;; i = (i + step) % size)
		syscall(SYS_getrandom, piece + i, step, 0);
}

// And by the host, a few bytes in each page.
static void oom_host(void)
{
	const size_t size = 12 << 20;
	char *piece = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (size_t i = 0;; i = (i + PAGE) % size)
		get_meminfo((struct kvm_meminfo *)(piece + i));
}

// ---------------------------------------------------------------- wrong responses

static void bad_response_pointer(void) { backend_response(200, "text/plain", 10, at(UNMAPPED), 100); }
static void bad_response_kernel(void) { backend_response(200, "text/plain", 10, at(KERNEL_HALF), 100); }
static void bad_response_noncanonical(void) { backend_response(200, "text/plain", 10, at(NONCANONICAL), 100); }
static void bad_response_wrap(void) { backend_response(200, "text/plain", 10, at(-16ul), 32); }
static void bad_response_length(void) { backend_response(200, "text/plain", 10, data, opaque(1ul << 40)); }
static void bad_response_negative(void) { backend_response(200, "text/plain", 10, data, opaque(-1ul)); }
static void bad_ctype_pointer(void) { backend_response(200, at(UNMAPPED), 10, data, 1); }
static void bad_ctype_length(void) { backend_response(200, text, 4096, data, 1); }
static void bad_ctype_huge(void) { backend_response(200, "text/plain", opaque(1ul << 40), data, 1); }
static void bad_ctype_crlf(void) { backend_response_str(200, "text/plain\r\nX-Smuggled: yes", "?"); }
static void bad_status(void) { backend_response_str(99, "text/plain", "status 99"); }
static void bad_status_high(void) { backend_response_str(600, "text/plain", "status 600"); }
static void bad_status_negative(void) { backend_response_str(-200, "text/plain", "status -200"); }

static void respond_with(const struct kvm_response_extra *extra)
{
	backend_response_extra(200, "text/plain", 10, "with headers\n", 13, extra);
}

static void respond_with_header(const char *field, size_t len)
{
	const struct kvm_response_header headers[2] = {{"X-Good: yes", 11}, {field, len}};
	const struct kvm_response_extra extra = {.headers = headers, .num_headers = 2};

	respond_with(&extra);
}

static void bad_extra_pointer(void) { respond_with(at(UNMAPPED)); }
static void bad_header_pointer(void) { respond_with_header(at(KERNEL_HALF), 10); }
static void bad_header_length(void) { respond_with_header("X-Long: 1", opaque(1ul << 40)); }
static void bad_header_crlf(void) { respond_with_header("X-Bad: a\r\nX-Smuggled: yes", 25); }
static void bad_header_nul(void) { respond_with_header("X-Bad: a\0b", 10); }
static void bad_header_name(void) { respond_with_header("X Bad: a", 8); }
static void bad_header_no_colon(void) { respond_with_header("X-Bad", 5); }
static void bad_header_empty(void) { respond_with_header("", 0); }

static void bad_headers(void)
{
	const struct kvm_response_extra extra = {.headers = at(UNMAPPED), .num_headers = 2};

	respond_with(&extra);
}

static void bad_headers_count(void)
{
	static struct kvm_response_header headers[65];
	const struct kvm_response_extra extra = {.headers = headers, .num_headers = 65};

	for (int i = 0; i < 65; i++)
		headers[i] = (struct kvm_response_header){"X-Good: yes", 11};
	respond_with(&extra);
}

// The first API's number for a response, which had two meanings: refused, with a word about the header.
static void old_api(void)
{
	kvm_hypercall(0xffff, (uintptr_t)"text/plain", 10, (uintptr_t)"old", 3, 0, 0);
}

// ---------------------------------------------------------------- to be answered

static void ok(void) { answer("ok\n"); }

static const char *outcome_of(long result, char *buffer, size_t size)
{
	if (result >= 0)
		snprintf(buffer, size, "%ld", result);
	else if (errno == EFAULT)
		snprintf(buffer, size, "EFAULT");
	else
		snprintf(buffer, size, "errno %d", errno);
	return buffer;
}

// System calls with pointers that can't be used; a line for each, and in it the result for each pointer:
// unmapped, kernel half, non-canonical, up to the end of the address space, and (where the call writes) a
// read-only page. All have to be EFAULT.
static void wild_syscall_pointer(void)
{
	const struct {
		const char *name;
		long number;
		bool writes;
		int pointer; // which argument is the pointer
		long args[4];
	} calls[] = {
		{"write", SYS_write, false, 1, {1, 0, 32, 0}},
		{"writev", SYS_writev, false, 1, {1, 0, 2, 0}},
		{"open", SYS_open, false, 0, {0, O_RDONLY, 0, 0}},
		{"nanosleep", SYS_nanosleep, false, 0, {0, 0, 0, 0}},
		{"uname", SYS_uname, true, 0, {0, 0, 0, 0}},
		{"clock_gettime", SYS_clock_gettime, true, 1, {CLOCK_MONOTONIC, 0, 0, 0}},
		{"getrandom", SYS_getrandom, true, 0, {0, 32, 0, 0}},
		{"getcwd", SYS_getcwd, true, 0, {0, 32, 0, 0}},
		{"rt_sigprocmask", SYS_rt_sigprocmask, true, 2, {SIG_BLOCK, 0, 0, 8}},
		{"sysinfo", SYS_sysinfo, true, 0, {0, 0, 0, 0}},
	};
	const long pointers[] = {UNMAPPED, KERNEL_HALF, NONCANONICAL, -16, (long)read_only};
	size_t len = 0;

	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		len += snprintf(text + len, sizeof text - len, "%s", calls[i].name);
		for (size_t j = 0; j < (calls[i].writes ? 5 : 4); j++) {
			char buffer[32];
			long args[4];

			memcpy(args, calls[i].args, sizeof args);
			args[calls[i].pointer] = pointers[j];
			len += snprintf(text + len, sizeof text - len, " %s",
					outcome_of(syscall(calls[i].number, args[0], args[1], args[2], args[3]),
						   buffer, sizeof buffer));
		}
		len += snprintf(text + len, sizeof text - len, "\n");
	}

	// An array in order, with an entry that is not.
	const struct iovec vectors[2] = {{(void *)"", 0}, {at(KERNEL_HALF), 16}};
	char buffer[32];
	snprintf(text + len, sizeof text - len, "iovec %s\n",
		 outcome_of(syscall(SYS_writev, 1, vectors, 2), buffer, sizeof buffer));
	answer(text);
}

// -ENOSYS, this and the next
static void unknown_hypercall(void)
{
	snprintf(text, sizeof text, "%ld\n", kvm_hypercall(0x7fffe, 1, 2, 3, 4, 5, 6));
	answer(text);
}

static void unknown_syscall(void)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(99999) : "rcx", "r11", "memory");
	snprintf(text, sizeof text, "%ld\n", result);
	answer(text);
}

// -EPERM
static void arch_prctl_kernel(void)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(SYS_arch_prctl), "D"(ARCH_SET_FS), "S"(KERNEL_HALF)
			 : "rcx", "r11", "memory");
	snprintf(text, sizeof text, "%ld\n", result);
	answer(text);
}

// The rest leaves the CPU in a state that the next request must not meet: everything is loaded first, then
// changed, and the hypercall follows at once, since nothing could run in C any more.
#define LOAD "movl %[len], %%r8d; xorl %%r9d, %%r9d; "
#define RESPOND "movl $0x10010, %%eax; outl %%eax, $0; ud2"
#define RESPONSE(content) \
	"D"(200l), "S"("text/plain"), "d"(10l), "c"(content), [len] "i"(sizeof(content) - 1)

static void wrfsbase(void)
{
	__asm__ volatile(LOAD "movl $0x777000, %%eax; wrgsbase %%rax; wrfsbase %%rax; " RESPOND
			 ::RESPONSE("fs and gs base changed\n") : "rax", "r8", "r9", "memory");
}

static void std_flag(void)
{
	__asm__ volatile(LOAD "std; " RESPOND ::RESPONSE("direction flag set\n") : "rax", "r8", "r9", "memory");
}

static void nt_ac_flags(void)
{
	__asm__ volatile(LOAD "pushfq; orl $0x44000, (%%rsp); popfq; " RESPOND
			 ::RESPONSE("NT and AC flags set\n") : "rax", "r8", "r9", "memory");
}

static void selectors_changed(void)
{
	__asm__ volatile(LOAD "movl $0x2b, %%eax; movl %%eax, %%ds; movl %%eax, %%es; movl %%eax, %%gs; " RESPOND
			 ::RESPONSE("selectors changed\n") : "rax", "r8", "r9", "memory");
}

static void rsp_gone(void)
{
	__asm__ volatile(LOAD "movq $-1, %%rsp; " RESPOND ::RESPONSE("answered without a stack\n") : "rax", "r8", "r9", "memory");
}

// A system call does not need a stack either.
static void rsp_gone_syscall(void)
{
	long result;

	__asm__ volatile("movq %%rsp, %%rbx; movabsq $0x8000000000000000, %%rsp; syscall; movq %%rbx, %%rsp"
			 : "=a"(result)
			 : "a"(99999)
			 : "rbx", "rcx", "r11", "memory");
	snprintf(text, sizeof text, "%ld\n", result);
	answer(text);
}

static void x87_pending(void)
{
	const uint16_t control = 0x037f & ~4;

	__asm__ volatile(LOAD "fldcw %[control]; fld1; fldz; fdivrp; " RESPOND
			 ::RESPONSE("x87 exception pending\n"), [control] "m"(control) : "rax", "r8", "r9", "memory");
}

static bool has_pku(void)
{
	unsigned a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & 1 << 4);
}

// Takes from the program the right to all its memory; a response that is in the registers still gets out.
static void pkru_deny(void)
{
	if (!has_pku())
		answer("no protection keys\n");
	__asm__ volatile(LOAD "movq %%rcx, %%r10; movq %%rdx, %%r11; xorl %%ecx, %%ecx; xorl %%edx, %%edx\n\t"
			 "movl $3, %%eax; wrpkru; movq %%r10, %%rcx; movq %%r11, %%rdx; " RESPOND
			 ::RESPONSE("access denied to key 0\n") : "rax", "r8", "r9", "r10", "r11", "memory");
}

static void pkru_fault(void)
{
	if (!has_pku())
		ud2();
	__asm__ volatile("xorl %%ecx, %%ecx; xorl %%edx, %%edx; movl $3, %%eax; wrpkru; pushq %%rax" ::
				 : "rax", "rcx", "rdx", "memory");
}

static void avx_dirty(void)
{
	unsigned a, b, c, d, low = 0, high;

	if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE))
		__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	if ((low & 6) != 6 || !(c & bit_AVX))
		__asm__ volatile(LOAD "pcmpeqd %%xmm0, %%xmm0; movdqa %%xmm0, %%xmm7; movdqa %%xmm0, %%xmm15; " RESPOND
				 ::RESPONSE("SSE registers dirty\n") : "rax", "r8", "r9", "xmm0", "xmm7", "xmm15", "memory");
	__asm__ volatile(LOAD "vpcmpeqd %%xmm0, %%xmm0, %%xmm0; vinsertf128 $1, %%xmm0, %%ymm0, %%ymm0\n\t"
			 "vmovaps %%ymm0, %%ymm1; vmovaps %%ymm0, %%ymm7; vmovaps %%ymm0, %%ymm15; " RESPOND
			 ::RESPONSE("AVX registers dirty\n") : "rax", "r8", "r9", "xmm0", "xmm1", "xmm7", "xmm15", "memory");
}

// More output than any log wants.
static void stdout_flood(void)
{
	for (int i = 0; i < 2000; i++)
		dprintf(1 + i % 2, "%05d %.500d\n", i, 0);
	answer("1 MB printed\n");
}

static void log_flood(void)
{
	for (int i = 0; i < 2000; i++)
		kvm_log_str("once more");
	answer("2000 records logged\n");
}

static void wild_log_pointer(void)
{
	kvm_log(at(KERNEL_HALF), 100);
	kvm_log(data, opaque(-1ul));
	kvm_log("bad\0\n\r\033[31m text", 16);
	answer("logged\n");
}

// ---------------------------------------------------------------- the list

enum outcome { FAILS, LIMITS, ANSWERS, EITHER };
static const char *const outcome_names[] = {"fails", "limits", "answers", "either"};

static const struct way {
	const char *name;
	enum outcome outcome;
	void (*run)(void);
} ways[] = {
	{"ok", ANSWERS, ok},
	{"null-read", FAILS, null_read},
	{"null-write", FAILS, null_write},
	{"null-call", FAILS, null_call},
	{"write-text", FAILS, write_text},
	{"write-rodata", FAILS, write_rodata},
	{"exec-stack", FAILS, exec_stack},
	{"exec-data", FAILS, exec_data},
	{"exec-heap", FAILS, exec_heap},
	{"stack-overflow", FAILS, stack_overflow},
	{"read-kernel", FAILS, read_kernel},
	{"write-kernel", FAILS, write_kernel},
	{"noncanonical-read", FAILS, noncanonical_read},
	{"noncanonical-jump", FAILS, noncanonical_jump},
	{"kernel-jump", FAILS, kernel_jump},
	{"top-jump", FAILS, top_jump},
	{"monitor-page", FAILS, monitor_page},
	{"read-gdt", FAILS, read_gdt},
	{"write-gdt", FAILS, write_gdt},
	{"write-idt", FAILS, write_idt},
	{"ud2", FAILS, ud2},
	{"div0", FAILS, div0},
	{"int3", FAILS, int3},
	{"int80", FAILS, int80},
	{"int13", FAILS, int13},
	{"int255", FAILS, int255},
	{"icebp", FAILS, icebp},
	{"sysenter", FAILS, sysenter},
	{"movaps-unaligned", FAILS, movaps_unaligned},
	{"cmpxchg16b-unaligned", FAILS, cmpxchg16b_unaligned},
	{"alignment-check", FAILS, alignment_check},
	{"single-step", FAILS, single_step},
	{"mov-ss-syscall", EITHER, mov_ss_syscall},
	{"sse-fpe", FAILS, sse_fpe},
	{"x87-fpe", FAILS, x87_fpe},
	{"noncanonical-rsp", FAILS, noncanonical_rsp},
	{"kernel-rsp", FAILS, kernel_rsp},
	{"low-rsp", FAILS, low_rsp},
	{"ud2-without-stack", FAILS, ud2_without_stack},
	{"hlt", FAILS, hlt},
	{"cli", FAILS, cli},
	{"rdmsr", FAILS, rdmsr},
	{"wrmsr", FAILS, wrmsr},
	{"mov-cr3", FAILS, mov_cr3},
	{"read-cr0", FAILS, read_cr0},
	{"mov-dr7", FAILS, mov_dr7},
	{"lgdt", FAILS, lgdt},
	{"lidt", FAILS, lidt},
	{"ltr", FAILS, ltr},
	{"invlpg", FAILS, invlpg},
	{"wbinvd", FAILS, wbinvd},
	{"clts", FAILS, clts},
	{"swapgs", FAILS, swapgs},
	{"xsetbv", FAILS, xsetbv},
	{"rdpmc", FAILS, rdpmc},
	{"mwait", FAILS, mwait},
	{"vmcall", EITHER, vmcall},
	{"vmmcall", EITHER, vmmcall},
	{"sysretq", FAILS, sysretq},
	{"iretq", FAILS, iretq},
	{"lretq", FAILS, lretq},
	{"lcall", FAILS, lcall},
	{"bad-selector", FAILS, bad_selector},
	{"kernel-selector", FAILS, kernel_selector},
	{"iopl", FAILS, iopl},
	{"wrfsbase-noncanonical", FAILS, wrfsbase_noncanonical},
	{"in", FAILS, in},
	{"in-dx", FAILS, in_dx},
	{"in-hypercall-port", FAILS, in_hypercall_port},
	{"rep-insl", FAILS, rep_insl},
	{"rep-outsl", EITHER, rep_outsl},
	{"out-other-port", FAILS, out_other_port},
	{"out-byte", FAILS, out_byte},
	{"out-high-port", FAILS, out_high_port},
	{"lret32", FAILS, lret32},
	{"lret32-int80", FAILS, lret32_int80},
	{"lret32-sysenter", FAILS, lret32_sysenter},
	{"lret32-response", FAILS, lret32_response},
	{"lret32-loop", LIMITS, lret32_loop},
	{"return", FAILS, do_return},
	{"exit0", FAILS, exit0},
	{"exit1", FAILS, exit1},
	{"exit-now", FAILS, exit_now},
	{"exit-thread", FAILS, exit_thread},
	{"abort", FAILS, do_abort},
	{"raise-segv", FAILS, raise_segv},
	{"raise-kill", FAILS, raise_kill},
	{"loop", LIMITS, loop},
	{"loop-pause", LIMITS, loop_pause},
	{"loop-syscalls", LIMITS, loop_syscalls},
	{"loop-hypercalls", LIMITS, loop_hypercalls},
	{"loop-print", LIMITS, loop_print},
	{"loop-cpuid", LIMITS, loop_cpuid},
	{"loop-sleep", LIMITS, loop_sleep},
	{"oom", LIMITS, oom},
	{"malloc-oom", LIMITS, malloc_oom},
	{"oom-system", LIMITS, oom_system},
	{"oom-host", LIMITS, oom_host},
	{"bad-response-pointer", FAILS, bad_response_pointer},
	{"bad-response-kernel", FAILS, bad_response_kernel},
	{"bad-response-noncanonical", FAILS, bad_response_noncanonical},
	{"bad-response-wrap", FAILS, bad_response_wrap},
	{"bad-response-length", FAILS, bad_response_length},
	{"bad-response-negative", FAILS, bad_response_negative},
	{"bad-ctype-pointer", FAILS, bad_ctype_pointer},
	{"bad-ctype-length", FAILS, bad_ctype_length},
	{"bad-ctype-huge", FAILS, bad_ctype_huge},
	{"bad-ctype-crlf", FAILS, bad_ctype_crlf},
	{"bad-status", FAILS, bad_status},
	{"bad-status-high", FAILS, bad_status_high},
	{"bad-status-negative", FAILS, bad_status_negative},
	{"bad-extra-pointer", FAILS, bad_extra_pointer},
	{"bad-headers", FAILS, bad_headers},
	{"bad-headers-count", FAILS, bad_headers_count},
	{"bad-header-pointer", FAILS, bad_header_pointer},
	{"bad-header-length", FAILS, bad_header_length},
	{"bad-header-crlf", FAILS, bad_header_crlf},
	{"bad-header-nul", FAILS, bad_header_nul},
	{"bad-header-name", FAILS, bad_header_name},
	{"bad-header-no-colon", FAILS, bad_header_no_colon},
	{"bad-header-empty", FAILS, bad_header_empty},
	{"old-api", FAILS, old_api},
	{"pkru-fault", FAILS, pkru_fault},
	{"pkru-deny", ANSWERS, pkru_deny},
	{"wild-syscall-pointer", ANSWERS, wild_syscall_pointer},
	{"wild-log-pointer", ANSWERS, wild_log_pointer},
	{"unknown-hypercall", ANSWERS, unknown_hypercall},
	{"unknown-syscall", ANSWERS, unknown_syscall},
	{"arch-prctl-kernel", ANSWERS, arch_prctl_kernel},
	{"wrfsbase", ANSWERS, wrfsbase},
	{"std-flag", ANSWERS, std_flag},
	{"nt-ac-flags", ANSWERS, nt_ac_flags},
	{"selectors-changed", ANSWERS, selectors_changed},
	{"rsp-gone", ANSWERS, rsp_gone},
	{"rsp-gone-syscall", ANSWERS, rsp_gone_syscall},
	{"x87-pending", ANSWERS, x87_pending},
	{"avx-dirty", ANSWERS, avx_dirty},
	{"stdout-flood", ANSWERS, stdout_flood},
	{"log-flood", ANSWERS, log_flood},
};

static void list(void)
{
	size_t len = 0;

	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
		len += snprintf(text + len, sizeof text - len, "%s %s\n", ways[i].name,
				outcome_names[ways[i].outcome]);
	backend_response(200, "text/plain", 10, text, len);
}

// /read/HEX, /write/HEX and /jump/HEX: for tests that know of an address.
static void at_address(const char *url)
{
	const char *hex = strrchr(url, '/') + 1;
	const uintptr_t address = strtoul(hex, NULL, 16);

	if (!strncmp(url, "/read/", 6))
		read_byte(address);
	else if (!strncmp(url, "/write/", 7))
		write_byte(address);
	else if (!strncmp(url, "/jump/", 6))
		jump(address);
	else
		backend_response_str(404, "text/plain", "no such way to die; see /list\n");
	backend_response_str(200, "text/plain", "survived\n");
}

KVM_EXPORT void my_backend(const char *url)
{
	const size_t len = strcspn(url, "?");

	if (len == 5 && !memcmp(url, "/list", 5))
		list();
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
		if (len != strlen(ways[i].name) + 1 || memcmp(url + 1, ways[i].name, len - 1))
			continue;
		ways[i].run();
		if (ways[i].run == do_return)
			return;
		snprintf(text, sizeof text, "survived %s\n", ways[i].name);
		answer(text);
	}
	at_address(url);
}

// ---------------------------------------------------------------- error handlers

static void on_error(const char *url, const char *arg, const char *exception)
{
	(void)arg;
	snprintf(text, sizeof text, "on_error: %s: %s\n", url, exception);
	backend_response_str(500, "text/plain", text);
}

static void on_error_crash(const char *url, const char *arg, const char *exception)
{
	(void)url, (void)arg, (void)exception;
	null_write();
}

static void on_error_loop(const char *url, const char *arg, const char *exception)
{
	(void)url, (void)arg, (void)exception;
	loop();
}

#ifndef ON_ERROR_MODE
#define ON_ERROR_MODE ""
#endif

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : ON_ERROR_MODE;

	memset(text, 'x', sizeof text - 1); // a content type of 4096 bytes, for bad-ctype-length
	if (!strcmp(mode, "on_error"))
		set_on_error(on_error);
	else if (!strcmp(mode, "on_error-crash"))
		set_on_error(on_error_crash);
	else if (!strcmp(mode, "on_error-loop"))
		set_on_error(on_error_loop);
	return 0;
}
