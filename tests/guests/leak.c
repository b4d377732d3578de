// For isolation tests: one request hides a secret wherever it can, the next one looks for it.
//
//   /plant/SECRET         hides it in the stack (also below the stack pointer), heap, BSS, fresh brk and mmap
//                         memory, all general, vector, mask and x87 registers, and answers "planted"
//   /plant-crash/SECRET   the same, but ends with an invalid instruction
//   /plant-loop/SECRET    the same, but never ends
//   /find/SECRET          looks for it in all these places: "stack no heap no ..."
//   /self-test/SECRET     does both in one request: everything has to be "yes", or the search is worth nothing;
//                         but "no" for brk and mmap, as memory that was given back comes again as zeros
//   /regs                 the registers at the entry of the handler, as text, the same for every request
//
// What is hidden is not the text itself, which the next request's URL holds as well, but a number made of it.
// In the host's copies of the request it is the other way round: they are searched for what only a planting
// request has: "/plant" in the URL, and the word PLANTED, which a test can put in headers, arguments or body.

#define _GNU_SOURCE
#include "query.h"

#include <cpuid.h>
#include <errno.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, SCRATCH = 64 << 10, BELOW = 32 << 10, PLANTED = 64 << 10 };

// The state at the entry, stored before anything else happens. The assembly below knows the places.
struct registers {
	uint64_t general[16]; // rax rbx rcx rdx rsi rdi rbp rsp r8..r15
	uint64_t flags;       // 128
	uint64_t fs_base;     // 136
	uint64_t gs_base;     // 144
	uint16_t selectors[6]; // 152: cs ds es ss fs gs
};

// All that would itself be found, in one place, so that it can be left out of the search.
struct {
	uint8_t xsave[16384] __attribute__((aligned(64)));
	struct registers entry __attribute__((aligned(64)));
	uint8_t scratch[SCRATCH] __attribute__((aligned(64))); // the handler's stack, so that it leaves the real one alone
} own __attribute__((aligned(PAGE)));

// What the CPU has.
int have_xsave, have_fsgsbase, have_pku, vector_level; // 0: SSE, 1: AVX, 2: AVX-512

void my_backend(const char *url);
__attribute__((noreturn, used)) void handle(const char *url);

__asm__(".text\n"
	".globl my_backend\n"
	".type my_backend, @function\n"
	"my_backend:\n"
	"	mov %rax, own+16384+0(%rip)\n	mov %rbx, own+16384+8(%rip)\n"
	"	mov %rcx, own+16384+16(%rip)\n	mov %rdx, own+16384+24(%rip)\n"
	"	mov %rsi, own+16384+32(%rip)\n	mov %rdi, own+16384+40(%rip)\n"
	"	mov %rbp, own+16384+48(%rip)\n	mov %rsp, own+16384+56(%rip)\n"
	"	mov %r8, own+16384+64(%rip)\n	mov %r9, own+16384+72(%rip)\n"
	"	mov %r10, own+16384+80(%rip)\n	mov %r11, own+16384+88(%rip)\n"
	"	mov %r12, own+16384+96(%rip)\n	mov %r13, own+16384+104(%rip)\n"
	"	mov %r14, own+16384+112(%rip)\n	mov %r15, own+16384+120(%rip)\n"
	"	lea own+16384+192+65536(%rip), %rsp\n"
	"	pushfq\n"
	"	pop own+16384+128(%rip)\n"
	"	cld\n"
	"	mov %cs, own+16384+152(%rip)\n	mov %ds, own+16384+154(%rip)\n"
	"	mov %es, own+16384+156(%rip)\n	mov %ss, own+16384+158(%rip)\n"
	"	mov %fs, own+16384+160(%rip)\n	mov %gs, own+16384+162(%rip)\n"
	"	lea own(%rip), %rcx\n"
	"	mov $-1, %eax\n"
	"	mov $-1, %edx\n"
	"	cmpl $0, have_xsave(%rip)\n"
	"	je 1f\n"
	"	xsave64 (%rcx)\n"
	"	jmp 2f\n"
	"1:	fxsave64 (%rcx)\n"
	"2:	cmpl $0, have_fsgsbase(%rip)\n"
	"	je 3f\n"
	"	rdfsbase %rax\n"
	"	mov %rax, own+16384+136(%rip)\n"
	"	rdgsbase %rax\n"
	"	mov %rax, own+16384+144(%rip)\n"
	"3:	xor %ebp, %ebp\n"
	"	call handle\n"
	"	ud2\n"
	".size my_backend, . - my_backend\n");
_Static_assert(sizeof(struct registers) <= 192 && offsetof(struct registers, selectors) == 152, "assembly above");
_Static_assert(offsetof(__typeof__(own), entry) == 16384 && offsetof(__typeof__(own), scratch) == 16384 + 192,
	       "assembly above");

enum ending { RESPOND, CRASH, LOOP, FIND };

struct planting {
	uint8_t vector[64];
	uint8_t x87[16]; // 64
	uint32_t mxcsr;  // 80
	uint16_t control; // 84
};

// Loads every register and ends: with a response, a crash, a loop, or at the entry for the URL `find`.
__attribute__((noreturn)) void load_and_end(uint64_t secret, const struct planting *planting, enum ending ending,
					    const char *find);
__asm__(".text\n"
	"load_and_end:\n"
	"	mov %rdi, %rbx\n"
	"	mov %rcx, %rbp\n"
	"	mov %edx, %r15d\n"
	"	.irp n,0,1,2,3,4,5,6,7\n"
	"	fldt 64(%rsi)\n"
	"	.endr\n"
	"	fldcw 84(%rsi)\n"
	"	ldmxcsr 80(%rsi)\n"
	"	cmpl $0, have_pku(%rip)\n"
	"	je 1f\n"
	"	xor %ecx, %ecx\n xor %edx, %edx\n mov $0x4, %eax\n" // no access to key 1, which nobody has
	"	wrpkru\n"
	"1:	cmpl $1, vector_level(%rip)\n"
	"	jb 2f\n"
	"	je 3f\n"
	"	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"	vmovdqu64 (%rsi), %zmm\\n\n"
	"	.endr\n"
	"	.irp n,0,1,2,3,4,5,6,7\n"
	"	kmovq %rbx, %k\\n\n"
	"	.endr\n"
	"	jmp 4f\n"
	"3:	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	vmovdqu (%rsi), %ymm\\n\n"
	"	.endr\n"
	"	jmp 4f\n"
	"2:	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	movdqu (%rsi), %xmm\\n\n"
	"	.endr\n"
	"4:	mov %rbx, %r10\n mov %rbx, %r11\n mov %rbx, %r12\n mov %rbx, %r13\n mov %rbx, %r14\n"
	"	cmp $1, %r15d\n"
	"	je 6f\n"
	"	cmp $2, %r15d\n"
	"	je 7f\n"
	"	cmp $3, %r15d\n"
	"	je 8f\n"
	"	lea 10f(%rip), %rsi\n"
	"	lea 11f(%rip), %rcx\n"
	"	mov %rbx, %rbp\n mov %rbx, %r15\n"
	"	mov $200, %edi\n mov $10, %edx\n mov $8, %r8d\n xor %r9d, %r9d\n"
	"	std\n"
	"	mov $0x10010, %eax\n"
	"	out %eax, $0\n"
	"	ud2\n"
	"	.macro load_the_rest\n"
	"	mov %rbx, %rax\n mov %rbx, %rcx\n mov %rbx, %rdx\n mov %rbx, %rsi\n mov %rbx, %rbp\n"
	"	mov %rbx, %r8\n mov %rbx, %r9\n mov %rbx, %r15\n"
	"	.endm\n"
	"6:	load_the_rest\n"
	"	mov %rbx, %rdi\n"
	"	std\n"
	"	ud2\n"
	"7:	load_the_rest\n"
	"	mov %rbx, %rdi\n"
	"	std\n"
	"	jmp .\n"
	"8:	mov %rbp, %rdi\n"
	"	load_the_rest\n"
	"	mov own+16384+56(%rip), %rsp\n"
	"	jmp my_backend\n"
	"	.purgem load_the_rest\n"
	"	.section .rodata\n"
	"10:	.ascii \"text/plain\"\n"
	"11:	.ascii \"planted\\n\"\n"
	"	.text\n");

extern char __data_start[], _end[];

static char bss[PLANTED];
static char *heap_start, *stack_end;

// A number with its highest bit set, so that it is a valid mantissa of the x87 registers too.
static uint64_t number_of(const char *secret)
{
	return fnv1a_of((const uint8_t *)secret, strcspn(secret, "?")) | 1ul << 63;
}

static void fill(volatile void *to, size_t len, uint64_t secret)
{
	for (volatile uint64_t *p = to; len >= 8; len -= 8)
		*p++ = secret;
}

static char *pages(size_t len)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

__attribute__((noreturn)) static void plant(const char *secret_text, enum ending ending, const char *find)
{
	const uint64_t secret = number_of(secret_text);
	struct planting planting = {.mxcsr = 0x1f80 | 0x6000 | 0x40, .control = 0x037f | 0x0c00};
	const uint16_t exponent = 0x3fff;
	char *p = malloc(PLANTED), *kept = malloc(PLANTED);

	fill(p, PLANTED, secret);
	fill(kept, PLANTED, secret);
	free(p);
	fill(bss, sizeof bss, secret);
	fill((void *)(own.entry.general[7] - BELOW), BELOW, secret);
	fill((void *)getauxval(AT_RANDOM), 16, secret); // at the far end of the stack
	if ((p = sbrk(PLANTED)) != (void *)-1)
		fill(p, PLANTED, secret);
	if ((p = pages(PLANTED)))
		fill(p, PLANTED, secret);
	if (ending == FIND) { // give it back, for the search to take it again
		munmap(p, PLANTED);
		sbrk(-PLANTED);
	}

	fill(planting.vector, sizeof planting.vector, secret);
	memcpy(planting.x87, &secret, 8);
	memcpy(planting.x87 + 8, &exponent, 2);
	load_and_end(secret, &planting, ending, find);
}

static bool found(const void *from, const void *to, uint64_t secret)
{
	for (const char *p = from; p + 8 <= (const char *)to; p++) {
		uint64_t word;

		memcpy(&word, p, 8);
		if (word == secret)
			return true;
	}
	return false;
}

static const char *yes(bool condition)
{
	return condition ? "yes" : "no";
}

// Whether the page can be read, by asking the system to read a path from it.
static bool readable(const char *page)
{
	return syscall(SYS_access, page, 0) == 0 || errno != EFAULT;
}

// Looks through the pages around the request's texts for what an earlier request left there.
static const char *request_leftovers(const char *url)
{
	static const char halves[2][2][8] = {{"/pla", "nt"}, {"PLAN", "TED"}};
	const char *from = (const char *)((uintptr_t)url & -PAGE), *to = from + PAGE;

	for (int i = 0; i < 64 && readable(from - PAGE); i++)
		from -= PAGE;
	for (int i = 0; i < 64 && readable(to); i++)
		to += PAGE;
	for (int i = 0; i < 2; i++) {
		const size_t a = strlen(halves[i][0]), b = strlen(halves[i][1]);

		for (const char *p = from; p + a + b <= to; p++)
			if (!memcmp(p, halves[i][0], a) && !memcmp(p + a, halves[i][1], b))
				return "yes";
	}
	return "no";
}

__attribute__((noreturn)) static void find(const char *url, const char *secret_text)
{
	const uint64_t secret = number_of(secret_text);
	const char *rsp = (const char *)own.entry.general[7];
	uint32_t mxcsr;
	uint16_t control;

	memcpy(&control, own.xsave, 2);
	memcpy(&mxcsr, own.xsave + 24, 4);
	say("registers %s ", yes(found(&own.entry, &own.entry + 1, secret)));
	say("vectors %s ", yes(found(own.xsave, own.xsave + sizeof own.xsave, secret)));
	say("mxcsr %x control %x direction %s ", mxcsr, control, yes(own.entry.flags & 0x400));
	say("stack %s ", yes(found(rsp, stack_end, secret)));
	say("below %s ", yes(found(rsp - BELOW, rsp, secret)));
	say("heap %s ", yes(found(heap_start, sbrk(0), secret)));
	say("bss %s ", yes(found(__data_start, &own, secret) || found(&own + 1, _end, secret)));
	char *p = sbrk(PLANTED);
	say("brk %s ", p == (void *)-1 ? "none" : yes(found(p, p + PLANTED, secret)));
	p = pages(PLANTED);
	say("mmap %s ", p ? yes(found(p, p + PLANTED, secret)) : "none");
	say("request %s\n", request_leftovers(url));
	done(200);
}

__attribute__((noreturn)) static void show_registers(void)
{
	static const char names[16][4] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
					  "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
	const uint16_t *s = own.entry.selectors;

	for (int i = 0; i < 16; i++)
		say("%s %016lx\n", names[i], own.entry.general[i]);
	say("rflags %lx\nfs_base %lx\ngs_base %lx\n", own.entry.flags, own.entry.fs_base, own.entry.gs_base);
	say("cs %x ds %x es %x ss %x fs %x gs %x\n", s[0], s[1], s[2], s[3], s[4], s[5]);
	say("vectors %s\n", vector_level == 2 ? "avx512" : vector_level == 1 ? "avx" : "sse");
	// The XSAVE area, without the lines that are zero: legacy state, header at 0200, AVX at 0240, ...
	for (size_t i = 0; i < sizeof own.xsave; i += 32) {
		bool zero = true;

		for (int j = 0; j < 32; j++)
			zero = zero && !own.xsave[i + j];
		if (zero)
			continue;
		say("%04zx ", i);
		for (int j = 0; j < 32; j++)
			say("%02x", own.xsave[i + j]);
		say("\n");
	}
	done(200);
}

void handle(const char *url)
{
	static char find_url[4096];
	const char *secret;

	if ((secret = after(url, "/plant/")))
		plant(secret, RESPOND, NULL);
	if ((secret = after(url, "/plant-crash/")))
		plant(secret, CRASH, NULL);
	if ((secret = after(url, "/plant-loop/")))
		plant(secret, LOOP, NULL);
	if ((secret = after(url, "/self-test/"))) {
		const int len = snprintf(find_url, sizeof find_url - 16, "/find/%s", secret);
		memcpy(find_url + len + 1, "/plant/", 7); // as left by an earlier request
		plant(secret, FIND, find_url);
	}
	if ((secret = after(url, "/find/")))
		find(url, secret);
	if (path_is(url, "/regs"))
		show_registers();
	backend_response_str(404, "text/plain", "see the source\n");
}

int main(void)
{
	unsigned a, b, c = 0, d, low = 0, high = 0;
	const char *random = (const char *)getauxval(AT_RANDOM);

	if (__get_cpuid(1, &a, &b, &c, &d) && (have_xsave = (c & bit_OSXSAVE) != 0))
		__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	vector_level = (c & bit_AVX) && (low & 6) == 6;
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
		have_fsgsbase = b & 1;
		have_pku = c >> 4 & 1;
		if (vector_level && (b & bit_AVX512F) && (b & bit_AVX512BW) && (low & 0xe0) == 0xe0)
			vector_level = 2;
	}
	heap_start = (char *)((uintptr_t)malloc(16) & -PAGE);
	stack_end = (char *)random + 16;
	return 0;
}
