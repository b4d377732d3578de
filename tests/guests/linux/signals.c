/* Signals: their delivery, masks, stacks, interrupted calls, faults, timers. */
#define _GNU_SOURCE
#include "check.h"
#include <fenv.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

static volatile sig_atomic_t seen[65], order[64], count;
static volatile siginfo_t last;
static sigset_t mask_inside;

static void note(int signal, siginfo_t *info, void *context)
{
    (void)context;
    seen[signal]++;
    if (count < 64) order[count++] = signal;
    last = *info;
    sigprocmask(SIG_BLOCK, NULL, &mask_inside);
}

static void on(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO | flags};
    action.sa_sigaction = handler;
    sigemptyset(&action.sa_mask);
    CHECK(sigaction(signal, &action, NULL) == 0);
}

static sigset_t set_of(int signal)
{
    sigset_t set;
    sigemptyset(&set);
    if (signal) sigaddset(&set, signal);
    return set;
}

static void delivery(void)
{
    on(SIGUSR1, note, 0);
    raise(SIGUSR1);
    CHECK(seen[SIGUSR1] == 1);
    CHECK(last.si_signo == SIGUSR1 && last.si_code == SI_TKILL);
    CHECK(last.si_pid == getpid());
    CHECK(sigismember(&mask_inside, SIGUSR1) == 1);
    CHECK(sigismember(&mask_inside, SIGUSR2) == 0);
    kill(getpid(), SIGUSR1);
    CHECK(seen[SIGUSR1] == 2 && last.si_code == SI_USER);

    /* Blocked, it waits, once; unblocked, it comes before the call returns. */
    sigset_t set = set_of(SIGUSR1), pending;
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    raise(SIGUSR1);
    CHECK(seen[SIGUSR1] == 2);
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGUSR1) == 1);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    CHECK(seen[SIGUSR1] == 3);
    sigprocmask(SIG_BLOCK, NULL, &set);
    CHECK(sigismember(&set, SIGUSR1) == 0);

    /* What is ignored is gone, also when it was pending. */
    set = set_of(SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR2);
    signal(SIGUSR2, SIG_IGN);
    on(SIGUSR2, note, 0);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    CHECK(seen[SIGUSR2] == 0);
    signal(SIGUSR2, SIG_IGN);
    raise(SIGUSR2);
    raise(SIGCHLD);
    raise(SIGWINCH);

    on(SIGUSR2, note, SA_RESETHAND);
    raise(SIGUSR2);
    CHECK(seen[SIGUSR2] == 1);
    struct sigaction now;
    sigaction(SIGUSR2, NULL, &now);
    CHECK(now.sa_handler == SIG_DFL);

    CALL(kill(getpid(), 0));
    CALL(kill(getpid(), 65));
    CALL(syscall(SYS_tgkill, getpid(), 99999, SIGUSR1));
    CALL(syscall(SYS_rt_sigprocmask, 7, &set, NULL, 8));
    CALL(syscall(SYS_rt_sigaction, SIGKILL, &now, NULL, 8));
}

static void nested(int signal, siginfo_t *info, void *context)
{
    note(signal, info, context);
    if (seen[signal] < 4) raise(signal);
}

static void queues(void)
{
    int first = SIGRTMIN + 2, second = SIGRTMIN + 1;
    sigset_t set = set_of(first), before;
    sigaddset(&set, second);
    on(first, note, 0);
    on(second, note, 0);
    sigprocmask(SIG_BLOCK, &set, &before);
    count = 0;
    for (int i = 0; i < 3; i++) {
        CHECK(sigqueue(getpid(), first, (union sigval){.sival_int = 10 + i}) == 0);
        CHECK(sigqueue(getpid(), second, (union sigval){.sival_int = 20 + i}) == 0);
    }
    siginfo_t info;
    struct timespec none = {0, 0};
    CHECK(sigtimedwait(&set, &info, &none) == second);
    CHECK(info.si_code == SI_QUEUE && info.si_value.sival_int == 20);
    sigprocmask(SIG_SETMASK, &before, NULL);
    CHECK(count == 5);
    /* All are entered at once, the later one's handler on top of the earlier one's. */
    for (int i = 0; i < 5; i++) printf("%d ", order[i] - SIGRTMIN);
    printf("\n");
    sigprocmask(SIG_BLOCK, &set, NULL);
    CALL(sigtimedwait(&set, &info, &none));
    struct timespec soon = {0, 20000000};
    CALL(sigtimedwait(&set, &info, &soon));
    sigprocmask(SIG_SETMASK, &before, NULL);

    int third = SIGRTMIN + 3;
    on(third, nested, SA_NODEFER);
    raise(third);
    CHECK(seen[third] == 4);
}

static pthread_t first_thread;
static volatile int go;

static void *sends(void *argument)
{
    while (!go) sched_yield();
    struct timespec time = {0, 30000000};
    nanosleep(&time, NULL);
    pthread_kill(first_thread, (int)(long)argument);
    return NULL;
}

static int pipe_ends[2];

static void *sends_then_writes(void *argument)
{
    sends(argument);
    struct timespec time = {0, 30000000};
    nanosleep(&time, NULL);
    CHECK(write(pipe_ends[1], "x", 1) == 1);
    return NULL;
}

static void interrupted(void)
{
    first_thread = pthread_self();
    pthread_t thread;
    char byte;
    CHECK(pipe(pipe_ends) == 0);

    on(SIGUSR1, note, 0);
    go = 0;
    pthread_create(&thread, NULL, sends, (void *)SIGUSR1);
    go = 1;
    CALL(read(pipe_ends[0], &byte, 1));
    pthread_join(thread, NULL);

    on(SIGUSR1, note, SA_RESTART);
    go = 0;
    pthread_create(&thread, NULL, sends_then_writes, (void *)SIGUSR1);
    go = 1;
    CALL(read(pipe_ends[0], &byte, 1));
    pthread_join(thread, NULL);

    /* Never made again. */
    go = 0;
    pthread_create(&thread, NULL, sends, (void *)SIGUSR1);
    go = 1;
    struct pollfd poll_on = {pipe_ends[0], POLLIN, 0};
    CALL(poll(&poll_on, 1, 10000));
    pthread_join(thread, NULL);

    go = 0;
    pthread_create(&thread, NULL, sends, (void *)SIGUSR1);
    go = 1;
    struct timespec time = {100, 0}, rest = {0, 0};
    CALL(nanosleep(&time, &rest));
    CHECK(rest.tv_sec == 99);
    pthread_join(thread, NULL);

    go = 0;
    pthread_create(&thread, NULL, sends, (void *)SIGUSR1);
    go = 1;
    CALL(pause());
    pthread_join(thread, NULL);

    /* What is ignored interrupts nothing. */
    signal(SIGUSR2, SIG_IGN);
    go = 0;
    pthread_create(&thread, NULL, sends_then_writes, (void *)SIGUSR2);
    go = 1;
    CALL(poll(&poll_on, 1, 10000));
    pthread_join(thread, NULL);
    CALL(read(pipe_ends[0], &byte, 1));

    /* A mask for the time of the call. */
    sigset_t set = set_of(SIGUSR1), empty = set_of(0), now;
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    int before = seen[SIGUSR1];
    CALL(sigsuspend(&empty));
    CHECK(seen[SIGUSR1] == before + 1);
    sigprocmask(SIG_BLOCK, NULL, &now);
    CHECK(sigismember(&now, SIGUSR1) == 1);
    raise(SIGUSR1);
    CALL(ppoll(&poll_on, 1, NULL, &empty));
    CHECK(seen[SIGUSR1] == before + 2);
    struct timespec none = {0, 0};
    CALL(ppoll(&poll_on, 1, &none, &empty));
    sigprocmask(SIG_BLOCK, NULL, &now);
    CHECK(sigismember(&now, SIGUSR1) == 1);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static char alternate[64 << 10];
static volatile int was_inside;

static void looks_at_stack(int signal, siginfo_t *info, void *context)
{
    note(signal, info, context);
    char here;
    was_inside = &here >= alternate && &here < alternate + sizeof(alternate);
    stack_t stack;
    sigaltstack(NULL, &stack);
    CHECK(stack.ss_flags == (was_inside ? SS_ONSTACK : 0));
    ucontext_t *of = context;
    CHECK(of->uc_stack.ss_sp == alternate && of->uc_stack.ss_size == sizeof(alternate));
    if (was_inside) CALL(sigaltstack(&stack, NULL));
}

static void stacks(void)
{
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof(alternate)}, old;
    CALL(sigaltstack(&stack, &old));
    CHECK(old.ss_flags == SS_DISABLE);
    on(SIGUSR1, looks_at_stack, SA_ONSTACK);
    raise(SIGUSR1);
    CHECK(was_inside);
    on(SIGUSR1, looks_at_stack, 0);
    raise(SIGUSR1);
    CHECK(!was_inside);
}

static sigjmp_buf back;
static volatile int code;
static void *volatile address;

static void jumps(int signal, siginfo_t *info, void *context)
{
    note(signal, info, context);
    code = info->si_code;
    address = info->si_addr;
    siglongjmp(back, 1);
}

static void skips(int signal, siginfo_t *info, void *context)
{
    note(signal, info, context);
    code = info->si_code;
    ucontext_t *of = context;
    of->uc_mcontext.gregs[REG_RIP] += 2;
    of->uc_mcontext.gregs[REG_RBX] = 4711;
}

static void faults(void)
{
    on(SIGSEGV, jumps, SA_ONSTACK);
    on(SIGBUS, jumps, 0);
    on(SIGFPE, jumps, 0);
    on(SIGTRAP, note, 0);
    if (sigsetjmp(back, 1) == 0) *(volatile int *)0x1234 = 1;
    printf("segv %d at %p\n", code, address);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (sigsetjmp(back, 1) == 0) page[5] = 1;
    CHECK(address == page + 5);
    printf("segv %d\n", code);
    if (sigsetjmp(back, 1) == 0) *(volatile int *)0x8000000000000000 = 1;
    printf("segv %d at %p\n", code, address);
    if (sigsetjmp(back, 1) == 0) {
        int by = 0;
        __asm__ volatile("mov $1, %%eax; cltd; idivl %0" : "+r"(by) : : "eax", "edx");
    }
    printf("fpe %d\n", code);
    on(SIGILL, skips, 0);
    long rbx = 0;
    __asm__ volatile("ud2; mov %%rbx, %0" : "=r"(rbx) : : "rbx");
    CHECK(rbx == 4711);
    printf("ill %d\n", code);
    __asm__ volatile("int3");
    CHECK(seen[SIGTRAP] == 1);
    signal(SIGTRAP, SIG_DFL);
}

static void spoils(int signal, siginfo_t *info, void *context)
{
    note(signal, info, context);
    CHECK(fegetround() == FE_TONEAREST);
    fesetround(FE_UPWARD);
    volatile double x = 3;
    for (int i = 0; i < 100; i++) x = sqrt(x * i + 1);
    __asm__ volatile("pxor %%xmm0,%%xmm0; pxor %%xmm5,%%xmm5; pcmpeqd %%xmm15,%%xmm15" ::: "xmm0", "xmm5", "xmm15");
}

static void vectors(void)
{
    on(SIGUSR1, spoils, 0);
    fesetround(FE_DOWNWARD);
    long before = 0x123456789abcdef, after = 0, result;
    __asm__ volatile(
        "movq %[before], %%xmm5\n"
        "mov %[kill], %%eax\n"
        "syscall\n"
        "movq %%xmm5, %[after]\n"
        : [after] "=r"(after), "=a"(result)
        : [before] "r"(before), [kill] "i"(SYS_kill), "D"(getpid()), "S"(SIGUSR1)
        : "rcx", "r11", "memory", "xmm5");
    CHECK(result == 0);
    CHECK(before == after);
    CHECK(fegetround() == FE_DOWNWARD);
    fesetround(FE_TONEAREST);
}

static void timers(void)
{
    on(SIGALRM, note, 0);
    struct itimerval every = {{0, 10000}, {0, 20000}}, off = {{0, 0}, {0, 0}}, old;
    CALL(setitimer(ITIMER_REAL, &every, NULL));
    /* Comes to one that only computes. */
    while (seen[SIGALRM] < 3) {}
    CALL(setitimer(ITIMER_REAL, &off, &old));
    CHECK(old.it_interval.tv_usec == 10000);
    CALL(alarm(100));
    CALL(alarm(0));
    seen[SIGALRM] = 0;
    every.it_interval.tv_usec = 0;
    setitimer(ITIMER_REAL, &every, NULL);
    CALL(pause());
    CHECK(seen[SIGALRM] == 1);
    getitimer(ITIMER_REAL, &old);
    CHECK(old.it_value.tv_sec == 0 && old.it_value.tv_usec == 0);
}

static void *takes(void *argument)
{
    sigset_t set = set_of(SIGUSR2);
    int signal = 0;
    CHECK(sigwait(&set, &signal) == 0);
    CHECK(signal == SIGUSR2);
    return argument;
}

static void broken_pipe(void)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    close(ends[0]);
    on(SIGPIPE, note, 0);
    CALL(write(ends[1], "x", 1));
    CHECK(seen[SIGPIPE] == 1);
    signal(SIGPIPE, SIG_IGN);
    CALL(write(ends[1], "x", 1));
    close(ends[1]);
}

int main(void)
{
    delivery();
    queues();
    interrupted();
    stacks();
    faults();
    vectors();
    timers();
    broken_pipe();
    /* A thread takes what is sent to the process. */
    sigset_t set = set_of(SIGUSR2);
    on(SIGUSR2, note, 0);
    seen[SIGUSR2] = 0;
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_t thread;
    pthread_create(&thread, NULL, takes, NULL);
    struct timespec time = {0, 10000000};
    nanosleep(&time, NULL);
    kill(getpid(), SIGUSR2);
    pthread_join(thread, NULL);
    CHECK(seen[SIGUSR2] == 0);
    return done();
}
