/* How tasks are scheduled: sched(7), nice values, affinity. Privileges are given up first, where there are any. */
#define _GNU_SOURCE
#include "raw.h"
#include <sched.h>
#include <sys/resource.h>
#include <time.h>

struct attributes {
    unsigned size, policy;
    unsigned long flags;
    int nice;
    unsigned priority;
    unsigned long runtime, deadline, period;
};

int main(void)
{
    syscall(SYS_setpriority, PRIO_PROCESS, 0, 0); /* whatever nice(1) it was started by */
    syscall(SYS_setresuid, 65534, 65534, 65534);
    struct sched_param none = {0}, one = {1}, got = {9};
    RAW(sched_getscheduler, 0);
    RAW(sched_getscheduler, -1);
    RAW(sched_getscheduler, 0x7ffffff0);
    RAW(sched_setscheduler, 0, SCHED_BATCH, &none);
    RAW(sched_getscheduler, 0);
    RAW(sched_setscheduler, 0, SCHED_BATCH, &one);
    RAW(sched_setscheduler, 0, SCHED_FIFO, &one);
    RAW(sched_setscheduler, 0, SCHED_FIFO, &none);
    RAW(sched_setscheduler, 0, 77, &none);
    RAW(sched_setscheduler, 0, -1, &none);
    RAW(sched_setscheduler, 0, SCHED_OTHER, 0);
    RAW(sched_setscheduler, 0, SCHED_OTHER, BAD);
    RAW(sched_setscheduler, -1, SCHED_OTHER, &none);
    RAW(sched_setscheduler, 0x7ffffff0, SCHED_OTHER, &none);
    RAW(sched_setscheduler, 0, SCHED_OTHER | SCHED_RESET_ON_FORK, &none);
    RAW(sched_getscheduler, 0);
    RAW(sched_getparam, 0, &got);
    printf("    %d\n", got.sched_priority);
    RAW(sched_getparam, 0, 0);
    RAW(sched_getparam, 0, BAD);
    RAW(sched_getparam, -1, &got);
    RAW(sched_getparam, 0x7ffffff0, &got);
    RAW(sched_setparam, 0, &none);
    RAW(sched_setparam, 0, &one);
    RAW(sched_setparam, 0, 0);
    RAW(sched_setparam, 0, BAD);
    for (int policy = -1; policy < 7; policy++) {
        printf("policy %d\n", policy);
        RAW(sched_get_priority_min, policy);
        RAW(sched_get_priority_max, policy);
    }
    struct timespec turn = {7, 7};
    RAW(sched_rr_get_interval, 0, &turn);
    CHECK(turn.tv_sec == 0 && turn.tv_nsec < 1000000000);
    RAW(sched_rr_get_interval, 0, BAD);
    RAW(sched_rr_get_interval, -1, &turn);
    RAW(sched_rr_get_interval, 0x7ffffff0, &turn);
    RAW(sched_yield);
    struct attributes a = {0};
    RAW(sched_getattr, 0, &a, sizeof a, 0);
    printf("    %u %u %lu %d %u\n", a.size, a.policy, a.flags, a.nice, a.priority);
    a = (struct attributes){.size = sizeof a, .policy = SCHED_IDLE, .nice = 3};
    RAW(sched_setattr, 0, &a, 0);
    RAW(sched_getscheduler, 0);
    RAW(sched_getattr, 0, &a, 47, 0);
    RAW(sched_getattr, 0, &a, sizeof a, 1);
    RAW(sched_getattr, 0, 0, sizeof a, 0);
    RAW(sched_getattr, 0, BAD, sizeof a, 0);
    RAW(sched_setattr, 0, 0, 0);
    RAW(sched_setattr, 0, BAD, 0);
    RAW(sched_setattr, 0, &a, 1);
    a = (struct attributes){.size = sizeof a, .policy = 99};
    RAW(sched_setattr, 0, &a, 0);
    a = (struct attributes){.size = sizeof a, .policy = SCHED_OTHER};
    RAW(sched_setattr, 0, &a, 0);
    RAW(getpriority, PRIO_PROCESS, 0);
    RAW(setpriority, PRIO_PROCESS, 0, 5);
    RAW(getpriority, PRIO_PROCESS, 0);
    RAW(setpriority, PRIO_PROCESS, 0, 100);
    RAW(setpriority, PRIO_PROCESS, 0, 1);
    RAW(getpriority, PRIO_PROCESS, getpid());
    RAW(getpriority, PRIO_PROCESS, 0x7ffffff0);
    RAW(setpriority, PRIO_PROCESS, 0x7ffffff0, 1);
    RAW(getpriority, 9, 0);
    RAW(setpriority, 9, 0, 0);
    unsigned long set[16] = {0};
    CHECK(syscall(SYS_sched_getaffinity, 0, sizeof set, set) >= 8 && set[0] & 3);
    RAW(sched_getaffinity, 0, 7, set);
    RAW(sched_getaffinity, 0, sizeof set, BAD);
    RAW(sched_getaffinity, 0x7ffffff0, sizeof set, set);
    RAW(sched_setaffinity, 0, sizeof set, set);
    memset(set, 0, sizeof set);
    RAW(sched_setaffinity, 0, sizeof set, set);
    RAW(sched_setaffinity, 0, 0, set);
    RAW(sched_setaffinity, 0, sizeof set, BAD);
    RAW(sched_setaffinity, 0x7ffffff0, sizeof set, set);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    RAW(clock_settime, CLOCK_REALTIME, &now);
    RAW(settimeofday, 0, 0);
    return done();
}
