/* Users and groups: what a process says it is, and what it may become. It has to start as root. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define RAW(name, ...) CALL(syscall(SYS_##name, ##__VA_ARGS__))

static void show(void)
{
    unsigned u[3], g[3], groups[64];
    long count = syscall(SYS_getgroups, 64, groups);
    syscall(SYS_getresuid, u, u + 1, u + 2);
    syscall(SYS_getresgid, g, g + 1, g + 2);
    printf("users %u %u %u, %ld %ld; groups %u %u %u, %ld %ld;", u[0], u[1], u[2], syscall(SYS_getuid),
           syscall(SYS_geteuid), g[0], g[1], g[2], syscall(SYS_getgid), syscall(SYS_getegid));
    for (long i = 0; i < count; i++) printf(" %u", groups[i]);
    printf("; of files %ld %ld\n", syscall(SYS_setfsuid, -1), syscall(SYS_setfsgid, -1));
}

/* The kernel has ids for each thread, so each of these begins as root. */
static void *gives_up(void *nothing)
{
    unsigned groups[] = {7, 3, 5};
    RAW(setgroups, 3, groups);
    RAW(setgid, 33);
    show();
    RAW(setuid, 33);
    show();
    RAW(setuid, 0);
    RAW(setgid, 0);
    RAW(setuid, 33);
    RAW(setgid, 33);
    RAW(setreuid, 0, -1);
    RAW(setreuid, -1, 0);
    RAW(setreuid, 33, 33);
    RAW(setregid, -1, 7);
    RAW(setresuid, -1, -1, 0);
    RAW(setresuid, 33, -1, 33);
    RAW(setresgid, 0, -1, -1);
    RAW(setgroups, 0, 0);
    RAW(setgroups, -1, 0);
    RAW(setfsuid, 0);
    RAW(setfsuid, 33);
    RAW(setfsgid, 7);
    show();
    return nothing;
}

static void *comes_back(void *nothing)
{
    RAW(setresgid, 1, 2, 3);
    RAW(setresuid, 33, 33, 0);
    show();
    RAW(setgroups, 0, 0);
    RAW(setgid, 9);
    RAW(setgid, 3);
    show();
    RAW(setuid, 0);
    show();
    RAW(setgid, 9);
    show();
    return nothing;
}

static void *two_at_once(void *nothing)
{
    RAW(setreuid, -1, 33);
    show();
    RAW(setreuid, -1, 0);
    RAW(setreuid, 44, -1);
    show();
    RAW(setregid, 5, 6);
    RAW(setregid, -1, 5);
    show();
    RAW(setreuid, 44, 44);
    RAW(setregid, 6, -1);
    RAW(setregid, 5, 5);
    RAW(setreuid, -1, -1);
    show();
    return nothing;
}

static void owner(const char *what, int fd)
{
    struct stat found;
    CHECK(fstat(fd, &found) == 0);
    printf("%s of %u %u\n", what, found.st_uid, found.st_gid);
}

static void *makes_files(void *nothing)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/forkvm-ids-%d", getpid());
    RAW(setfsuid, 33);
    RAW(setfsgid, 44);
    RAW(setfsuid, -1);
    show();
    owner("a file without a name", memfd_create("a", 0));
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
    owner("a file", fd);
    CHECK(unlink(path) == 0);
    CHECK(mkdir(path, 0700) == 0);
    fd = open(path, O_RDONLY | O_DIRECTORY);
    owner("a folder", fd);
    CHECK(rmdir(path) == 0);
    RAW(setuid, 0);
    show();
    return nothing;
}

static void *makes_mistakes(void *nothing)
{
    unsigned list[3] = {1, -1, 2};
    RAW(setuid, -1);
    RAW(setgid, -1);
    RAW(setreuid, -1, -1);
    RAW(setresgid, -1, -1, -1);
    RAW(setgroups, 3, list);
    RAW(setgroups, -1, list);
    RAW(setgroups, 65537, list);
    RAW(setgroups, 2, 1);
    list[1] = 1;
    RAW(setgroups, 3, list);
    RAW(getgroups, -1, list);
    RAW(getgroups, 2, list);
    RAW(getgroups, 0, 0);
    RAW(getgroups, 3, 1);
    RAW(getgroups, 3, list);
    RAW(getresuid, 0, list, list);
    RAW(getresgid, list, list, 1);
    RAW(setuid, (uint64_t)1 << 32);
    show();
    return nothing;
}

static void status(void)
{
    char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, "Uid", 3) || !strncmp(line, "Gid", 3) || !strncmp(line, "Groups", 6)) fputs(line, stdout);
    fclose(file);
}

static void auxiliary(void)
{
    printf("started as %lu %lu, %lu %lu; secure %lu\n", getauxval(AT_UID), getauxval(AT_EUID), getauxval(AT_GID),
           getauxval(AT_EGID), getauxval(AT_SECURE));
    show();
}

static void again(char **argv, const char *how)
{
    char *arguments[] = {argv[0], (char *)how, 0};
    fflush(stdout);
    execv("/proc/self/exe", arguments);
    CHECK(0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "first")) {
        auxiliary();
        CALL(setresgid(33, 33, 44));
        again(argv, "second");
    }
    if (argc > 1 && !strcmp(argv[1], "second")) {
        auxiliary();
        return done();
    }
    CALL(setgroups(0, 0));
    void *(*all[])(void *) = {gives_up, comes_back, two_at_once, makes_files, makes_mistakes};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, 0, all[i], 0) == 0);
        CHECK(pthread_join(thread, 0) == 0);
        show();
    }
    CALL(prctl(PR_GET_DUMPABLE));
    CALL(prctl(PR_SET_DUMPABLE, 2));
    CALL(setgid(0));
    CALL(prctl(PR_GET_DUMPABLE));
    const gid_t groups[] = {4, 5};
    CALL(setgroups(2, groups));
    CALL(setresgid(33, 44, 55));
    CALL(setresuid(0, 0, 66));
    CALL(prctl(PR_GET_DUMPABLE));
    CALL(prctl(PR_SET_DUMPABLE, 1));
    CALL(prctl(PR_GET_DUMPABLE));
    status();
    again(argv, "first");
}
