/* Clocks: what the C library tells, by the vDSO (vdso(7)) if there is one, lies between what the system call tells before and
 * after, and none that is monotonic goes back. With one argument: how many of so many clock_gettime(2) are made, for --strace. */
#define _GNU_SOURCE
#include "check.h"
#include <dlfcn.h>
#include <elf.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static long long nanos(struct timespec t)
{
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long long by_call(clockid_t clock)
{
    struct timespec t = {0, 0};
    if (syscall(SYS_clock_gettime, clock, &t) != 0) return -1;
    return nanos(t);
}

static long long by_library(clockid_t clock)
{
    struct timespec t = {0, 0};
    if (clock_gettime(clock, &t) != 0) return -1;
    return nanos(t);
}

/* Coarse clocks are late by a tick; the processor's counter by its rate's error. */
#define SLACK 20000000LL

int main(int argc, char **argv)
{
    if (argc == 2) {
        for (int i = atoi(argv[1]); i > 0; i--) by_library(CLOCK_MONOTONIC);
        return 0;
    }
    static const clockid_t clocks[] = {CLOCK_REALTIME,        CLOCK_MONOTONIC,       CLOCK_MONOTONIC_RAW,
                                       CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME,
                                       CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID};
    for (unsigned i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        for (int n = 0; n < 200; n++) {
            long long before = by_call(clocks[i]), now = by_library(clocks[i]), after = by_call(clocks[i]);
            if (before <= now + SLACK && now <= after + SLACK && before >= 0) continue;
            printf("clock %d: %lld, %lld, %lld\n", clocks[i], before, now, after);
            return 1;
        }
    }
    static const clockid_t monotonic[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME};
    for (unsigned i = 0; i < sizeof monotonic / sizeof *monotonic; i++) {
        long long last = 0;
        for (int n = 0; n < 20000; n++) {
            /* A call now and then, at which the host may set the page anew. */
            if (n % 100 == 0) getppid();
            long long now = by_library(monotonic[i]);
            CHECK(last <= now);
            last = now;
        }
    }
    struct timeval tv = {0, 0};
    long long before = by_call(CLOCK_REALTIME);
    CALL(gettimeofday(&tv, 0));
    time_t second = time(0), stored = 0;
    CHECK(time(&stored) - second <= 1 && stored - second <= 1);
    long long after = by_call(CLOCK_REALTIME);
    long long told = tv.tv_sec * 1000000000LL + tv.tv_usec * 1000LL;
    CHECK(before - SLACK <= told && told <= after + SLACK && tv.tv_usec < 1000000);
    CHECK(second >= before / 1000000000 - 1 && second <= after / 1000000000 + 1);
    struct timezone zone = {1, 1};
    CALL(syscall(SYS_gettimeofday, &tv, &zone));
    CHECK(zone.tz_minuteswest == 0 && zone.tz_dsttime == 0);
    struct timespec spec;
    CALL(clock_gettime(99, &spec));
    CALL(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, (void *)8));
    CALL(clock_getres(CLOCK_MONOTONIC, &spec));
    CHECK(sched_getcpu() >= 0);
    /* It is where the auxiliary vector and the map say. */
    unsigned long vdso = getauxval(AT_SYSINFO_EHDR);
    if (vdso) {
        CHECK(memcmp((void *)vdso, ELFMAG, SELFMAG) == 0);
        char line[256];
        int found = 0;
        FILE *maps = fopen("/proc/self/maps", "r");
        while (maps && fgets(line, sizeof line, maps))
            found += strstr(line, "[vdso]") && strtoul(line, 0, 16) == vdso;
        CHECK(found == 1);
    }
    return failed_;
}
