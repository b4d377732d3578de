/* What a system call leaves in the registers: RCX and R11 as the instruction `syscall` does, the result in RAX, and all else as
 * it was. With one argument: the bytes of that instruction after 2,000 calls by it. */
#define _GNU_SOURCE
#include "check.h"
#include <string.h>
#include <unistd.h>

/* CF, PF, AF, ZF, SF, DF and OF: what a program can choose. */
#define FLAGS 0xcd5UL

/* RBX RDX RSI RDI RBP R8 R9 R10 R12 R13 R14 R15 before and after; then what the call left. */
unsigned long given[12], left[12], flags, flags_left, result, rcx, r11, next;
void call(void);

__asm__(".text\n"
        "call:\n"
        " push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        " mov given(%rip), %rbx\n mov given+8(%rip), %rdx\n mov given+16(%rip), %rsi\n mov given+24(%rip), %rdi\n"
        " mov given+32(%rip), %rbp\n mov given+40(%rip), %r8\n mov given+48(%rip), %r9\n mov given+56(%rip), %r10\n"
        " mov given+64(%rip), %r12\n mov given+72(%rip), %r13\n mov given+80(%rip), %r14\n mov given+88(%rip), %r15\n"
        " mov $110, %eax\n" /* getppid */
        " push flags(%rip)\n popf\n"
        " syscall\n"
        "0: mov %rax, result(%rip)\n"
        " pushf\n pop flags_left(%rip)\n cld\n"
        " mov %rcx, rcx(%rip)\n mov %r11, r11(%rip)\n lea 0b(%rip), %rax\n mov %rax, next(%rip)\n"
        " mov %rbx, left(%rip)\n mov %rdx, left+8(%rip)\n mov %rsi, left+16(%rip)\n mov %rdi, left+24(%rip)\n"
        " mov %rbp, left+32(%rip)\n mov %r8, left+40(%rip)\n mov %r9, left+48(%rip)\n mov %r10, left+56(%rip)\n"
        " mov %r12, left+64(%rip)\n mov %r13, left+72(%rip)\n mov %r14, left+80(%rip)\n mov %r15, left+88(%rip)\n"
        " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
        " ret\n");

int main(int argc, char **argv)
{
    (void)argv;
    int right = 0;
    for (unsigned long i = 0; i < 2000; i++) {
        for (unsigned long j = 0; j < 12; j++) given[j] = (i * 12 + j) * 0x9e3779b97f4a7c15UL;
        flags = 0x202 | (i * 37 & FLAGS);
        call();
        right += memcmp(given, left, sizeof given) == 0 && rcx == next && ((r11 ^ flags) & FLAGS) == 0 &&
                 ((flags_left ^ flags) & FLAGS) == 0 && result == (unsigned long)getppid();
    }
    unsigned char *site = (unsigned char *)next - 2;
    if (argc == 2) printf("%02x %02x\n", site[0], site[1]);
    else printf("%d right\n", right);
    return 0;
}
