/* What a process is: ids, limits, names; and what it asks about itself. */
#define _GNU_SOURCE
#include "raw.h"
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>

int main(void)
{
    CHECK(syscall(SYS_getpid) > 0 && syscall(SYS_gettid) == syscall(SYS_getpid) && syscall(SYS_getppid) >= 0);
    RAW(getuid);
    RAW(geteuid);
    RAW(getgid);
    RAW(getegid);
    int r = 9, e = 9, s = 9;
    RAW(getresuid, &r, &e, &s);
    printf("    %d %d %d\n", r, e, s);
    RAW(getresgid, &r, &e, &s);
    RAW(getresuid, BAD, &e, &s);
    RAW(getresgid, &r, &e, BAD);
    RAW(setuid, 0);
    RAW(setgid, 0);
    RAW(setuid, -1);
    RAW(setgid, -1);
    RAW(setreuid, -1, 0);
    RAW(setregid, 0, -1);
    RAW(setresuid, -1, -1, -1);
    RAW(setresgid, 0, 0, 0);
    RAW(setfsuid, 0);
    RAW(setfsgid, 0);
    CHECK(syscall(SYS_getgroups, 0, 0) >= 0);
    RAW(getgroups, -1, &r);
    CHECK(syscall(SYS_getpgrp) == syscall(SYS_getpgid, 0));
    CHECK(syscall(SYS_getsid, 0) > 0 || syscall(SYS_getsid, 0) == 0);
    syscall(SYS_setsid); /* whose result depends on who has started it */
    RAW(setgroups, 0, 0);
    RAW(setgroups, -1, &r);
    RAW(setgroups, 1, BAD);
    RAW(getpgid, 0x7ffffff0);
    RAW(getsid, 0x7ffffff0);
    CHECK(syscall(SYS_umask, 022) >= 0);
    RAW(umask, 07777);
    RAW(umask, 022);
    struct rlimit limit, more = {2, 1};
    for (int i = 0; i < 17; i++) {
        int result = syscall(SYS_getrlimit, i, &limit);
        printf("limit %d: %d\n", i, result);
        if (!result) CHECK(limit.rlim_cur <= limit.rlim_max);
    }
    RAW(getrlimit, RLIMIT_NOFILE, BAD);
    RAW(prlimit64, 0, RLIMIT_NOFILE, 0, &limit);
    RAW(prlimit64, 0, RLIMIT_NOFILE, &limit, 0);
    RAW(prlimit64, 0, RLIMIT_NOFILE, &more, 0);
    RAW(prlimit64, 0, 99, 0, &limit);
    RAW(prlimit64, 0, RLIMIT_NOFILE, BAD, 0);
    RAW(prlimit64, 0x7ffffff0, RLIMIT_NOFILE, 0, &limit);
    getrlimit(RLIMIT_CORE, &limit);
    RAW(setrlimit, RLIMIT_CORE, &limit);
    RAW(setrlimit, RLIMIT_CORE, &more);
    RAW(setrlimit, 99, &limit);
    RAW(setrlimit, RLIMIT_CORE, BAD);
    struct utsname name;
    RAW(uname, &name);
    printf("    %s %s\n", name.sysname, name.machine);
    RAW(uname, BAD);
    struct sysinfo all;
    RAW(sysinfo, &all);
    CHECK(all.totalram >= all.freeram && all.mem_unit > 0 && all.procs > 0);
    RAW(sysinfo, BAD);
    unsigned cpu = 99, node = 99;
    RAW(getcpu, &cpu, &node, 0);
    CHECK(cpu < 64 && node < 64);
    RAW(getcpu, 0, 0, 0);
    RAW(getcpu, BAD, 0, 0);
    char text[40] = "";
    RAW(prctl, PR_SET_NAME, "a-name-longer-than-fits");
    RAW(prctl, PR_GET_NAME, text);
    printf("    %s\n", text);
    RAW(prctl, PR_SET_NAME, BAD);
    RAW(prctl, PR_GET_NAME, BAD);
    RAW(prctl, 9999, 0);
    unsigned long base;
    RAW(arch_prctl, 0x1003, &base);
    RAW(arch_prctl, 0x1003, BAD);
    RAW(arch_prctl, 0x1002, -1ul);
    RAW(arch_prctl, 0x1001, 0);
    RAW(arch_prctl, 0x1004, &base);
    printf("    %lx\n", base);
    RAW(arch_prctl, 0x9999, 0);
    RAW(personality, 0xffffffff);
    CHECK(syscall(SYS_set_tid_address, &r) == syscall(SYS_gettid));
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0}, odd = {7, 0};
    struct __user_cap_data_struct data[2];
    RAW(capget, &head, data);
    RAW(capget, &head, 0);
    RAW(capget, &odd, data);
    printf("    %x\n", odd.version);
    RAW(capget, BAD, data);
    RAW(getrandom, text, 16, 0);
    RAW(getrandom, text, 16, 1 << 10);
    RAW(getrandom, BAD, 16, 0);
    RAW(getrandom, text, 0, 0);
    CHECK(syscall(SYS_membarrier, 0, 0, 0) >= 0);
    RAW(membarrier, 1 << 30, 0, 0);
    int status;
    RAW(wait4, -1, &status, 0, 0);
    RAW(wait4, -1, &status, 1 << 30, 0);
    RAW(waitid, P_ALL, 0, 0, WEXITED, 0);
    RAW(waitid, P_ALL, 0, 0, 0, 0);
    RAW(waitid, 99, 0, 0, WEXITED, 0);
    /* Memory that stays where it is. */
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    RAW(mlock, page, 4096);
    RAW(mlock2, page, 4096, 0);
    RAW(mlock2, page, 4096, 99);
    RAW(munlock, page, 4096);
    munmap(page + 4096, 4096);
    RAW(mlock, page, 8192);
    RAW(munlock, page, 8192);
    RAW(mlockall, MCL_CURRENT);
    RAW(mlockall, 99);
    RAW(mlockall, 0);
    RAW(munlockall);
    unsigned char there[2];
    RAW(mincore, page, 4096, there);
    RAW(mincore, page + 1, 4096, there);
    RAW(mincore, page, 4096, BAD);
    RAW(mincore, page, 8192, there);
    RAW(set_robust_list, 0, 24);
    RAW(set_robust_list, 0, 23);
    long word = 1;
    RAW(futex, &word, 1, 1, 0, 0, 0);
    RAW(futex, &word, 0, 2, 0, 0, 0);
    RAW(futex, (char *)&word + 1, 0, 1, 0, 0, 0);
    RAW(futex, BAD, 0, 1, 0, 0, 0);
    RAW(futex, &word, 77, 1, 0, 0, 0);
    return done();
}
