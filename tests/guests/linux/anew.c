/* execve(2): what a program finds of the one before. Without a C library, whose start would set most of it itself, and at
 * fixed addresses, so that both programs have their variables at the same. */
#include <cpuid.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <stddef.h>
#include <sys/syscall.h>

#define SECOND 's'
#define STACK 16384

static long syscall5(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return number;
}
#define CALL(name, a, b, c) syscall5(SYS_##name, (long)(a), (long)(b), (long)(c), 0, 0)

static void say(const char *what, unsigned long value)
{
    char text[100];
    int len = 0;
    while (*what) text[len++] = *what++;
    text[len++] = ' ';
    for (int shift = 60; shift >= 0; shift -= 4) text[len++] = "0123456789abcdef"[value >> shift & 15];
    text[len++] = '\n';
    CALL(write, 1, text, len);
}

/* What the registers held at the start. */
unsigned long xmm[32];
unsigned mxcsr;
unsigned short x87[14];

__asm__(".globl _start\n"
        "_start:\n"
        ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
        "  movups %xmm\\n, xmm + 16 * \\n(%rip)\n"
        ".endr\n"
        "  stmxcsr mxcsr(%rip)\n"
        "  fnstenv x87(%rip)\n"
        "  mov %rsp, %rdi\n"
        "  and $-16, %rsp\n"
        "  call run\n"
        "  hlt\n");

static unsigned a, b, c, d;
static int has_avx, has_avx512, has_pkru;

static void find_features(void)
{
    __cpuid_count(1, 0, a, b, c, d);
    if (!(c & bit_OSXSAVE)) return;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    has_avx = (c & bit_AVX) && (low & 6) == 6;
    __cpuid_count(7, 0, a, b, c, d);
    has_avx512 = (b & bit_AVX512F) && (low & 0xe6) == 0xe6;
    has_pkru = !!(c & bit_OSPKE);
}

static unsigned rdpkru(void)
{
    unsigned value = 0, high;
    if (has_pkru) __asm__ volatile("rdpkru" : "=a"(value), "=d"(high) : "c"(0));
    return value;
}

/* A robust lock and the word to be cleared at a thread's end, as set_robust_list(2) and set_tid_address(2) want them. */
static struct { struct robust_list entry; unsigned word; } lock;
static struct robust_list_head head;
static unsigned cleared;
static char stack[STACK] __attribute__((aligned(16)));

static void first(char **argv, char **environment)
{
    CALL(umask, 0123, 0, 0);
    CALL(set_robust_list, &head, sizeof head, 0);
    CALL(set_tid_address, &cleared, 0, 0);
    unsigned pkru = rdpkru();
    if (has_pkru) __asm__ volatile("wrpkru" : : "a"(pkru | 0xc), "c"(0), "d"(0));
    char text[10] = {SECOND};
    for (int i = 0; i < 8; i++) text[1 + i] = 'a' + (pkru >> 4 * i & 15);
    char *const arguments[] = {argv[0], text, 0};
    unsigned control = 0x7f80;
    unsigned short x87_control = 0xc7f;
    if (has_avx512) __asm__ volatile("vpternlogd $255, %zmm31, %zmm31, %zmm31\n kxnorw %k1, %k1, %k1");
    if (has_avx) __asm__ volatile("vcmptrueps %ymm15, %ymm15, %ymm15\n vcmptrueps %ymm7, %ymm7, %ymm7");
    __asm__ volatile("ldmxcsr %1\n fldcw %2\n fld1\n"
                     ".irp n, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14\n pcmpeqd %%xmm\\n, %%xmm\\n\n .endr\n"
                     "syscall"
                     :
                     : "a"(SYS_execve), "m"(control), "m"(x87_control), "D"(argv[0]), "S"(arguments), "d"(environment)
                     : "memory");
    CALL(exit_group, 9, 0, 0);
}

/* The second thread: looks when the first has ended. */
__attribute__((used)) static void after(void)
{
    struct { long seconds, nanoseconds; } time = {0, 50000000};
    CALL(nanosleep, &time, 0, 0);
    say("word that a thread's end clears", cleared);
    say("lock that a thread's end frees", lock.word & FUTEX_OWNER_DIED);
    CALL(exit_group, 5, 0, 0);
}

static void second(const char *text)
{
    unsigned pkru = 0;
    unsigned long ones = 0, upper[2] = {0}, mask = 0;
    for (int i = 0; i < 8; i++) pkru |= (text[1 + i] - 'a') << 4 * i;
    for (int i = 0; i < 32; i++) ones |= xmm[i];
    say("XMM", ones);
    if (has_avx) {
        __asm__ volatile("vextractf128 $1, %%ymm7, %%xmm7\n vextractf128 $1, %%ymm15, %%xmm15\n"
                         "por %%xmm15, %%xmm7\n movups %%xmm7, %0" : "=m"(upper) : : "xmm7", "xmm15");
        say("YMM", upper[0] | upper[1]);
    }
    if (has_avx512) {
        __asm__ volatile("vextractf32x4 $3, %%zmm31, %%xmm0\n movups %%xmm0, %0\n kmovw %%k1, %k1"
                         : "=m"(upper), "=r"(mask) : : "xmm0");
        say("ZMM", upper[0] | upper[1]);
        say("mask", mask);
    }
    say("MXCSR", mxcsr);
    say("x87 control", x87[0]);
    say("x87 tags", x87[4]);
    say("PKRU differs", pkru ^ rdpkru());
    say("umask", CALL(umask, 0, 0, 0));
    cleared = 7;
    lock.entry.next = &head.list;
    head.list.next = &lock.entry;
    head.futex_offset = offsetof(__typeof__(lock), word);
    lock.word = CALL(gettid, 0, 0, 0);
    const long thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    void **top = (void **)(stack + STACK) - 2;
    *top = after;
    /* The thread returns to `after`. */
    register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0;
    long result = SYS_clone;
    __asm__ volatile("syscall\n test %%eax, %%eax\n jnz 1f\n ret\n1:"
                     : "+a"(result) : "D"(thread), "S"(top), "d"(0), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    CALL(exit, result < 0, 0, 0);
}

__attribute__((used)) void run(char **start)
{
    long count = *(long *)start;
    char **argv = start + 1;
    find_features();
    if (count > 1 && argv[1][0] == SECOND)
        second(argv[1]);
    else
        first(argv, argv + count + 1);
}
