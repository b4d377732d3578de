// For property tests of the reset: does what a list says, and ends as it says.
//
//   POST   the body is a struct finale and then structs op; does the operations, loads all registers from the
//          finale, and ends in its way: a response ("done"), a fault, a loop, ...
//   GET    /probe: all that a request can see of the machine before it did anything: registers, vector state,
//          what the host keeps for the program. The same text, whatever requests came before
//
// crates/forkvm/tests/common/ops.rs makes the lists; its numbers are the ones here.

#define _GNU_SOURCE
#include "query.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

enum { PAGE = 4096, BSS_PAGES = 64, BIG_PAGES = 1536, SLOTS = 16, FILES = 8 };

struct op {
	uint8_t what, a;
	uint16_t b;
	uint32_t c;
	uint64_t d;
};

// The assembly below knows the places.
struct finale {
	uint64_t general[16]; // rax rbx rcx rdx rsi rdi rbp rsp r8..r15
	uint64_t flags;       // 128
	uint64_t fs_base;     // 136
	uint64_t gs_base;     // 144
	uint64_t address;     // 152: what some endings use
	uint16_t selectors[4]; // 160: ds es fs gs
	uint32_t pkru;        // 168
	uint16_t port;        // 172
	uint8_t ending;       // 174
	uint8_t set;          // 175: 1 selectors, 2 bases, 4 keys
} last;
_Static_assert(sizeof(struct finale) == 176 && offsetof(struct finale, ending) == 174, "assembly below");

// The state at the entry, stored before anything else happens.
struct {
	uint8_t xsave[16384] __attribute__((aligned(64)));
	uint64_t general[16]; // 16384
	uint64_t flags;       // 16512
	uint64_t fs_base;     // 16520
	uint64_t gs_base;     // 16528
	uint16_t selectors[6]; // 16536: cs ds es ss fs gs
} entry __attribute__((aligned(64)));

// What the CPU has.
int have_xsave, have_fsgsbase, have_pku, vector_level; // 0: SSE, 1: AVX, 2: AVX-512

static char bss[BSS_PAGES * PAGE] __attribute__((aligned(PAGE)));
char big[BIG_PAGES * PAGE] __attribute__((aligned(PAGE)));
static char data[PAGE] __attribute__((aligned(PAGE))) = "data";

void my_backend(const char *url);
void my_post_backend(const char *url, const uint8_t *body, size_t len);
__attribute__((noreturn, used)) void probe(const char *url);
__attribute__((noreturn, used)) void perform(const char *url, const uint8_t *body, size_t len);

__asm__(".text\n"
	".macro save_entry\n"
	"	mov %rax, entry+16384+0(%rip)\n	mov %rbx, entry+16384+8(%rip)\n"
	"	mov %rcx, entry+16384+16(%rip)\n	mov %rdx, entry+16384+24(%rip)\n"
	"	mov %rsi, entry+16384+32(%rip)\n	mov %rdi, entry+16384+40(%rip)\n"
	"	mov %rbp, entry+16384+48(%rip)\n	mov %rsp, entry+16384+56(%rip)\n"
	"	mov %r8, entry+16384+64(%rip)\n	mov %r9, entry+16384+72(%rip)\n"
	"	mov %r10, entry+16384+80(%rip)\n	mov %r11, entry+16384+88(%rip)\n"
	"	mov %r12, entry+16384+96(%rip)\n	mov %r13, entry+16384+104(%rip)\n"
	"	mov %r14, entry+16384+112(%rip)\n	mov %r15, entry+16384+120(%rip)\n"
	"	pushfq\n"
	"	pop entry+16512(%rip)\n"
	"	cld\n"
	"	mov %cs, entry+16536(%rip)\n	mov %ds, entry+16538(%rip)\n"
	"	mov %es, entry+16540(%rip)\n	mov %ss, entry+16542(%rip)\n"
	"	mov %fs, entry+16544(%rip)\n	mov %gs, entry+16546(%rip)\n"
	"	cmpl $0, have_fsgsbase(%rip)\n"
	"	je 1f\n"
	"	rdfsbase %rax\n"
	"	mov %rax, entry+16520(%rip)\n"
	"	rdgsbase %rax\n"
	"	mov %rax, entry+16528(%rip)\n"
	"1:	sub $8, %rsp\n"
	".endm\n"
	".globl my_backend\n"
	".type my_backend, @function\n"
	"my_backend:\n"
	"	save_entry\n"
	"	mov $-1, %eax\n"
	"	mov $-1, %edx\n"
	"	cmpl $0, have_xsave(%rip)\n"
	"	je 1f\n"
	"	xsave64 entry(%rip)\n"
	"	call probe\n"
	"1:	fxsave64 entry(%rip)\n"
	"	call probe\n"
	".size my_backend, . - my_backend\n"
	".globl my_post_backend\n"
	".type my_post_backend, @function\n"
	"my_post_backend:\n"
	"	save_entry\n"
	"	call perform\n"
	".size my_post_backend, . - my_post_backend\n");
_Static_assert(offsetof(__typeof__(entry), general) == 16384 && offsetof(__typeof__(entry), flags) == 16512 &&
		       offsetof(__typeof__(entry), selectors) == 16536,
	       "assembly above");

// Loads every register from `last` and jumps to an ending.
__attribute__((noreturn)) void finish(const void *ending);
extern const void *const endings[];
extern const char endings_end[];

__asm__(".text\n"
	"finish:\n"
	"	mov %rdi, target(%rip)\n"
	"	testb $1, last+175(%rip)\n"
	"	jz 1f\n"
	"	movzwl last+160(%rip), %eax\n	mov %eax, %ds\n"
	"	movzwl last+162(%rip), %eax\n	mov %eax, %es\n"
	"	movzwl last+164(%rip), %eax\n	mov %eax, %fs\n"
	"	movzwl last+166(%rip), %eax\n	mov %eax, %gs\n"
	"1:	testb $2, last+175(%rip)\n"
	"	jz 2f\n"
	"	cmpl $0, have_fsgsbase(%rip)\n"
	"	je 2f\n"
	"	mov last+136(%rip), %rax\n	wrfsbase %rax\n"
	"	mov last+144(%rip), %rax\n	wrgsbase %rax\n"
	"2:	testb $4, last+175(%rip)\n"
	"	jz 3f\n"
	"	cmpl $0, have_pku(%rip)\n"
	"	je 3f\n"
	"	xor %ecx, %ecx\n	xor %edx, %edx\n"
	"	mov last+168(%rip), %eax\n	and $~3, %eax\n	wrpkru\n"
	"3:	push last+128(%rip)\n"
	"	popfq\n"
	"	mov last+0(%rip), %rax\n	mov last+8(%rip), %rbx\n"
	"	mov last+16(%rip), %rcx\n	mov last+24(%rip), %rdx\n"
	"	mov last+32(%rip), %rsi\n	mov last+40(%rip), %rdi\n"
	"	mov last+48(%rip), %rbp\n	mov last+56(%rip), %rsp\n"
	"	mov last+64(%rip), %r8\n	mov last+72(%rip), %r9\n"
	"	mov last+80(%rip), %r10\n	mov last+88(%rip), %r11\n"
	"	mov last+96(%rip), %r12\n	mov last+104(%rip), %r13\n"
	"	mov last+112(%rip), %r14\n	mov last+120(%rip), %r15\n"
	"	jmp *target(%rip)\n"
	"	.macro own_stack\n	mov entry+16384+56(%rip), %rsp\n	.endm\n"
	"respond:\n"
	"	mov $200, %edi\n	mov $text_type, %esi\n	mov $10, %edx\n"
	"	mov $text_done, %ecx\n	mov $5, %r8d\n	xor %r9d, %r9d\n"
	"	mov $0x10010, %eax\n	out %eax, $0\n	ud2\n"
	"e_ud2:	ud2\n"
	"e_int3: int3\n	jmp respond\n"
	"e_divide: xor %ecx, %ecx\n	div %ecx\n"
	"e_load: mov last+152(%rip), %rax\n	mov (%rax), %rax\n	jmp respond\n"
	"e_store: mov last+152(%rip), %rbx\n	mov %rax, (%rbx)\n	jmp respond\n"
	"e_jump: jmp *last+152(%rip)\n"
	"e_exit: mov $231, %eax\n	syscall\n	ud2\n"
	"e_loop: jmp e_loop\n"
	"e_in:	mov last+172(%rip), %dx\n	in %dx, %eax\n	jmp respond\n"
	"e_ins:	mov last+152(%rip), %rdi\n	mov last+172(%rip), %dx\n	mov $16, %ecx\n	cld\n	rep insl\n	jmp respond\n"
	"e_outs: mov $big, %esi\n	mov last+172(%rip), %dx\n	mov $16, %ecx\n	cld\n	rep outsl\n	jmp respond\n"
	"e_out_byte: mov last+172(%rip), %dx\n	out %al, %dx\n	jmp respond\n"
	"e_out: mov last+172(%rip), %dx\n	out %eax, %dx\n	jmp respond\n"
	"e_hlt:	hlt\n"
	"e_int80: int $0x80\n	jmp respond\n"
	"e_syscall: syscall\n	jmp respond\n"
	"e_hypercall: out %eax, $0\n	jmp respond\n"
	"e_return: own_stack\n	ret\n"
	"e_deny: xor %ecx, %ecx\n	xor %edx, %edx\n	mov $-1, %eax\n	cmpl $0, have_pku(%rip)\n	je respond\n"
	"	wrpkru\n	jmp respond\n"
	"e_overflow: own_stack\n	1: push %rax\n	jmp 1b\n"
	"e_step: own_stack\n	pushfq\n	orq $0x100, (%rsp)\n	popfq\n	nop\n	jmp respond\n"
	"e_step_ss: own_stack\n	mov $0x2b, %ebx\n	mov $39, %eax\n	pushfq\n	orq $0x100, (%rsp)\n	popfq\n"
	"	mov %ebx, %ss\n	syscall\n	jmp respond\n"
	"e_align: own_stack\n	pushfq\n	orq $0x40000, (%rsp)\n	popfq\n	mov big+1(%rip), %rax\n	jmp respond\n"
	"e_32bit: own_stack\n	pushq $0x23\n	pushq $1f\n	lretq\n"
	"	.code32\n	1: mov $39, %eax\n	xor %ebx, %ebx\n	syscall\n	int $0x80\n	.code64\n	ud2\n"
	"e_x87: own_stack\n	pushq $0x300\n	fldcw (%rsp)\n	fld1\n	fldz\n	fdivrp\n	fwait\n	jmp respond\n"
	"e_simd: own_stack\n	pushq $0\n	ldmxcsr (%rsp)\n	divss (%rsp), %xmm0\n	jmp respond\n"
	"e_sysenter: sysenter\n	ud2\n"
	"e_cr0:	mov %cr0, %rax\n	ud2\n"
	"e_push: mov last+152(%rip), %rsp\n	push %rax\n	jmp respond\n"
	"e_int3_at: mov last+152(%rip), %rsp\n	int3\n	jmp respond\n"
	"e_ud2_at: mov last+152(%rip), %rsp\n	ud2\n"
	"e_syscall_at: mov last+152(%rip), %rsp\n	mov $39, %eax\n	syscall\n	jmp respond\n"
	"e_hypercall_at: mov last+152(%rip), %rsp\n	mov $0x7fdeb, %eax\n	out %eax, $0\n	jmp respond\n"
	"e_pages: mov $big, %edi\n	1: mov %rbx, (%rdi)\n	add $4096, %rdi\n	cmp $big+6291456, %rdi\n	jb 1b\n	jmp respond\n"
	// The red zone: filled, then a system call, a failing one and a hypercall, then looked at.
	"e_red_zone: own_stack\n	sub $8192, %rsp\n"
	"	mov $-128, %rax\n	1: mov %rax, (%rsp,%rax)\n	add $8, %rax\n	jnz 1b\n"
	"	mov $39, %eax\n	syscall\n	mov $9999, %eax\n	syscall\n	mov $0x7fdeb, %eax\n	out %eax, $0\n"
	"	mov $-128, %rax\n	2: cmp %rax, (%rsp,%rax)\n	jne e_ud2\n	add $8, %rax\n	jnz 2b\n	jmp respond\n"
	"	.section .rodata\n"
	"	.balign 8\n"
	"	.globl endings\n	.globl endings_end\n"
	"endings: .quad respond, e_ud2, e_int3, e_divide, e_load, e_store, e_jump, e_exit, e_loop, e_in, e_ins, e_outs\n"
	"	.quad e_out_byte, e_out, e_hlt, e_int80, e_syscall, e_hypercall, e_return, e_deny, e_overflow, e_step\n"
	"	.quad e_step_ss, e_align, e_32bit, e_x87, e_simd, e_sysenter, e_cr0, e_push, e_int3_at, e_ud2_at\n"
	"	.quad e_syscall_at, e_hypercall_at, e_pages, e_red_zone\n"
	"endings_end:\n"
	"text_type: .ascii \"text/plain\"\n"
	"text_done: .ascii \"done\\n\"\n"
	"	.data\n	.balign 8\n"
	"target: .quad 0\n"
	"	.text\n");
_Static_assert(sizeof big == 6291456, "assembly above");

// Fills all vector and mask registers with 64 bytes of `from`.
void load_vectors(const void *from, uint64_t mask);
__asm__(".text\n"
	"load_vectors:\n"
	"	cmpl $1, vector_level(%rip)\n"
	"	jb 2f\n"
	"	je 3f\n"
	"	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"	vmovdqu64 (%rdi), %zmm\\n\n"
	"	.endr\n"
	"	.irp n,0,1,2,3,4,5,6,7\n"
	"	kmovq %rsi, %k\\n\n"
	"	.endr\n"
	"	ret\n"
	"3:	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	vmovdqu (%rdi), %ymm\\n\n"
	"	.endr\n"
	"	ret\n"
	"2:	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	movdqu (%rdi), %xmm\\n\n"
	"	.endr\n"
	"	ret\n");

// ---------------------------------------------------------------- what the lists may do

static struct slot {
	char *at;
	size_t len;
} slots[SLOTS], blocks[SLOTS];
static int files[FILES] = {-1, -1, -1, -1, -1, -1, -1, -1};
static int main_file = -1;
static const char *path = "/";

static void touch(char *at, size_t len, uint64_t value)
{
	for (size_t i = value % PAGE & -8ul; i + 8 <= len; i += PAGE)
		*(volatile uint64_t *)(at + i) = value;
}

static void write_area(const struct op *op)
{
	char here[16 * PAGE];
	const struct slot *slot = &slots[op->b % SLOTS], *block = &blocks[op->b % SLOTS];

	switch (op->a % 6) {
	case 0:
		touch(bss + op->b % BSS_PAGES * PAGE, (op->c % 8 + 1) * PAGE, op->d);
		return;
	case 1:
		touch(here, sizeof here, op->d);
		return;
	case 2: // far below the stack pointer
		touch((char *)entry.general[7] - (op->b % 200 + 50) * PAGE, (op->c % 8 + 1) * PAGE, op->d);
		return;
	case 3:
		return slot->at ? touch(slot->at, slot->len, op->d) : (void)0;
	case 4:
		return block->at ? touch(block->at, block->len, op->d) : (void)0;
	case 5:
		touch(data, sizeof data, op->d);
	}
}

static void map(const struct op *op)
{
	struct slot *slot = &slots[op->a % SLOTS];
	const size_t len = (op->c % 64 + 1) * PAGE;

	switch (op->b % 5) {
	case 0:
		slot->at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		slot->at = slot->at == MAP_FAILED ? NULL : slot->at;
		slot->len = len;
		if (slot->at)
			touch(slot->at, len, op->d);
		return;
	case 1:
		munmap(slot->at, op->d & 1 ? slot->len : len);
		slot->at = NULL;
		return;
	case 2:
		mprotect(slot->at, slot->len, (const int[]){PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC}[op->d % 4]);
		return;
	case 3:
		madvise(slot->at, slot->len, op->d % 26);
		return;
	case 4: {
		void *at = mremap(slot->at, slot->len, len, op->d & 1);

		if (at != MAP_FAILED)
			*slot = (struct slot){at, len};
	}
	}
}

static void allocate(const struct op *op)
{
	struct slot *block = &blocks[op->a % SLOTS];

	switch (op->b % 3) {
	case 0:
		if ((block->at = malloc(op->c % (256 << 10) + 8))) {
			block->len = op->c % (256 << 10) + 8;
			touch(block->at, block->len, op->d);
		}
		return;
	case 1:
		free(block->at);
		block->at = NULL;
		return;
	case 2: {
		char *at = sbrk((intptr_t)(op->c % (256 << 10)) - (op->d & 1 ? 128 << 10 : 0));

		if (at != (void *)-1 && !(op->d & 1))
			touch(at, op->c % (256 << 10), op->d);
	}
	}
}

static void use_files(const struct op *op)
{
	int *file = &files[op->a % FILES], other = files[op->c % FILES], ends[2];

	switch (op->b % 12) {
	case 0: *file = open(path, O_RDONLY | (op->d & 1 ? O_CLOEXEC : 0)); return;
	case 1: (void)!read(*file, bss + op->c % sizeof bss / 2, op->d % 8192); return;
	case 2: lseek(*file, op->d % 100000, op->c % 3); return;
	case 3: *file = dup(other); return;
	case 4: dup2(other, op->d % 64); return;
	case 5: close(op->d & 1 ? *file : (int)(op->d % 64)); return;
	case 6: fcntl(op->d & 1 ? *file : main_file, F_SETFL, op->c & 1 ? O_NONBLOCK : O_APPEND); return;
	case 7: fcntl(op->d & 1 ? *file : main_file, F_SETFD, op->c & 1); return;
	case 8:
		if (!pipe2(ends, op->d & 1 ? O_NONBLOCK : 0)) {
			(void)!write(ends[1], bss, op->c % 65536);
			*file = ends[0];
			files[op->c % FILES] = ends[1];
		}
		return;
	case 9: (void)!read(main_file, bss, op->c % 64); return;
	case 10: lseek(main_file, op->c % 100, SEEK_SET); return;
	case 11:
		*file = open("/", O_RDONLY | O_DIRECTORY);
		syscall(SYS_getdents64, *file, bss, 4096);
	}
}

static void change_state(const struct op *op)
{
	const struct sigaction action = {.sa_handler = (void (*)(int))op->d, .sa_flags = op->c};
	const stack_t stack = {.ss_sp = bss, .ss_size = 8192 + op->b, .ss_flags = op->a & 1 ? SS_DISABLE : 0};
	const struct rlimit limit = {op->d % (1 << 30), 1 << 30};
	const struct itimerval timer = {{op->a, 0}, {op->a + 1000, 0}};
	char name[16];

	switch (op->b % 12) {
	case 0: (void)!chdir((const char *const[]){"/", "..", path, "/tmp"}[op->c % 4]); return;
	case 1: umask(op->c); return;
	case 2: sigaction(op->a % 64 + 1, &action, NULL); return;
	case 3: sigprocmask(op->c % 3, (const sigset_t *)(const void *)(const uint64_t[16]){op->d}, NULL); return;
	case 4: sigaltstack(&stack, NULL); return;
	case 5:
		snprintf(name, sizeof name, "%lx", op->d);
		prctl(PR_SET_NAME, name);
		return;
	case 6: setrlimit(op->a % 16, &limit); return;
	case 7: syscall(SYS_arch_prctl, ARCH_SET_GS, op->d >> (op->a % 32)); return;
	case 8: setitimer(op->a % 3, &timer, NULL); return;
	case 9: syscall(SYS_set_robust_list, op->d, 24); return;
	case 10: syscall(SYS_set_tid_address, op->d); return;
	case 11: prctl(op->a % 60, op->d, op->c, 0, 0);
	}
}

static void load_state(const struct op *op)
{
	uint64_t pattern[8];
	uint16_t control = 0x37f | (op->c & 0x0f00);
	uint32_t mxcsr = 0x1f80 | (op->c & 0xe07f);

	for (int i = 0; i < 8; i++)
		pattern[i] = op->d * (2 * i + 1) | 1ul << 63;
	if (op->a & 1) {
		__asm__ volatile("fldcw %0" ::"m"(control));
		for (int i = 0; i < op->b % 9; i++)
			__asm__ volatile("fildll %0" ::"m"(pattern[i % 8]));
	}
	if (op->a & 2)
		__asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
	load_vectors(pattern, op->d);
}

static void call_system(const struct op *op)
{
	const long number = op->b % 470;
	const uint64_t values[8] = {0, 1, 3, op->c, op->d, (uintptr_t)bss + op->c % PAGE, (uintptr_t)&data, -1};

	if (number == SYS_exit || number == SYS_exit_group)
		return;
	syscall(number, values[op->d & 7], values[op->d >> 3 & 7], values[op->d >> 6 & 7], values[op->d >> 9 & 7],
		values[op->d >> 12 & 7], values[op->d >> 15 & 7]);
}

static void call_host(const struct op *op)
{
	uint64_t info[4];

	switch (op->b % 6) {
	case 0: kvm_log("ops", 3); return;
	case 1: http_append(BERESP, "X-Ops: one", 10); return;
	case 2: http_set(BEREQ, "X-Ops: two", 10); return;
	case 3: set_cacheable(op->c & 1, 1000, 10, 10); return;
	case 4: get_meminfo((struct kvm_meminfo *)info); return;
	case 5:
		if (op->c != 0x10010 && op->c != 0x10001 && op->c != 0x10002)
			__asm__ volatile("out %%eax, $0" ::"a"(op->c), "D"(op->d), "S"(op->d), "d"(1) : "memory");
	}
}

void perform(const char *url, const uint8_t *body, size_t len)
{
	static void (*const operations[])(const struct op *) = {
		write_area, map, allocate, use_files, change_state, load_state, call_system, call_host,
	};
	struct op op;

	(void)url;
	if (len < sizeof last)
		backend_response_str(400, "text/plain", "no finale\n");
	memcpy(&last, body, sizeof last);
	for (size_t at = sizeof last; at + sizeof op <= len; at += sizeof op) {
		memcpy(&op, body + at, sizeof op);
		operations[op.what % (sizeof operations / sizeof *operations)](&op);
	}
	finish(endings[last.ending % ((const void *const *)endings_end - endings)]);
}

// ---------------------------------------------------------------- what a request can see

static void dump(const char *name, const uint8_t *from, size_t len)
{
	for (size_t i = 0; i < len; i += 32) {
		bool zero = true;

		for (int j = 0; j < 32; j++)
			zero = zero && !from[i + j];
		if (zero)
			continue;
		say("%s %04zx ", name, i);
		for (int j = 0; j < 32; j++)
			say("%02x", from[i + j]);
		say("\n");
	}
}

// The result of a call, or its errno as a negative number.
static long result(long value)
{
	return value < 0 ? -errno : value;
}

void probe(const char *url)
{
	static const char names[16][4] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
					  "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
	const uint16_t *s = entry.selectors;
	uint64_t base = 0, mask[16] = {0};
	struct sigaction action;
	struct itimerval timer;
	struct rlimit limit;
	struct stat file;
	stack_t stack;
	char text[4096] = "";

	(void)url;
	for (int i = 0; i < 16; i++)
		say("%s %016lx\n", names[i], entry.general[i]);
	say("rflags %lx\nfs_base %lx\ngs_base %lx\n", entry.flags, entry.fs_base, entry.gs_base);
	say("cs %x ds %x es %x ss %x fs %x gs %x\n", s[0], s[1], s[2], s[3], s[4], s[5]);
	say("vectors %s keys %d\n", vector_level == 2 ? "avx512" : vector_level == 1 ? "avx" : "sse", have_pku);
	dump("xsave", entry.xsave, sizeof entry.xsave);

	say("cwd %ld %s\n", result(syscall(SYS_getcwd, text, sizeof text)), text);
	say("umask %o\n", umask(0));
	for (int i = 0; i < 64; i++) {
		const long flags = fcntl(i, F_GETFL);

		if (flags >= 0)
			say("fd %d flags %lx close %d offset %ld ino %ld\n", i, flags, fcntl(i, F_GETFD),
			    result(lseek(i, 0, SEEK_CUR)), fstat(i, &file) ? -1 : (long)file.st_ino);
	}
	for (int i = 1; i <= 64; i++) {
		memset(&action, 0, sizeof action);
		if (!sigaction(i, NULL, &action) && (action.sa_handler || action.sa_flags))
			say("signal %d %p %x\n", i, (void *)action.sa_handler, action.sa_flags);
	}
	long got = result(syscall(SYS_rt_sigprocmask, 0, NULL, mask, 8));
	say("mask %ld %lx\n", got, mask[0]);
	mask[0] = 0;
	got = result(syscall(SYS_rt_sigpending, mask, 8));
	say("pending %ld %lx\n", got, mask[0]);
	memset(&stack, 0, sizeof stack);
	got = result(sigaltstack(NULL, &stack));
	say("sigaltstack %ld %p %x %zx\n", got, stack.ss_sp, stack.ss_flags, stack.ss_size);
	memset(text, 0, 16);
	say("name %ld %.16s\n", result(prctl(PR_GET_NAME, text)), text);
	for (int i = 1; i < 60; i++) { // what prctl answers to questions
		if (i == PR_GET_DUMPABLE || i == PR_GET_KEEPCAPS || i == PR_GET_SECCOMP || i == PR_GET_NO_NEW_PRIVS)
			say("prctl %d %ld\n", i, result(prctl(i, 0, 0, 0, 0)));
	}
	for (int i = 0; i < 16; i++) {
		memset(&limit, 0, sizeof limit);
		got = result(getrlimit(i, &limit));
		say("limit %d %ld %lx %lx\n", i, got, limit.rlim_cur, limit.rlim_max);
	}
	for (int i = 0; i < 3; i++) {
		memset(&timer, 0, sizeof timer);
		got = result(getitimer(i, &timer));
		say("timer %ld %ld %ld\n", got, timer.it_interval.tv_sec, timer.it_value.tv_sec);
	}
	got = result(syscall(SYS_arch_prctl, ARCH_GET_FS, &base));
	say("fs %ld %lx\n", got, base);
	got = result(syscall(SYS_arch_prctl, ARCH_GET_GS, &base));
	say("gs %ld %lx\n", got, base);
	say("ids %ld %ld %ld\n", syscall(SYS_getpid), syscall(SYS_gettid), syscall(SYS_getppid));
	say("brk %lx\n", syscall(SYS_brk, 0));
	say("mmap %p\n", mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	say("malloc %p %p\n", malloc(100), malloc(100000));
	say("next file %ld\n", result(dup(1)));
	memset(text, 0, 16);
	say("read %ld %.16s\n", result(read(main_file, text, 16)), text);
	done(200);
}

int main(int argc, char **argv)
{
	unsigned a, b, c = 0, d, low = 0, high = 0;

	if (__get_cpuid(1, &a, &b, &c, &d) && (have_xsave = (c & bit_OSXSAVE) != 0))
		__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	vector_level = (c & bit_AVX) && (low & 6) == 6;
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
		have_fsgsbase = b & 1;
		have_pku = c >> 4 & 1;
		if (vector_level && (b & bit_AVX512F) && (b & bit_AVX512BW) && (low & 0xe0) == 0xe0)
			vector_level = 2;
	}
	if (argc > 1) {
		path = argv[1];
		main_file = open(path, O_RDONLY);
	}
	blocks[0] = (struct slot){malloc(64 << 10), 64 << 10};
	// A state at the freeze that is not the processor's first one: a reset to zeros would be seen.
	load_state(&(struct op){.a = 3, .b = 2, .c = 0x6c40, .d = 0x0123456789abcdef});
	umask(027);
	signal(SIGUSR1, SIG_IGN);
	return 0;
}
