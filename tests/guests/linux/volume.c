/* What a program tries that may change the files of a folder of the host, /srv/data, and of another, /srv/other: to get out of it.
 *
 *   volume escape      by links, names and mounts
 *   volume wait        waits until the file "go" is there, then writes much to "large"
 *   volume race        makes, changes and removes what is beneath "flips" until "stop" is there, which somebody else makes a
 *                      link out of meanwhile
 *   volume fill        writes until it can't, and makes names until it can't
 *   volume map         a file by its mapping
 */
#define _GNU_SOURCE
#include "raw.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <unistd.h>

static char block[1 << 16];

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    CHECK(fd >= 0);
    CHECK(write(fd, text, strlen(text)) == (long)strlen(text));
    close(fd);
}

/* All that changes something, by this path to a folder and to a file called "secret" in it. */
static void change(const char *folder)
{
    char secret[200], fresh[200];
    snprintf(secret, sizeof secret, "%s/secret", folder);
    snprintf(fresh, sizeof fresh, "%s/fresh", folder);
    printf("by %s:\n", folder);
    CALL(open(secret, O_RDONLY));
    CALL(open(secret, O_WRONLY));
    CALL(open(secret, O_RDWR | O_CREAT, 0666));
    CALL(open(secret, O_RDONLY | O_TRUNC));
    CALL(open(fresh, O_WRONLY | O_CREAT, 0666));
    CALL(open(fresh, O_WRONLY | O_CREAT | O_EXCL, 0666));
    CALL(open(folder, O_TMPFILE | O_RDWR, 0666));
    CALL(truncate(secret, 0));
    CALL(mkdir(fresh, 0777));
    CALL(symlink("x", fresh));
    CALL(mknod(fresh, S_IFREG | 0666, 0));
    CALL(link("file", fresh));
    CALL(link(secret, "stolen"));
    CALL(rename("file", fresh));
    CALL(rename(secret, "stolen"));
    CALL(renameat2(AT_FDCWD, "file", AT_FDCWD, secret, RENAME_EXCHANGE));
    CALL(unlink(secret));
    CALL(chmod(secret, 0777));
    CALL(chown(secret, 1, 1));
    CALL(utimes(secret, 0));
    CALL(access(secret, W_OK));
}

static void escape(void)
{
    CHECK(!chdir("/srv/data"));
    put("file", "mine");
    change("/srv/data/../../outside");
    change("planted");
    change("planted-absolute");
    CALL(symlink("../../outside", "up"));
    change("up");
    CALL(symlink("/outside", "root"));
    change("root");
    CALL(symlink("/proc/self/root", "proc"));
    change("proc");
    CALL(symlink("/srv/data/../..", "dots"));
    change("dots/outside");
    printf("links at the end:\n");
    CALL(open("planted-file", O_WRONLY));
    CALL(open("planted-file", O_WRONLY | O_CREAT | O_TRUNC, 0666));
    CALL(open("planted-new", O_WRONLY | O_CREAT, 0666));
    CALL(truncate("planted-file", 0));
    CALL(chmod("planted-file", 0777));
    CALL(open("/proc/self/cwd/../outside/secret", O_WRONLY));
    printf("what is no file:\n");
    CALL(open("fifo", O_RDONLY));
    CALL(open("fifo", O_WRONLY));
    CALL(open("fifo", O_RDWR | O_CREAT | O_TRUNC, 0666));
    CALL(truncate("fifo", 0));
    CALL(open("socket", O_RDWR));
    CALL(mkfifo("mine-fifo", 0666));
    CALL(mknod("mine-null", S_IFCHR | 0666, makedev(1, 3)));
    CALL(mknod("mine-disk", S_IFBLK | 0666, makedev(8, 0)));
    CALL(mknod("mine-socket", S_IFSOCK | 0666, 0));
    printf("rights:\n");
    umask(0);
    int fd = open("suid", O_WRONLY | O_CREAT, 06777);
    struct stat s;
    CHECK(!fstat(fd, &s) && !(s.st_mode & 06000));
    CALL(fchmod(fd, 06755));
    CHECK(!fstat(fd, &s) && !(s.st_mode & 06000));
    CALL(chmod("suid", 04755));
    CHECK(!stat("suid", &s) && !(s.st_mode & 06000));
    CALL(mkdir("sgid", 02777));
    CHECK(!stat("sgid", &s) && !(s.st_mode & 06000));
    CALL(fchown(fd, s.st_uid, s.st_gid));
    CALL(fchown(fd, s.st_uid + 1, -1));
    CALL(chown("suid", -1, s.st_gid + 1));
    CALL(lchown("up", s.st_uid + 1, -1));
    printf("other file systems:\n");
    put("/tmp/x", "x");
    CALL(rename("/tmp/x", "x"));
    CALL(rename("file", "/tmp/y"));
    CALL(rename("file", "/srv/other/file"));
    CALL(rename("missing", "/srv/other/file"));
    CALL(link("/tmp/x", "x"));
    CALL(link("file", "/tmp/y"));
    CALL(link("file", "/srv/other/file"));
    CALL(link("/etc/hosts", "hosts"));
    CALL(renameat2(AT_FDCWD, "file", AT_FDCWD, "/srv/other/there", RENAME_EXCHANGE));
    CALL(rmdir("/srv/data"));
    CALL(rename("/srv/data", "/srv/data2"));
    CALL(rename("/srv/other", "inside"));
    CALL(unlink("/srv/alone"));
    CALL(rename("/srv/alone", "alone"));
    put("/srv/alone", "changed");
    CALL(mkdir("/srv/new", 0777));
    CALL(open("/srv/new", O_WRONLY | O_CREAT, 0666));
    printf("links that stay within:\n");
    CALL(symlink("/srv/data/made", "absolute"));
    put("absolute", "by an absolute link");
    CALL(symlink("/srv/data/made", "/tmp/to-volume"));
    put("/tmp/to-volume", "by a link in memory");
    put("first", "of the first"), put("second", "of the second");
    CALL(renameat2(AT_FDCWD, "first", AT_FDCWD, "second", RENAME_EXCHANGE));
    CALL(symlink("/tmp/x", "to-memory"));
    put("to-memory", "changed");
    CALL(symlink("/srv/other", "across"));
    put("across/made", "by a link across");
    printf("limits:\n");
    CALL(ftruncate(fd, 1L << 62));
    CALL(pwrite(fd, "x", 1, (1L << 62)));
    CALL(pwrite(fd, "x", 1, -1));
    RAW(write, fd, BAD, 10);
    struct statfs host;
    CALL(statfs(".", &host));
    CHECK(host.f_bsize > 0 && host.f_blocks > 0 && host.f_namelen > 0);
}

static void waits(void)
{
    CHECK(!chdir("/srv/data"));
    puts("ready"), fflush(stdout);
    while (access("go", F_OK)) usleep(10000);
    int fd = open("large", O_WRONLY | O_CREAT, 0666);
    CALL(write(fd, block, sizeof block));
    CALL(write(fd, block, sizeof block));
    CALL(ftruncate(fd, 1 << 20));
    CALL(fallocate(fd, 0, 0, 1 << 20));
    CALL(pwrite(fd, "x", 1, 1 << 20));
}

static void race(void)
{
    CHECK(!chdir("/srv/data"));
    puts("ready"), fflush(stdout);
    long made = 0;
    while (access("stop", F_OK)) {
        int fd = open("flips/file", O_WRONLY | O_CREAT | O_TRUNC, 0666);
        if (fd >= 0) made += write(fd, "raced", 5) == 5, close(fd);
        truncate("flips/secret", 0);
        mkdir("flips/folder", 0777);
        rename("flips/file", "flips/renamed");
        link("flips/renamed", "flips/linked");
        symlink("x", "flips/link");
        chmod("flips/secret", 0777);
        unlink("flips/linked");
        unlink("flips/link");
        unlink("flips/renamed");
        unlink("flips/secret");
        rmdir("flips/folder");
    }
    CHECK(made > 0);
}

static void fill(void)
{
    CHECK(!chdir("/srv/data"));
    int fd = open("much", O_WRONLY | O_CREAT, 0666);
    long n, all = 0;
    while ((n = write(fd, block, sizeof block)) > 0) all += n;
    printf("%ld bytes, then %s\n", all, strerrorname_np(errno));
    CALL(fallocate(fd, 0, 0, 1 << 20));
    int names = 0;
    char name[20];
    for (; names < 1000; names++) {
        snprintf(name, sizeof name, "name-%d", names);
        if (mkdir(name, 0777)) break;
    }
    printf("%d names, then %s\n", names, strerrorname_np(errno));
    CALL(symlink("x", "l"));
    CALL(link("much", "more"));
    CALL(open("new", O_WRONLY | O_CREAT, 0666));
    CALL(unlink("much"));
    CALL(write(fd, "", 0));
}

static void map(void)
{
    CHECK(!chdir("/srv/data"));
    int fd = open("mapped", O_RDWR | O_CREAT, 0666);
    CHECK(!ftruncate(fd, 10000));
    char *p = mmap(0, 10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *q = mmap(0, 10000, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED && q != MAP_FAILED);
    memcpy(p + 100, "by the mapping", 14);
    p[9999] = '!';
    char text[20] = "";
    CHECK(pread(fd, text, 14, 100) == 14 && !strcmp(text, "by the mapping"));
    CHECK(!memcmp(q + 100, "by the mapping", 14));
    /* Of a page that others write to as well only what was changed is written. */
    puts("ready"), fflush(stdout);
    while (access("go", F_OK)) usleep(10000);
    p[0] = 'p';
    CHECK(!msync(p, 10000, MS_SYNC));
    CHECK(pwrite(fd, "by a call", 9, 5000) == 9);
    CHECK(!memcmp(p + 5000, "by a call", 9) && !memcmp(q + 5000, "by a call", 9));
    CHECK(pread(fd, text, 6, 200) == 6 && !memcmp(text, "theirs", 6));
    CHECK(!munmap(p, 10000));
    CHECK(!ftruncate(fd, 20000) && pwrite(fd, "end", 3, 19997) == 3);
    p = mmap(0, 20000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(!memcmp(p + 19997, "end", 3) && p[0] == 'p');
    memcpy(p + 19900, "exit", 4);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, 0, _IOFBF, 1 << 16);
    const char *how = argc > 1 ? argv[1] : "";
    if (!strcmp(how, "escape")) escape();
    if (!strcmp(how, "wait")) waits();
    if (!strcmp(how, "race")) race();
    if (!strcmp(how, "fill")) fill();
    if (!strcmp(how, "map")) map();
    return done();
}
