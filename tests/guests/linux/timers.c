/* timer_create(2) and its relatives. */
#define _GNU_SOURCE
#include "raw.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static volatile int count, value, code, overrun;
static volatile pid_t who;

static void handler(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    count++;
    value = info->si_value.sival_int;
    code = info->si_code;
    overrun = info->si_overrun;
    who = syscall(SYS_gettid);
}

static void *waits(void *tid)
{
    *(pid_t *)tid = syscall(SYS_gettid);
    while (!count) {}
    return 0;
}

static volatile int turns;
static void *counts(void *unused)
{
    while (turns < 3) {
        turns++;
        usleep(1000);
    }
    return unused;
}

static void nothing(int signal) { (void)signal; }

/* A task with a timer that goes off all the time, and that makes call after call, leaves others their turns. */
static void shares(void)
{
    struct itimerval fast = {{0, 500}, {0, 500}}, off = {{0, 0}, {0, 0}};
    signal(SIGALRM, nothing);
    setitimer(ITIMER_REAL, &fast, 0);
    pthread_t thread;
    pthread_create(&thread, 0, counts, 0);
    while (turns < 3) syscall(SYS_getppid);
    setitimer(ITIMER_REAL, &off, 0);
    pthread_join(thread, 0);
    printf("%d turns\n", turns);
}

static void arm(int timer, long seconds, long nanos, long every)
{
    struct itimerspec spec = {{0, every}, {seconds, nanos}};
    CHECK(syscall(SYS_timer_settime, timer, 0, &spec, 0) == 0);
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGALRM, &action, 0);
    sigaction(SIGRTMIN, &action, 0);
    int timer = 99;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 42};
    RAW(timer_create, CLOCK_MONOTONIC, &event, &timer);
    struct itimerspec spec = {0}, past = {{0, 0}, {1, 0}}, wrong = {{0, 0}, {0, 1000000000}};
    RAW(timer_gettime, timer, &spec);
    printf("    %ld %ld\n", (long)spec.it_value.tv_sec, spec.it_value.tv_nsec);
    arm(timer, 100, 0, 5);
    RAW(timer_gettime, timer, &spec);
    CHECK(spec.it_value.tv_sec >= 98 && spec.it_value.tv_sec <= 100 && spec.it_interval.tv_nsec == 5);
    struct itimerspec off = {0};
    RAW(timer_settime, timer, 0, &off, &spec);
    CHECK(spec.it_value.tv_sec >= 98 && spec.it_interval.tv_nsec == 5);
    RAW(timer_gettime, timer, &spec);
    printf("    %ld %ld\n", (long)spec.it_value.tv_sec, spec.it_value.tv_nsec);
    arm(timer, 0, 1000000, 0);
    while (!count) {}
    printf("    %d times, value %d, code %d, overrun %d\n", count, value, code, overrun);
    RAW(timer_settime, timer, TIMER_ABSTIME, &past, 0);
    while (count < 2) {}
    RAW(timer_getoverrun, timer);
    /* Blocked meanwhile, it counts. */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    count = 0;
    arm(timer, 0, 1000000, 1000000);
    struct timespec sleep = {0, 50000000};
    nanosleep(&sleep, 0);
    siginfo_t info;
    CALL(sigtimedwait(&set, &info, &(struct timespec){0}) == SIGUSR1);
    CHECK(info.si_code == SI_TIMER && info.si_value.sival_int == 42 && info.si_overrun > 10);
    RAW(timer_settime, timer, 0, &off, 0);
    sigprocmask(SIG_UNBLOCK, &set, 0);
    RAW(timer_delete, timer);
    RAW(timer_delete, timer);
    RAW(timer_gettime, timer, &spec);
    RAW(timer_settime, timer, 0, &past, 0);
    RAW(timer_getoverrun, timer);
    /* Without an event it is SIGALRM, with its number for a value. */
    count = 0;
    CHECK(syscall(SYS_timer_create, CLOCK_REALTIME, 0, &timer) == 0);
    arm(timer, 0, 1000000, 0);
    while (!count) {}
    CHECK(value == timer);
    printf("    code %d\n", code);
    RAW(timer_delete, timer);
    /* For one thread. */
    count = 0;
    pid_t tid = 0;
    pthread_t thread;
    pthread_create(&thread, 0, waits, &tid);
    while (!*(volatile pid_t *)&tid) {}
    struct sigevent directed = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN};
    directed._sigev_un._tid = tid;
    CHECK(syscall(SYS_timer_create, CLOCK_MONOTONIC, &directed, &timer) == 0);
    arm(timer, 0, 1000000, 0);
    pthread_join(thread, 0);
    CHECK(who == tid);
    RAW(timer_delete, timer);
    /* Of the processor's time. */
    for (int clock = CLOCK_PROCESS_CPUTIME_ID; clock <= CLOCK_THREAD_CPUTIME_ID; clock++) {
        count = 0;
        CHECK(syscall(SYS_timer_create, clock, &event, &timer) == 0);
        arm(timer, 0, 20000000, 0);
        while (!count) {}
        printf("    %d times, code %d\n", count, code);
        RAW(timer_delete, timer);
    }
    /* Nothing happens. */
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    CHECK(syscall(SYS_timer_create, CLOCK_BOOTTIME, &none, &timer) == 0);
    arm(timer, 0, 1000, 0);
    nanosleep(&(struct timespec){0, 5000000}, 0);
    RAW(timer_gettime, timer, &spec);
    printf("    %ld %ld\n", (long)spec.it_value.tv_sec, spec.it_value.tv_nsec);
    /* What is wrong. */
    RAW(timer_settime, timer, 0, &wrong, 0);
    RAW(timer_settime, timer, 0, 0, 0);
    RAW(timer_settime, timer, 0, BAD, 0);
    RAW(timer_gettime, timer, BAD);
    RAW(timer_create, 99, &event, &timer);
    RAW(timer_create, CLOCK_MONOTONIC, BAD, &timer);
    RAW(timer_create, CLOCK_MONOTONIC, &event, BAD);
    event.sigev_signo = 99;
    RAW(timer_create, CLOCK_MONOTONIC, &event, &timer);
    event.sigev_signo = 0;
    RAW(timer_create, CLOCK_MONOTONIC, &event, &timer);
    event.sigev_notify = 77;
    RAW(timer_create, CLOCK_MONOTONIC, &event, &timer);
    directed._sigev_un._tid = 0x7ffffff0;
    RAW(timer_create, CLOCK_MONOTONIC, &directed, &timer);
    RAW(timer_gettime, -1, &spec);
    shares();
    return done();
}
