/* The program's own file, as it is named and by what leads to it. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/stat.h>

/* As a copy in the place of its argument, which then leads to itself. */
static int circle(char **argv)
{
    char bytes[4096];
    ssize_t n;
    if (strcmp(argv[0], argv[2])) {
        int from = open("/proc/self/exe", O_RDONLY), to = open(argv[2], O_WRONLY | O_CREAT | O_EXCL, 0755);
        while ((n = read(from, bytes, sizeof bytes)) > 0) CHECK(write(to, bytes, n) == n);
        CHECK(close(to) == 0);
        execv(argv[2], (char *[]){argv[2], argv[1], argv[2], 0});
        CHECK(0);
        return done();
    }
    CHECK(unlink(argv[2]) == 0 && symlink("/proc/self/exe", argv[2]) == 0);
    CALL(open("/proc/self/exe", O_RDONLY));
    CALL(open(argv[2], O_RDONLY));
    CALL(execv("/proc/self/exe", argv));
    CALL(execv(argv[2], argv));
    return done();
}

int main(int argc, char **argv)
{
    if (argc > 2) return circle(argv);
    char link[PATH_MAX] = "", line[PATH_MAX + 100] = "", start[4];
    if (argc > 1) return done();
    printf("argv[0] %s\nexecfn %s\n", argv[0], (char *)getauxval(AT_EXECFN));
    CHECK(readlink("/proc/self/exe", link, sizeof link - 1) > 0);
    printf("exe %s\n", link);
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(fgets(line, sizeof line, maps) != 0);
    printf("mapped %s", strchr(line, '/'));
    struct stat found;
    printf("argv[0] is a link: %d\n", lstat(argv[0], &found) == 0 && S_ISLNK(found.st_mode));
    for (int i = 0; i < 2; i++) {
        int fd = open(i ? argv[0] : "/proc/self/exe", O_RDONLY);
        CHECK(fd >= 0 && read(fd, start, 4) == 4 && !memcmp(start, "\177ELF", 4));
    }
    CALL(open("/proc/self/exe", O_RDONLY | O_NOFOLLOW));
    char *arguments[] = {"again", "again", 0};
    fflush(stdout);
    execv("/proc/self/exe", arguments);
    CHECK(0);
    return done();
}
