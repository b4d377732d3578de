/* Signals by their calls: rt_sigaction(2) and its relatives, kill(2) and its. */
#define _GNU_SOURCE
#include "raw.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <ucontext.h>

/* The kernel's. */
struct action {
    void *handler;
    unsigned long flags;
    void *restorer;
    unsigned long mask;
};

static volatile int last, code, value;
static void note(int signal, siginfo_t *info, void *context)
{
    (void)context;
    last = signal;
    code = info->si_code;
    value = info->si_value.sival_int;
}

static unsigned long bit(int signal) { return 1ul << (signal - 1); }

static void *sends(void *tid)
{
    struct timespec t = {0, 20000000};
    nanosleep(&t, 0);
    syscall(SYS_tgkill, getpid(), *(int *)tid, SIGUSR1);
    return 0;
}

int main(void)
{
    struct action old, ignore = {.handler = SIG_IGN};
    RAW(rt_sigaction, SIGUSR1, 0, &old, 8);
    printf("    %p %lx\n", old.handler, old.flags);
    RAW(rt_sigaction, SIGUSR1, &ignore, 0, 8);
    RAW(rt_sigaction, SIGUSR1, 0, &old, 8);
    printf("    %p\n", old.handler);
    RAW(rt_sigaction, SIGKILL, &ignore, 0, 8);
    RAW(rt_sigaction, SIGSTOP, &ignore, 0, 8);
    RAW(rt_sigaction, SIGKILL, 0, &old, 8);
    RAW(rt_sigaction, 0, 0, &old, 8);
    RAW(rt_sigaction, 65, 0, &old, 8);
    RAW(rt_sigaction, SIGUSR1, 0, &old, 4);
    RAW(rt_sigaction, SIGUSR1, BAD, 0, 8);
    RAW(rt_sigaction, SIGUSR1, 0, BAD, 8);
    struct sigaction handler = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &handler, 0);
    sigaction(SIGUSR2, &handler, 0);
    sigaction(SIGRTMIN, &handler, 0);
    unsigned long set = bit(SIGUSR1) | bit(SIGRTMIN), got, none = 0;
    RAW(rt_sigprocmask, SIG_BLOCK, &set, &got, 8);
    RAW(rt_sigprocmask, SIG_SETMASK, 0, &got, 8);
    CHECK(got == set);
    RAW(rt_sigprocmask, 9, &set, 0, 8);
    RAW(rt_sigprocmask, 9, 0, 0, 8);
    RAW(rt_sigprocmask, SIG_BLOCK, &set, 0, 4);
    RAW(rt_sigprocmask, SIG_BLOCK, BAD, 0, 8);
    RAW(rt_sigprocmask, SIG_BLOCK, 0, BAD, 8);
    int pid = getpid(), tid = syscall(SYS_gettid);
    RAW(kill, pid, 0);
    RAW(kill, pid, 65);
    RAW(kill, pid, -1);
    RAW(kill, 0x7ffffff0, 0);
    RAW(tkill, tid, 0);
    RAW(tkill, -1, 0);
    RAW(tkill, 0, 0);
    RAW(tkill, 0x7ffffff0, SIGUSR1);
    RAW(tgkill, pid, tid, 0);
    RAW(tgkill, pid, -1, 0);
    RAW(tgkill, -1, tid, 0);
    RAW(tgkill, 0x7ffffff0, tid, 0);
    RAW(tgkill, pid, tid, 65);
    /* What waits. */
    RAW(tkill, tid, SIGUSR1);
    RAW(kill, pid, SIGUSR1);
    RAW(rt_sigpending, &got, 8);
    CHECK(got == bit(SIGUSR1));
    RAW(rt_sigpending, &got, 16);
    RAW(rt_sigpending, BAD, 8);
    siginfo_t info = {0};
    info.si_code = SI_QUEUE;
    info.si_value.sival_int = 5;
    RAW(rt_sigqueueinfo, pid, SIGRTMIN, &info);
    info.si_value.sival_int = 6;
    RAW(rt_tgsigqueueinfo, pid, tid, SIGRTMIN, &info);
    RAW(rt_sigqueueinfo, pid, SIGRTMIN, BAD);
    RAW(rt_sigqueueinfo, 0x7ffffff0, SIGRTMIN, &info);
    RAW(rt_sigqueueinfo, pid, 65, &info);
    RAW(rt_tgsigqueueinfo, pid, 0x7ffffff0, SIGRTMIN, &info);
    RAW(rt_tgsigqueueinfo, -1, tid, SIGRTMIN, &info);
    struct timespec zero = {0, 0}, wrong = {0, -1}, tiny = {0, 1000000};
    RAW(rt_sigtimedwait, &set, &info, &zero, 8);
    printf("    %d %d\n", info.si_signo, info.si_code);
    RAW(rt_sigtimedwait, &set, &info, 0, 8);
    printf("    %d %d %d\n", info.si_signo, info.si_code, info.si_value.sival_int);
    RAW(rt_sigtimedwait, &set, 0, 0, 8);
    RAW(rt_sigtimedwait, &set, 0, &zero, 8);
    RAW(rt_sigtimedwait, &set, 0, &tiny, 8);
    RAW(rt_sigtimedwait, &set, 0, &wrong, 8);
    RAW(rt_sigtimedwait, &set, 0, &zero, 4);
    RAW(rt_sigtimedwait, BAD, 0, &zero, 8);
    RAW(rt_sigtimedwait, &set, 0, BAD, 8);
    RAW(tkill, tid, SIGUSR1);
    RAW(rt_sigtimedwait, &set, BAD, &zero, 8);
    /* A mask for a while. */
    RAW(tkill, tid, SIGUSR1);
    RAW(rt_sigsuspend, &none, 8);
    printf("    %d %d\n", last, code);
    RAW(rt_sigsuspend, &none, 4);
    RAW(rt_sigsuspend, BAD, 8);
    RAW(rt_sigprocmask, SIG_SETMASK, 0, &got, 8);
    CHECK(got == set);
    RAW(rt_sigprocmask, SIG_SETMASK, &none, 0, 8);
    last = 0;
    RAW(tgkill, pid, tid, SIGUSR2);
    printf("    %d %d\n", last, code);
    RAW(kill, 0, 0);
    pthread_t thread;
    pthread_create(&thread, 0, sends, &tid);
    RAW(pause);
    printf("    %d %d\n", last, code);
    pthread_join(thread, 0);
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536}, was, small = {.ss_sp = &stack, .ss_size = 100}, odd = {.ss_flags = 77};
    RAW(sigaltstack, &stack, &was);
    printf("    %d\n", was.ss_flags);
    RAW(sigaltstack, 0, &was);
    CHECK(was.ss_sp == stack.ss_sp && was.ss_size == 65536 && was.ss_flags == 0);
    RAW(sigaltstack, &small, 0);
    RAW(sigaltstack, &odd, 0);
    RAW(sigaltstack, BAD, 0);
    RAW(sigaltstack, 0, BAD);
    stack.ss_flags = SS_DISABLE;
    RAW(sigaltstack, &stack, 0);
    return done();
}
