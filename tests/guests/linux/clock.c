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

/* Its functions have the version that programs ask for, found as Go's runtime does: without a look whether there are any. */
static void has_versions(const char *start)
{
    const Elf64_Ehdr *header = (const void *)start;
    const Elf64_Phdr *segment = (const void *)(start + header->e_phoff);
    const Elf64_Dyn *entry = 0;
    long bias = 0;
    for (int i = 0; i < header->e_phnum; i++, segment++) {
        if (segment->p_type == PT_LOAD) bias = (long)start + segment->p_offset - segment->p_vaddr;
        if (segment->p_type == PT_DYNAMIC) entry = (const void *)(start + segment->p_offset);
    }
    const char *strings = 0;
    const Elf64_Sym *symbols = 0;
    const Elf64_Verdef *definition = 0;
    const Elf64_Half *versions = 0;
    for (; entry->d_tag != DT_NULL; entry++) {
        const void *at = (const void *)(bias + entry->d_un.d_ptr);
        if (entry->d_tag == DT_STRTAB) strings = at;
        if (entry->d_tag == DT_SYMTAB) symbols = at;
        if (entry->d_tag == DT_VERSYM) versions = at;
        if (entry->d_tag == DT_VERDEF) definition = at;
    }
    CHECK(strings && symbols && definition && versions);
    if (!definition || !versions) return;
    while (definition->vd_hash != 0x3ae75f6 && definition->vd_next)
        definition = (const void *)((const char *)definition + definition->vd_next);
    const Elf64_Verdaux *name = (const void *)((const char *)definition + definition->vd_aux);
    CHECK(!(definition->vd_flags & VER_FLG_BASE) && !strcmp(strings + name->vda_name, "LINUX_2.6"));
    const char *wanted[] = {"__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_getcpu"};
    /* The string table comes after the symbols. */
    for (int i = 0; i < 4; i++) {
        int at = 0;
        while ((const char *)(symbols + at) < strings && strcmp(strings + symbols[at].st_name, wanted[i])) at++;
        CHECK((versions[at] & 0x7fff) == definition->vd_ndx);
    }
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
        has_versions((const char *)vdso);
    }
    return failed_;
}
