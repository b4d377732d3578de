/* Making and changing files and folders in the folder that FILES_TEST names: open(2), write(2), pwrite(2), ftruncate(2),
 * fallocate(2), unlink(2), rename(2), link(2), symlink(2), mkdir(2), rmdir(2), chmod(2), utimensat(2), getdents(2), O_TMPFILE. */
#define _GNU_SOURCE
#include "texts.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MODE(path)                                                                             \
    do {                                                                                       \
        struct stat s_;                                                                        \
        if (lstat(path, &s_)) printf("%s: %s\n", path, strerrorname_np(errno));                \
        else                                                                                   \
            printf("%s: %o %ld bytes, %ld links\n", path, s_.st_mode,                          \
                   S_ISREG(s_.st_mode) ? (long)s_.st_size : 0,                                 \
                   S_ISREG(s_.st_mode) ? (long)s_.st_nlink : 0);                               \
    } while (0)

static int names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void list(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir) {
        printf("%s: %s\n", path, strerrorname_np(errno));
        return;
    }
    char *all[600];
    int n = 0;
    for (struct dirent *e; (e = readdir(dir)) && n < 600;) all[n++] = strdup(e->d_name);
    closedir(dir);
    qsort(all, n, sizeof *all, names);
    printf("%s:", path);
    for (int i = 0; i < n; i++) {
        if (n < 20) printf(" %s", all[i]);
        free(all[i]);
    }
    printf(" (%d)\n", n);
}

static void writing(void)
{
    umask(027);
    CALL(open("missing", O_RDONLY));
    CALL(open("no/where", O_CREAT | O_WRONLY, 0666));
    CALL(open("folder-like/", O_CREAT | O_WRONLY, 0666));
    CALL(open("", O_CREAT | O_WRONLY, 0666));
    int fd = open("a", O_RDWR | O_CREAT | O_EXCL, 0666);
    CHECK(fd >= 0);
    MODE("a");
    CALL(open("a", O_CREAT | O_EXCL | O_RDWR, 0666));
    CALL(open("a/", O_RDONLY));
    CALL(open("a/b", O_RDONLY));
    CALL(open("a", O_RDONLY | O_DIRECTORY));
    CALL(write(fd, "hello, world", 12));
    CALL(pwrite(fd, "J", 1, 0));
    CALL(pwrite(fd, "x", 1, -1));
    CALL(lseek(fd, 0, SEEK_CUR));
    CALL(lseek(fd, 100000, SEEK_SET));
    CALL(write(fd, "end", 3));
    CALL(lseek(fd, 0, SEEK_END));
    char text[20] = "";
    CALL(pread(fd, text, 19, 99995));
    CHECK(!memcmp(text, "\0\0\0\0\0end", 8));
    CALL(pread(fd, text, 12, 0));
    printf("%.12s\n", text);
    CALL(ftruncate(fd, 5));
    CALL(ftruncate(fd, 10));
    CALL(pread(fd, text, 20, 0));
    CHECK(!memcmp(text, "Jello\0\0\0\0\0", 10));
    CALL(ftruncate(fd, -1));
    CALL(truncate("a", 3));
    CALL(truncate("missing", 3));
    CALL(truncate(".", 3));
    CALL(fallocate(fd, 0, 0, 0));
    CALL(fallocate(fd, 0, 0, 50000));
    MODE("a");
    CALL(fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 1, 10));
    CALL(pread(fd, text, 4, 0));
    CHECK(!memcmp(text, "J\0\0\0", 4));
    struct iovec v[3] = {{"one ", 4}, {"two ", 4}, {"three", 5}};
    CALL(lseek(fd, 0, SEEK_SET));
    CALL(ftruncate(fd, 0));
    CALL(writev(fd, v, 3));
    show("a");
    int append = open("a", O_WRONLY | O_APPEND);
    CALL(write(append, "!", 1));
    CALL(lseek(append, 0, SEEK_CUR));
    CALL(lseek(append, 0, SEEK_SET));
    CALL(write(append, "!", 1));
    CALL(pwrite(append, "?", 1, 0));
    CALL(read(append, text, 1));
    CALL(fsync(append));
    CALL(close(append));
    show("a");
    int reader = open("a", O_RDONLY | O_TRUNC);
    CALL(write(reader, "x", 1));
    CALL(ftruncate(reader, 1));
    CALL(close(reader));
    MODE("a");
    CALL(write(fd, "x", 1));
    CALL(close(fd));
}

static void names_of_files(void)
{
    put("b", "b's");
    CALL(link("b", "b2"));
    CALL(link("b", "b2"));
    CALL(link("missing", "b3"));
    CALL(link(".", "b3"));
    MODE("b");
    put("b2", "changed by its other name");
    show("b");
    CALL(unlink("b"));
    MODE("b");
    MODE("b2");
    CALL(unlink("b"));
    CALL(unlink("."));
    CALL(rename("b2", "b3"));
    CALL(rename("b2", "b3"));
    CALL(rename("b3", "no/where"));
    show("b3");
    put("c", "c's");
    CALL(rename("b3", "c"));
    show("c");
    CALL(renameat2(AT_FDCWD, "c", AT_FDCWD, "a", RENAME_NOREPLACE));
    CALL(renameat2(AT_FDCWD, "c", AT_FDCWD, "d", RENAME_NOREPLACE));
    CALL(renameat2(AT_FDCWD, "d", AT_FDCWD, "e", 1 << 20));
    CALL(link("d", "d2"));
    CALL(rename("d", "d2")); /* the same file: both stay */
    MODE("d");
    int fd = open("d", O_RDWR);
    CALL(unlink("d"));
    CALL(unlink("d2"));
    struct stat s;
    CALL(fstat(fd, &s));
    printf("%ld bytes, %ld links\n", (long)s.st_size, (long)s.st_nlink);
    CALL(write(fd, "gone", 4));
    CALL(close(fd));
    char name[300];
    memset(name, 'n', 256);
    name[256] = 0;
    CALL(open(name, O_CREAT | O_WRONLY, 0600));
    name[255] = 0;
    CHECK((fd = open(name, O_CREAT | O_WRONLY, 0600)) >= 0);
    close(fd);
    CALL(unlink(name));
}

static void folders(void)
{
    CALL(mkdir("f", 0777));
    CALL(mkdir("f", 0777));
    CALL(mkdir("f/", 0777));
    CALL(mkdir("no/where", 0777));
    CALL(mkdir("f/g/", 0700));
    MODE("f");
    MODE("f/g");
    put("f/x", "in a folder");
    put("f/g/y", "deeper");
    list("f");
    CALL(rmdir("f"));
    CALL(rmdir("f/x"));
    CALL(unlink("f/g"));
    CALL(rename("f", "f/g/h"));
    CALL(rename("f/x", "f/g"));
    CALL(mkdir("empty", 0755));
    CALL(rename("f/g", "empty"));
    show("empty/y");
    list("f");
    CALL(rename("empty", "f"));
    CALL(rename("empty", "f/x"));
    CALL(chdir("empty"));
    show("y");
    show("../f/x");
    CALL(chdir(".."));
    int dir = open("empty", O_RDONLY | O_DIRECTORY);
    CALL(unlinkat(dir, "y", AT_REMOVEDIR));
    CALL(unlinkat(dir, "y", 0));
    CALL(openat(dir, "y", O_RDONLY));
    CALL(close(dir));
    CALL(rmdir("empty/."));
    CALL(rmdir("empty"));
    CALL(rmdir("empty"));
    CALL(open("f", O_WRONLY));
    CALL(open("f", O_CREAT | O_RDONLY, 0666));
    for (int i = 0; i < 500; i++) {
        char path[40];
        snprintf(path, sizeof path, "f/file-%d", i);
        put(path, "");
    }
    list("f");
    /* What is removed while the folder is read does not hide others. */
    DIR *d = opendir("f");
    int removed = 0;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] == 'f') removed += !unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    printf("%d removed\n", removed);
    list("f");
}

static void links(void)
{
    put("target", "the target");
    CALL(symlink("target", "l"));
    CALL(symlink("target", "l"));
    CALL(symlink("", "l2"));
    CALL(symlink("nowhere", "dangling"));
    CALL(symlink("loop", "loop"));
    CALL(symlink("f", "lf"));
    CALL(symlink("..", "f/up"));
    MODE("l");
    show("l");
    show("loop");
    show("lf/x");
    show("f/up/target");
    char text[100];
    CALL(readlink("l", text, 3));
    CALL(readlink("target", text, 3));
    CALL(open("l", O_RDONLY | O_NOFOLLOW));
    CALL(open("dangling", O_CREAT | O_EXCL | O_WRONLY, 0666));
    put("dangling", "made through a link");
    show("nowhere");
    CALL(unlink("l"));
    show("target");
    CALL(rename("dangling", "moved"));
    show("moved");
    CALL(unlink("lf/"));
    CALL(rmdir("lf"));
    CALL(mkdir("lf", 0777));
    CALL(chdir("lf"));
    show("x");
    CALL(chdir(".."));
    list(".");
}

static void attributes(void)
{
    put("m", "mode");
    CALL(chmod("m", 01640));
    MODE("m");
    CALL(chmod("missing", 0640));
    int fd = open("m", O_RDWR);
    CALL(fchmod(fd, 0600));
    MODE("m");
    struct timespec t[2] = {{1000, 5}, {2000, 999999999}};
    CALL(futimens(fd, t));
    struct stat s;
    CALL(stat("m", &s));
    printf("%ld.%09ld %ld.%09ld\n", s.st_atim.tv_sec, s.st_atim.tv_nsec, s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
    t[0].tv_nsec = UTIME_OMIT;
    t[1].tv_nsec = UTIME_NOW;
    CALL(utimensat(AT_FDCWD, "m", t, 0));
    CALL(stat("m", &s));
    printf("%ld %d\n", s.st_atim.tv_sec, s.st_mtim.tv_sec > 1000000);
    t[0].tv_nsec = 1000000000;
    CALL(utimensat(AT_FDCWD, "m", t, 0));
    CALL(utimensat(AT_FDCWD, "missing", 0, 0));
    CALL(fchown(fd, -1, -1));
    CALL(close(fd));
    CALL(access("m", W_OK));
    CALL(access("m", X_OK));
    CALL(access(".", W_OK));
    CALL(mknod("n", S_IFREG | 0600, 0));
    MODE("n");
}

static void nameless(void)
{
    int fd = open(".", O_TMPFILE | O_RDWR, 0600);
    CHECK(fd >= 0);
    CALL(write(fd, "no name", 7));
    struct stat s;
    CALL(fstat(fd, &s));
    printf("%o %ld bytes, %ld links\n", s.st_mode, (long)s.st_size, (long)s.st_nlink);
    CALL(open(".", O_TMPFILE | O_RDONLY, 0600));
    CALL(open("m", O_TMPFILE | O_RDWR, 0600));
    CALL(close(fd));
}

static void mapped(void)
{
    put("map", "mapped bytes");
    int fd = open("map", O_RDWR);
    char *p = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(p != MAP_FAILED && !memcmp(p, "mapped bytes\0", 13));
    p[0] = 'X';
    show("map");
    CALL(munmap(p, 4096));
    p = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED && !memcmp(p, "mapped bytes\0", 13));
    CALL(munmap(p, 4096));
    CALL(close(fd));
}

static void memory_files(void)
{
    int fd = memfd_create("name", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CALL(fcntl(fd, F_GETFD));
    CALL(write(fd, "in memory", 9));
    struct stat s;
    CALL(fstat(fd, &s));
    printf("%o %ld bytes, %ld links\n", s.st_mode, (long)s.st_size, (long)s.st_nlink);
    CALL(fcntl(fd, F_GET_SEALS));
    CALL(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    char *p = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED && !memcmp(p, "in memory", 9));
    p[0] = 'I';
    char text[20] = "";
    CALL(pread(fd, text, 19, 0));
    puts(text);
    CALL(close(fd));
    CHECK((fd = memfd_create("", MFD_ALLOW_SEALING)) >= 0);
    CALL(ftruncate(fd, 100));
    CALL(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
    CALL(ftruncate(fd, 50));
    CALL(ftruncate(fd, 150));
    CALL(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL));
    CALL(write(fd, text, 10));
    CALL(ftruncate(fd, 151));
    CALL(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    CALL(fcntl(fd, F_GET_SEALS));
    CALL(close(fd));
    CALL(memfd_create("x", 1 << 20));
    CALL(memfd_create((char *)8, 0));
    CALL(fcntl(1, F_GET_SEALS));
}

static void copies(void)
{
    put("from", "0123456789");
    put("to", "");
    int from = open("from", O_RDONLY), to = open("to", O_RDWR);
    off_t at = 3;
    CALL(sendfile(to, from, &at, 4));
    printf("%ld\n", (long)at);
    CALL(sendfile(to, from, 0, 2));
    CALL(lseek(from, 0, SEEK_CUR));
    CALL(lseek(to, 0, SEEK_CUR));
    show("to");
    CALL(sendfile(from, to, 0, 1));
    CALL(sendfile(77, from, 0, 1));
    off_t end = 1;
    CALL(copy_file_range(from, 0, to, &end, 100, 0));
    printf("%ld\n", (long)end);
    show("to");
    CALL(copy_file_range(from, 0, to, 0, 100, 0));
    CALL(copy_file_range(from, 0, to, 0, 100, 1));
    CALL(copy_file_range(to, 0, from, 0, 100, 0));
    CALL(lseek(to, 0, SEEK_SET));
    CALL(copy_file_range(to, 0, to, 0, 100, 0));
    int pipes[2];
    CALL(pipe(pipes));
    at = 0;
    CALL(sendfile(pipes[1], from, &at, 5));
    char text[10];
    CALL(read(pipes[0], text, 10));
    printf("%.5s\n", text);
    int ends[2];
    CALL(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    at = 2;
    CALL(sendfile(ends[0], from, &at, 5));
    CALL(read(ends[1], text, 10));
    printf("%.5s\n", text);
    CALL(close(ends[1]));
    signal(SIGPIPE, SIG_IGN);
    CALL(sendfile(ends[0], from, &at, 3));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CALL(fcntl(to, F_SETLK, &lock));
    CALL(fcntl(to, F_GETLK, &lock));
    printf("%d\n", lock.l_type == F_UNLCK);
    CALL(flock(to, LOCK_EX | LOCK_NB));
    CALL(flock(to, LOCK_UN));
    CALL(flock(77, LOCK_UN));
    CALL(sync_file_range(to, 0, 1, 0));
    CALL(getxattr("to", "user.none", text, 10));
    CALL(listxattr("to", text, 10));
    int watch = inotify_init1(IN_NONBLOCK);
    CHECK(watch >= 0);
    CALL(inotify_add_watch(watch, ".", IN_DELETE));
    CALL(inotify_add_watch(watch, "missing", IN_DELETE));
    CALL(inotify_add_watch(to, ".", IN_DELETE));
    CALL(read(watch, text, 10));
    CALL(inotify_rm_watch(watch, 1));
    CALL(inotify_rm_watch(watch, 99));
}

/* What was there before: HOST holds what this program finds, and in the machine it must not change. */
static void found(void)
{
    show("given/file");
    list("given");
    int fd = open("given/file", O_RDWR);
    CALL(write(fd, "W", 1));
    CALL(close(fd));
    show("given/file");
    CALL(unlink("given/other"));
    CALL(unlink("given/other"));
    list("given");
    put("given/other", "new");
    list("given");
    show("given/link");
    CALL(rename("given/file", "given/renamed"));
    CALL(rename("given/link", "given/dead-link"));
    list("given");
    show("given/renamed");
    show("given/dead-link");
    CALL(chmod("given/sub", 0711));
    MODE("given/sub");
    list("given/sub");
    CALL(rmdir("given/sub"));
    CALL(unlink("given/sub/deep"));
    CALL(rmdir("given/sub"));
    CALL(mkdir("given/sub", 0700));
    list("given/sub");
    show("given/sub/deep");
    fd = open("given/big", O_RDWR);
    CALL(pwrite(fd, "x", 1, 300000));
    char text[3];
    CALL(pread(fd, text, 3, 299999));
    printf("%.3s\n", text);
    CALL(ftruncate(fd, 299999));
    CALL(ftruncate(fd, 500000));
    CALL(pread(fd, text, 3, 299998));
    CHECK(!memcmp(text, "b\0\0", 3));
    CALL(close(fd));
}

int main(void)
{
    const char *folder = getenv("FILES_TEST");
    if (folder && chdir(folder)) return 99;
    writing();
    names_of_files();
    folders();
    links();
    attributes();
    nameless();
    mapped();
    memory_files();
    copies();
    found();
    return done();
}
