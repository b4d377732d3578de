/* What is made up of /proc, /dev and /sys, as far as it is the same natively. */
#define _GNU_SOURCE
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>

static char text[1 << 16];

static long slurp(const char *path)
{
    int fd = open(path, O_RDONLY);
    long n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    close(fd);
    text[n < 0 ? 0 : n] = 0;
    return n;
}

/* The value after a key at the start of a line. */
static const char *value(const char *key)
{
    static char line[200];
    char *at = strstr(text, key);
    if (!at) return "missing";
    snprintf(line, sizeof line, "%.*s", (int)strcspn(at, "\n"), at);
    return line;
}

int main(int argc, char **argv)
{
    char link[4096];
    long n = readlink("/proc/self/exe", link, sizeof link - 1);
    CHECK(n > 0 && (link[n] = 0, !strcmp(strrchr(link, '/'), "/proc")));
    CHECK(slurp("/proc/self/comm") > 0);
    printf("%s", text);
    prctl(PR_SET_NAME, "another");
    slurp("/proc/self/comm");
    printf("%s", text);
    n = slurp("/proc/self/cmdline");
    CHECK(n > 0 && !strcmp(text, argv[0]));
    printf("%d arguments\n", argc);
    int nuls = 0;
    for (long i = 0; i < n; i++) nuls += !text[i];
    CHECK(nuls == argc);
    n = slurp("/proc/self/environ");
    CHECK(n > 0 && memmem(text, n, "LINUX_TEST=x=y", 15));
    slurp("/proc/self/status");
    puts(value("Name:"));
    puts(value("Threads:"));
    puts(value("Umask:"));
    CHECK(slurp("/proc/self/statm") > 0);
    int fields = 1;
    for (char *p = text; *p; p++) fields += *p == ' ';
    printf("%d fields of statm\n", fields);
    slurp("/proc/self/stat");
    fields = 1;
    for (char *p = strchr(text, ')'); p && *p; p++) fields += *p == ' ';
    printf("%d fields after the name of stat\n", fields);
    CHECK(strstr(text, "(another) R "));
    CHECK(slurp("/proc/self/maps") > 0 && strstr(text, "[stack]"));
    CHECK(slurp("/proc/thread-self/comm") > 0 && slurp("/proc/self/task/../comm") > 0);
    for (const char *const *path = (const char *[]){"/proc/self/cgroup", "/proc/self/mountinfo", "/proc/self/mounts",
             "/proc/self/limits", "/proc/self/oom_score_adj", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat",
             "/proc/uptime", "/proc/loadavg", "/proc/version", "/proc/filesystems", "/proc/mounts",
             "/proc/sys/kernel/osrelease", "/proc/sys/kernel/ngroups_max", "/proc/sys/kernel/pid_max",
             "/proc/sys/kernel/random/uuid", "/proc/sys/kernel/random/boot_id", "/proc/sys/net/core/somaxconn",
             "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/max_map_count", "/sys/devices/system/cpu/online",
             "/sys/devices/system/cpu/possible", "/sys/devices/system/cpu/present", 0}; *path; path++) {
        n = slurp(*path);
        struct stat s;
        printf("%s: %s, %d\n", *path, n > 0 ? "there" : "missing", stat(*path, &s));
    }
    CHECK(slurp("/proc/sys/kernel/random/uuid") == 37 && text[14] == '4');
    CALL(open("/proc/self/nothing", O_RDONLY));

    /* Descriptors by name. */
    int fd = open("/dev/null", O_RDWR);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, text, sizeof text - 1);
    printf("%s -> %.*s\n", link, (int)n, text);
    struct stat s;
    CALL(lstat(link, &s));
    printf("%o\n", s.st_mode & S_IFMT);
    CALL(stat(link, &s));
    printf("%o\n", s.st_mode & S_IFMT);
    CALL(open("/proc/self/fd/77", O_RDONLY));
    CALL(readlink("/proc/self/fd/77", text, 10));
    DIR *dir = opendir("/proc/self/fd");
    int found = 0;
    for (struct dirent *e; (e = readdir(dir));) found += atoi(e->d_name) == fd;
    closedir(dir);
    printf("found %d\n", found);
    int out = open("/dev/stdout", O_WRONLY);
    CHECK(out >= 0);
    close(out);
    CALL(stat("/dev/fd/1", &s));

    /* Devices. */
    int full = open("/dev/full", O_RDWR);
    CALL(write(full, "x", 1));
    CALL(read(full, text, 3));
    int zero = open("/dev/zero", O_RDWR);
    CALL(write(zero, "x", 1));
    text[0] = 1;
    CALL(read(zero, text, 1));
    CHECK(text[0] == 0);
    CALL(lseek(zero, 10, SEEK_SET));
    CALL(access("/dev/null", R_OK | W_OK));
    CALL(access("/dev/null", X_OK));
    CALL(open("/dev/null", O_RDONLY | O_DIRECTORY));
    CALL(mkdir("/dev/null", 0700));
    struct statfs f;
    CALL(statfs("/tmp", &f));
    CHECK(f.f_bsize > 0 && f.f_blocks >= f.f_bfree && f.f_namelen == 255);
    CALL(statfs("/proc/self/stat", &f));
    printf("%lx\n", (long)f.f_type);
    CALL(statfs("/no/where", &f));
    CALL(fstatfs(77, &f));
    return done();
}
