// Loops on wait_for_requests_paused(): every request has to come back with all registers, local variables and
// the heap as they were at the pause.

#include "query.h"

struct registers {
	uint64_t rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15, rflags;
	uint8_t xmm[16][16];
};

// Loads every register with a value of its own, pauses, and stores what came back.
void pause_with_registers(struct kvm_request *request, struct registers *back);
__asm__(".text\n"
	"pause_with_registers:\n"
	"	push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
	"	push %rsi\n"
	"	mov %rsp, saved_rsp(%rip)\n"
	"	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	mov $0x1111 * (\\n + 1), %eax\n"
	"	movd %eax, %xmm\\n\n"
	"	.endr\n"
	"	mov $0x10002, %eax\n"
	"	mov $0xb0b, %ebx\n mov $0xc0c, %ecx\n mov $0xd0d, %edx\n mov $0x510, %esi\n mov $0xbb, %ebp\n"
	"	mov $0x808, %r8d\n mov $0x909, %r9d\n mov $0x1010, %r10d\n mov $0x1111, %r11d\n"
	"	mov $0x1212, %r12d\n mov $0x1313, %r13d\n mov $0x1414, %r14d\n mov $0x1515, %r15d\n"
	"	out %eax, $0\n"
	"	push %rax\n pushfq\n"
	"	mov 16(%rsp), %rax\n"
	"	mov %rbx, 8(%rax)\n mov %rcx, 16(%rax)\n mov %rdx, 24(%rax)\n mov %rsi, 32(%rax)\n"
	"	mov %rdi, 40(%rax)\n mov %rbp, 48(%rax)\n mov %r8, 64(%rax)\n mov %r9, 72(%rax)\n"
	"	mov %r10, 80(%rax)\n mov %r11, 88(%rax)\n mov %r12, 96(%rax)\n mov %r13, 104(%rax)\n"
	"	mov %r14, 112(%rax)\n mov %r15, 120(%rax)\n"
	"	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	movdqu %xmm\\n, 136 + 16 * \\n(%rax)\n"
	"	.endr\n"
	"	pop %rcx\n mov %rcx, 128(%rax)\n"
	"	pop %rcx\n mov %rcx, 0(%rax)\n"
	"	mov %rsp, 56(%rax)\n"
	"	pop %rsi\n"
	"	pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
	"	ret\n"
	".local saved_rsp\n .comm saved_rsp, 8, 8\n");

static struct kvm_request request;

static void check(const char *name, uint64_t value, uint64_t expected, int *wrong)
{
	if (value == expected)
		return;
	say("%s is %lx, not %lx\n", name, value, expected);
	++*wrong;
}

static void check_registers(const struct registers *r)
{
	int wrong = 0, kept = 0, clean = 0;
	uint64_t saved;

	__asm__("mov saved_rsp(%%rip), %0" : "=r"(saved));
	check("rbx", r->rbx, 0xb0b, &wrong);
	check("rcx", r->rcx, 0xc0c, &wrong);
	check("rdx", r->rdx, 0xd0d, &wrong);
	check("rsi", r->rsi, 0x510, &wrong);
	check("rdi", r->rdi, (uint64_t)&request, &wrong);
	check("rbp", r->rbp, 0xbb, &wrong);
	check("rsp", r->rsp, saved, &wrong);
	check("r8", r->r8, 0x808, &wrong);
	check("r9", r->r9, 0x909, &wrong);
	check("r10", r->r10, 0x1010, &wrong);
	check("r11", r->r11, 0x1111, &wrong);
	check("r12", r->r12, 0x1212, &wrong);
	check("r13", r->r13, 0x1313, &wrong);
	check("r14", r->r14, 0x1414, &wrong);
	check("r15", r->r15, 0x1515, &wrong);
	check("direction and trap flags", r->rflags & 0x500, 0, &wrong);
	for (int i = 0; i < 16; i++) {
		uint32_t low;

		memcpy(&low, r->xmm[i], 4);
		kept += low == 0x1111u * (i + 1);
		clean += low == 0;
	}
	say("registers %s, vectors %s\n", wrong ? "changed" : "ok",
	    kept == 16 ? "kept" : clean == 16 ? "clean" : "changed");
}

int main(void)
{
	char local[64] = "local";
	char *heap = strdup("heap");
	double number = 1.5;
	int turns = 0;

	for (;;) {
		struct registers back;

		memset(&back, 0xee, sizeof back);
		pause_with_registers(&request, &back);
		turns++;
		say("%s %s arg %s len %zu crc32 %08x\n", request.method, request.url, request.arg,
		    request.content_len, crc32_of(request.content, request.content_len));
		check_registers(&back);
		say("turn %d %s %s %g\n", turns, local, heap, number);
		strcpy(local, "changed");
		heap[0] = 'X';
		number = 2.5;
		done(200);
	}
}
