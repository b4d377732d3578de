/* Clocks, sleeps and the timers of a process. */
#define _GNU_SOURCE
#include "raw.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>
#include <time.h>

static volatile int rung;
static void ring(int signal) { rung = signal; }

int main(void)
{
    struct timespec t, later, tiny = {0, 1000}, wrong = {0, 1000000000}, negative = {-1, 0}, left;
    struct timeval tv;
    for (int clock = 0; clock < 12; clock++) {
        if (clock == 10) continue; /* CLOCK_SGI_CYCLE */
        printf("clock %d\n", clock);
        if (clock == 8 || clock == 9) continue; /* alarms: by privilege */
        RAW(clock_gettime, clock, &t);
        CHECK(t.tv_nsec >= 0 && t.tv_nsec < 1000000000);
        CHECK(syscall(SYS_clock_gettime, clock, &later) == 0);
        CHECK(later.tv_sec > t.tv_sec || (later.tv_sec == t.tv_sec && later.tv_nsec >= t.tv_nsec));
        CHECK(syscall(SYS_clock_getres, clock, &t) == 0 && t.tv_sec == 0 && t.tv_nsec > 0);
    }
    RAW(clock_gettime, 99, &t);
    RAW(clock_gettime, 0, BAD);
    RAW(clock_getres, 99, &t);
    RAW(clock_getres, 0, 0);
    RAW(clock_getres, 0, BAD);
    RAW(gettimeofday, &tv, 0);
    RAW(gettimeofday, BAD, 0);
    long now = syscall(SYS_time, 0);
    CHECK(now > 1700000000 && now - tv.tv_sec < 100);
    RAW(time, BAD);
    struct tms used;
    CHECK(syscall(SYS_times, &used) > 0 && used.tms_cutime == 0);
    RAW(times, BAD);
    RAW(nanosleep, &tiny, 0);
    RAW(nanosleep, &wrong, 0);
    RAW(nanosleep, &negative, 0);
    RAW(nanosleep, BAD, 0);
    RAW(clock_nanosleep, CLOCK_MONOTONIC, 0, &tiny, 0);
    RAW(clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &tiny, 0);
    RAW(clock_nanosleep, CLOCK_MONOTONIC, 0, &wrong, 0);
    RAW(clock_nanosleep, CLOCK_MONOTONIC, 0, BAD, 0);
    RAW(clock_nanosleep, 99, 0, &tiny, 0);
    RAW(clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &tiny, 0);
    /* What a process uses is less than what goes by. */
    struct timespec before, after, long_sleep = {0, 200000000};
    for (int clock = CLOCK_PROCESS_CPUTIME_ID; clock <= CLOCK_THREAD_CPUTIME_ID; clock++) {
        clock_gettime(clock, &before);
        nanosleep(&long_sleep, 0);
        clock_gettime(clock, &after);
        CHECK((after.tv_sec - before.tv_sec) * 1000000000l + after.tv_nsec - before.tv_nsec < 150000000);
    }
    struct rusage usage;
    for (int who = -1; who < 3; who++) RAW(getrusage, who, &usage);
    RAW(getrusage, RUSAGE_SELF, BAD);
    RAW(getrusage, RUSAGE_SELF, &usage);

    /* Timers. */
    struct sigaction action = {.sa_handler = ring};
    sigaction(SIGALRM, &action, 0);
    sigaction(SIGVTALRM, &action, 0);
    sigaction(SIGPROF, &action, 0);
    struct itimerval timer = {{0, 0}, {100, 0}}, got, soon = {{0, 0}, {0, 20000}}, odd = {{0, 0}, {0, 1000000}}, off = {{0, 0}, {0, 0}};
    for (int which = 0; which < 3; which++) {
        printf("timer %d\n", which);
        RAW(getitimer, which, &got);
        printf("    %ld %ld\n", (long)got.it_value.tv_sec, (long)got.it_value.tv_usec);
        RAW(setitimer, which, &timer, &got);
        RAW(getitimer, which, &got);
        CHECK(got.it_value.tv_sec == 99 || got.it_value.tv_sec == 100);
        CHECK(got.it_interval.tv_sec == 0);
        rung = 0;
        RAW(setitimer, which, &soon, 0);
        while (!rung) {}
        printf("    %d\n", rung);
        RAW(setitimer, which, &off, 0);
    }
    RAW(setitimer, 9, &timer, 0);
    RAW(getitimer, 9, &got);
    RAW(setitimer, 0, &odd, 0);
    RAW(setitimer, 0, BAD, 0);
    RAW(getitimer, 0, BAD);
    RAW(alarm, 100);
    RAW(alarm, 0);
    RAW(alarm, 0);
    /* A signal ends a sleep. */
    rung = 0;
    setitimer(ITIMER_REAL, &soon, 0);
    struct timespec second = {10, 0};
    RAW(nanosleep, &second, &left);
    CHECK(rung == SIGALRM && left.tv_sec == 9);
    setitimer(ITIMER_REAL, &soon, 0);
    RAW(clock_nanosleep, CLOCK_MONOTONIC, 0, &second, &left);
    CHECK(left.tv_sec == 9);
    return done();
}
