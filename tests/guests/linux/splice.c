/* splice(2), tee(2), vmsplice(2), and how much a pipe holds. */
#define _GNU_SOURCE
#include "raw.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

static char text[1 << 17];

static void show(int fd)
{
    memset(text, 0, 64);
    ssize_t n = read(fd, text, 63);
    printf("    %zd \"%s\"\n", n, n > 0 ? text : "");
}

static void *later(void *fd)
{
    usleep(10000);
    write(*(int *)fd, "late", 4);
    return 0;
}

int main(void)
{
    char name[] = "/tmp/splice-XXXXXX";
    int file = mkstemp(name), p[2], q[2], s[2], end[2];
    CALL(pipe2(p, O_NONBLOCK));
    CALL(pipe(q));
    CALL(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    write(file, "0123456789", 10);
    loff_t at = 3, far = 100, negative = -1;
    RAW(splice, file, &at, p[1], 0, 4, 0);
    printf("    at %ld\n", (long)at);
    show(p[0]);
    RAW(splice, file, 0, p[1], 0, 4, 0); /* at its end */
    CALL(lseek(file, 2, SEEK_SET));
    RAW(splice, file, 0, p[1], 0, 100, SPLICE_F_MOVE | SPLICE_F_MORE);
    CALL(lseek(file, 0, SEEK_CUR));
    RAW(tee, p[0], q[1], 5, 0);
    show(q[0]);
    RAW(splice, p[0], 0, q[1], 0, 3, 0);
    show(q[0]);
    at = 20;
    RAW(splice, p[0], 0, file, &at, 100, 0);
    printf("    at %ld\n", (long)at);
    CALL(lseek(file, 0, SEEK_END));
    RAW(splice, file, &far, p[1], 0, 4, 0);
    RAW(splice, p[0], 0, q[1], 0, 4, 0); /* empty, and not to wait */
    RAW(splice, q[0], 0, p[1], 0, 4, SPLICE_F_NONBLOCK);
    RAW(tee, p[0], q[1], 4, 0);
    write(s[0], "socket", 6);
    RAW(splice, s[1], 0, p[1], 0, 100, 0);
    RAW(splice, p[0], 0, s[1], 0, 100, 0);
    show(s[0]);
    /* A wait. */
    pthread_t thread;
    pthread_create(&thread, 0, later, &q[1]);
    RAW(splice, q[0], 0, file, 0, 4, 0);
    pthread_join(thread, 0);
    /* Memory. */
    struct iovec parts[2] = {{"one ", 4}, {"two", 3}};
    RAW(vmsplice, p[1], parts, 2, 0);
    char first[5] = "", second[5] = "";
    struct iovec back[2] = {{first, 4}, {second, 4}};
    RAW(vmsplice, p[0], back, 2, 0);
    printf("    %s|%s\n", first, second);
    RAW(vmsplice, q[0], back, 2, SPLICE_F_NONBLOCK);
    RAW(vmsplice, p[1], BAD, 1, 0);
    RAW(vmsplice, p[1], parts, 0, 0);
    RAW(vmsplice, p[1], parts, 5000, 0);
    RAW(vmsplice, file, parts, 1, 0);
    RAW(vmsplice, p[1], parts, 1, 64);
    /* What can't be. */
    RAW(splice, file, 0, s[0], 0, 1, 0);
    RAW(splice, p[0], 0, p[1], 0, 1, 0);
    RAW(tee, p[0], p[1], 1, 0);
    RAW(tee, file, p[1], 1, 0);
    RAW(splice, p[0], &at, q[1], 0, 1, 0);
    RAW(splice, file, 0, p[1], &at, 1, 0);
    RAW(splice, file, &negative, p[1], 0, 1, 0);
    RAW(splice, file, BAD, p[1], 0, 1, 0);
    RAW(splice, file, 0, p[1], 0, 1, 64);
    RAW(splice, file, 0, p[1], 0, 0, 0);
    RAW(splice, -1, 0, p[1], 0, 1, 0);
    RAW(splice, file, 0, -1, 0, 1, 0);
    RAW(splice, p[1], 0, q[1], 0, 1, 0);
    RAW(splice, s[0], &at, p[1], 0, 1, 0);
    int append = open(name, O_WRONLY | O_APPEND);
    write(p[1], "x", 1);
    RAW(splice, p[0], 0, append, 0, 1, 0);
    show(p[0]);
    /* Nobody reads. */
    signal(SIGPIPE, SIG_IGN);
    CALL(pipe(end));
    close(end[0]);
    at = 0;
    RAW(splice, file, &at, end[1], 0, 1, 0);
    write(p[1], "x", 1);
    RAW(tee, p[0], end[1], 1, 0);
    close(end[1]);
    CALL(pipe(end));
    close(end[1]);
    RAW(splice, end[0], 0, file, 0, 1, 0);
    /* Sizes. */
    CALL(fcntl(q[0], F_GETPIPE_SZ));
    CALL(fcntl(q[0], F_SETPIPE_SZ, 5000));
    CALL(fcntl(q[1], F_GETPIPE_SZ));
    CALL(fcntl(q[1], F_SETPIPE_SZ, 0));
    CALL(fcntl(q[1], F_SETFL, O_NONBLOCK));
    CALL(write(q[1], text, 10000));
    CALL(fcntl(q[1], F_SETPIPE_SZ, 65536));
    CALL(write(q[1], text, sizeof text));
    CALL(fcntl(q[1], F_SETPIPE_SZ, 4096));
    CALL(fcntl(file, F_GETPIPE_SZ));
    CALL(unlink(name));
    return done();
}
