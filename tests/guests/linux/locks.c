/* flock(2), and fcntl(2) with F_SETLK, F_OFD_SETLK and their relatives. */
#define _GNU_SOURCE
#include "raw.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/file.h>

static int a, b, reader;

static struct flock lock(short type, off_t start, off_t len)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
}

static void show(int fd, int command, struct flock l)
{
    int result = fcntl(fd, command, &l);
    if (result) printf("    %s\n", strerrorname_np(errno));
    else if (l.l_type == F_UNLCK) printf("    free\n");
    else printf("    %s from %ld, %ld, %s\n", l.l_type == F_RDLCK ? "read" : "write", (long)l.l_start, (long)l.l_len,
                l.l_pid == -1 ? "an open file" : l.l_pid == getpid() ? "the process" : "another");
}

static void whole_files(void)
{
    RAW(flock, a, LOCK_EX | LOCK_NB);
    RAW(flock, b, LOCK_EX | LOCK_NB);
    RAW(flock, b, LOCK_SH | LOCK_NB);
    RAW(flock, b, LOCK_UN);
    int twin = dup(a);
    RAW(flock, twin, LOCK_EX | LOCK_NB); /* the same open file */
    RAW(flock, twin, LOCK_SH | LOCK_NB);
    RAW(flock, b, LOCK_SH | LOCK_NB);
    RAW(flock, a, LOCK_EX | LOCK_NB);
    RAW(flock, b, LOCK_EX | LOCK_NB); /* the other's was lost on the way */
    CALL(close(a)); /* its twin holds it */
    RAW(flock, b, LOCK_UN);
    RAW(flock, twin, LOCK_EX | LOCK_NB);
    RAW(flock, b, LOCK_EX | LOCK_NB);
    CALL(close(twin));
    RAW(flock, b, LOCK_EX | LOCK_NB);
    RAW(flock, b, LOCK_UN);
    RAW(flock, b, 0);
    RAW(flock, b, LOCK_SH | LOCK_EX);
    RAW(flock, -1, LOCK_SH);
    int path = open("/tmp", O_PATH);
    RAW(flock, path, LOCK_SH);
    int pipes[2];
    CALL(pipe(pipes));
    RAW(flock, pipes[0], LOCK_EX);
}

static void *holder(void *name)
{
    int fd = open(name, O_RDWR);
    flock(fd, LOCK_EX);
    usleep(20000);
    write(fd, "h", 1);
    close(fd);
    return 0;
}

static void waits(char *name)
{
    pthread_t thread;
    RAW(flock, b, LOCK_EX);
    pthread_create(&thread, 0, holder, name);
    usleep(20000);
    CALL(pwrite(b, "0", 1, 0));
    RAW(flock, b, LOCK_UN);
    usleep(10000);
    RAW(flock, b, LOCK_EX); /* waits for the other thread */
    char byte = 0;
    CALL(pread(b, &byte, 1, 0));
    putchar(byte);
    putchar('\n');
    pthread_join(thread, 0);
    RAW(flock, b, LOCK_UN);
}

static void parts(void)
{
    struct flock l = lock(F_WRLCK, 10, 10);
    CALL(fcntl(a, F_SETLK, &l));
    CALL(fcntl(b, F_SETLK, &l)); /* the process's own */
    show(b, F_GETLK, lock(F_WRLCK, 0, 0));
    show(b, F_OFD_GETLK, lock(F_WRLCK, 0, 0));
    show(b, F_OFD_GETLK, lock(F_RDLCK, 0, 10));
    show(b, F_OFD_GETLK, lock(F_RDLCK, 19, 1));
    l = lock(F_UNLCK, 12, 3);
    CALL(fcntl(a, F_SETLK, &l));
    show(b, F_OFD_GETLK, lock(F_WRLCK, 12, 3));
    show(b, F_OFD_GETLK, lock(F_WRLCK, 12, 4));
    l = lock(F_RDLCK, 15, 5);
    CALL(fcntl(a, F_SETLK, &l));
    show(b, F_OFD_GETLK, lock(F_RDLCK, 15, 5));
    show(b, F_OFD_GETLK, lock(F_WRLCK, 15, 5));
    l = lock(F_WRLCK, 0, 12);
    CALL(fcntl(b, F_OFD_SETLK, &l));
    l = lock(F_WRLCK, 0, 10);
    CALL(fcntl(b, F_OFD_SETLK, &l));
    CALL(fcntl(a, F_SETLK, &l));
    CALL(fcntl(a, F_OFD_SETLK, &l));
    show(a, F_GETLK, lock(F_WRLCK, 0, 0));
    show(a, F_OFD_GETLK, lock(F_WRLCK, 0, 1));
    close(dup(a)); /* the process's are gone with any descriptor of the file, the open file's are not */
    show(b, F_OFD_GETLK, lock(F_WRLCK, 0, 0));
    show(a, F_OFD_GETLK, lock(F_WRLCK, 0, 0));
    l = lock(F_UNLCK, 0, 0);
    CALL(fcntl(b, F_OFD_SETLK, &l));
    show(a, F_OFD_GETLK, lock(F_WRLCK, 0, 0));
    /* Counted from elsewhere, and backwards. */
    CALL(lseek(a, 100, SEEK_SET));
    l = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_CUR, .l_start = -10, .l_len = -5};
    CALL(fcntl(a, F_OFD_SETLKW, &l));
    show(b, F_OFD_GETLK, lock(F_WRLCK, 0, 0));
    l = (struct flock){.l_type = F_UNLCK, .l_whence = SEEK_END, .l_start = 0, .l_len = 0};
    CALL(fcntl(a, F_OFD_SETLK, &l));
    show(b, F_OFD_GETLK, lock(F_WRLCK, 0, 0));
    CALL(lseek(a, 0, SEEK_SET));
}

static void bad(void)
{
    struct flock l = lock(F_WRLCK, 0, 0);
    CALL(fcntl(reader, F_SETLK, &l));
    l = lock(F_RDLCK, 0, 0);
    CALL(fcntl(reader, F_SETLK, &l));
    CALL(fcntl(-1, F_SETLK, &l));
    CALL(fcntl(a, F_SETLK, BAD));
    CALL(fcntl(a, F_GETLK, BAD));
    l = lock(F_RDLCK, -1, 0);
    CALL(fcntl(a, F_SETLK, &l));
    l = lock(F_RDLCK, 5, -6);
    CALL(fcntl(a, F_SETLK, &l));
    l = lock(7, 0, 0);
    CALL(fcntl(a, F_SETLK, &l));
    CALL(fcntl(a, F_GETLK, &l));
    l = lock(F_UNLCK, 0, 0);
    CALL(fcntl(a, F_GETLK, &l));
    l = lock(F_RDLCK, 0, 0);
    l.l_whence = 9;
    CALL(fcntl(a, F_SETLK, &l));
    l = lock(F_RDLCK, 0, 0);
    l.l_pid = 1;
    CALL(fcntl(a, F_OFD_SETLK, &l));
    int path = open("/tmp", O_PATH);
    CALL(fcntl(path, F_SETLK, &l));
    CALL(fcntl(path, F_GETFL));
    CALL(fcntl(path, F_SETFL, 0));
    CALL(fcntl(path, F_GETFD));
    CALL(fcntl(a, 9999));
}

int main(void)
{
    char name[] = "/tmp/locks-XXXXXX";
    a = mkstemp(name);
    b = open(name, O_RDWR);
    reader = open(name, O_RDONLY);
    whole_files();
    a = open(name, O_RDWR);
    waits(name);
    parts();
    bad();
    CALL(unlink(name));
    return done();
}
