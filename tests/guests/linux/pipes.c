/* Writes to pipes that have too little room: they wait, come short, or are ended by signals and by readers that leave. */
#define _GNU_SOURCE
#include "raw.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define LARGE 300000
#define HOLDS 65536

static char bytes[LARGE] __attribute__((aligned(4096))), got[LARGE];

/* Reads so much, some bytes at a time. */
struct reader {
    int fd;
    size_t len, step, done;
    unsigned wait;
};

static void *reads(void *arg)
{
    struct reader *reader = arg;
    while (reader->done < reader->len) {
        if (reader->wait) usleep(reader->wait);
        size_t left = reader->len - reader->done;
        ssize_t n = read(reader->fd, got + reader->done, left < reader->step ? left : reader->step);
        if (n <= 0) break;
        reader->done += (size_t)n;
    }
    return 0;
}

static void fill(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    while (write(fd, bytes, 4096) > 0)
        ;
    fcntl(fd, F_SETFL, flags);
}

static void whole(void)
{
    int p[2];
    struct reader reader = {0, LARGE, 5000, 0, 300};
    pthread_t thread;
    CALL(pipe(p));
    reader.fd = p[0];
    pthread_create(&thread, 0, reads, &reader);
    CALL(write(p[1], bytes, LARGE));
    pthread_join(thread, 0);
    CHECK(!memcmp(bytes, got, LARGE));
    /* In pieces, empty ones among them. */
    struct iovec parts[5] = {{bytes, 70000}, {bytes, 0}, {bytes + 70000, 1}, {bytes + 70001, 129999}, {bytes + 200000, 100000}};
    memset(got, 0, sizeof got);
    reader.done = 0;
    pthread_create(&thread, 0, reads, &reader);
    CALL(writev(p[1], parts, 5));
    pthread_join(thread, 0);
    CHECK(!memcmp(bytes, got, LARGE));
    /* The smallest pipe. */
    CALL(fcntl(p[1], F_SETPIPE_SZ, 4096));
    memset(got, 0, sizeof got);
    reader.done = 0, reader.wait = 0, reader.step = 1000;
    pthread_create(&thread, 0, reads, &reader);
    CALL(write(p[1], bytes, LARGE));
    pthread_join(thread, 0);
    CHECK(!memcmp(bytes, got, LARGE));
    close(p[0]), close(p[1]);
}

static void without_waiting(void)
{
    int p[2];
    CALL(pipe2(p, O_NONBLOCK));
    CALL(write(p[1], bytes, LARGE));
    CALL(write(p[1], bytes, 1));
    CALL(write(p[1], bytes, 0));
    CALL(read(p[0], got, 4096));
    CALL(write(p[1], bytes, 5000));
    CALL(read(p[0], got, 4096));
    CALL(write(p[1], bytes, 4096));
    CALL(read(p[0], got, 4096));
    struct iovec parts[2] = {{bytes, 4000}, {bytes, 96}};
    CALL(writev(p[1], parts, 2));
    struct iovec many[2] = {{bytes, 4000}, {bytes, 97}};
    CALL(writev(p[1], many, 2));
    CALL(read(p[0], got, 8192));
    RAW(write, p[1], BAD, 100);
    RAW(write, p[1], BAD, 0);
    close(p[0]), close(p[1]);
}

/* Who writes at once: what is not longer than PIPE_BUF stays together. */
static void *writes_lines(void *arg)
{
    int *fd = arg;
    char line[512];
    memset(line, fd[1], sizeof line);
    for (int i = 0; i < 300; i++) CHECK(write(fd[0], line, sizeof line) == sizeof line);
    return 0;
}

static void together(void)
{
    int p[2];
    pthread_t threads[3];
    CALL(pipe(p));
    int who[3][2] = {{p[1], 'a'}, {p[1], 'b'}, {p[1], 'c'}};
    for (int i = 0; i < 3; i++) pthread_create(&threads[i], 0, writes_lines, who[i]);
    int broken = 0, all = 0;
    for (char line[512]; all < 900; all++) {
        for (size_t done = 0; done < sizeof line;) {
            ssize_t n = read(p[0], line + done, sizeof line - done);
            if (n <= 0) break;
            done += (size_t)n;
        }
        for (size_t i = 1; i < sizeof line; i++) broken += line[i] != line[0];
    }
    for (int i = 0; i < 3; i++) pthread_join(threads[i], 0);
    printf("%d lines, %d broken\n", all, broken);
    close(p[0]), close(p[1]);
}

static volatile int signals, finished;

static void on_signal(int number)
{
    (void)number;
    signals++;
}

static pthread_t main_thread;

static void wait_until_full(int fd)
{
    for (struct pollfd of = {fd, POLLOUT, 0}; poll(&of, 1, 0) == 1;) usleep(1000);
}

/* Interrupts a write that fills the pipe. */
static void *interrupts(void *fd)
{
    wait_until_full(*(int *)fd);
    while (!finished) {
        pthread_kill(main_thread, SIGUSR1);
        usleep(10000);
    }
    return 0;
}

/* Interrupts, and then makes room. */
static void *makes_room(void *reader)
{
    usleep(20000);
    pthread_kill(main_thread, SIGUSR1);
    usleep(20000);
    return reads(reader);
}

static void interrupted(void)
{
    int p[2];
    pthread_t thread;
    struct sigaction action = {.sa_handler = on_signal};
    main_thread = pthread_self();
    sigaction(SIGUSR1, &action, 0);
    CALL(pipe(p));
    for (int i = 0; i < 2; i++) {
        finished = 0;
        pthread_create(&thread, 0, interrupts, &p[1]);
        CALL(write(p[1], bytes, LARGE)); /* the second writes nothing */
        finished = 1;
        pthread_join(thread, 0);
        CHECK(signals > 0);
    }
    /* One that is made again. */
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, 0);
    struct reader reader = {p[0], HOLDS + 4096, 4096, 0, 0};
    pthread_create(&thread, 0, makes_room, &reader);
    CALL(write(p[1], bytes, 4096));
    pthread_join(thread, 0);
    /* Not one that has written something. */
    finished = 0;
    pthread_create(&thread, 0, interrupts, &p[1]);
    CALL(write(p[1], bytes, LARGE));
    finished = 1;
    pthread_join(thread, 0);
    close(p[0]), close(p[1]);
}

/* Both ends. */
static void *leaves(void *fds)
{
    wait_until_full(((int *)fds)[1]);
    close(((int *)fds)[0]);
    return 0;
}

static void reader_leaves(void)
{
    int p[2];
    pthread_t thread;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGPIPE, &action, 0);
    signals = 0;
    CALL(pipe(p));
    pthread_create(&thread, 0, leaves, p);
    CALL(write(p[1], bytes, LARGE));
    pthread_join(thread, 0);
    printf("    %d signals\n", signals);
    CALL(write(p[1], bytes, 1));
    CALL(write(p[1], bytes, 0));
    close(p[1]);
    CALL(pipe(p));
    fill(p[1]);
    pthread_create(&thread, 0, leaves, p);
    CALL(write(p[1], bytes, 1));
    pthread_join(thread, 0);
    printf("    %d signals\n", signals);
    close(p[1]);
}

/* A call that moves bytes into a pipe waits for the first of them only. */
static void moved(void)
{
    char name[] = "/tmp/pipes-XXXXXX";
    int file = mkstemp(name), p[2], q[2], s[2];
    pthread_t thread;
    CALL(pipe(p));
    CALL(pipe(q));
    CHECK(write(file, bytes, LARGE) == LARGE);
    lseek(file, 0, SEEK_SET);
    RAW(splice, file, 0, p[1], 0, LARGE, 0);
    RAW(splice, file, 0, p[1], 0, 4096, SPLICE_F_NONBLOCK);
    struct reader reader = {p[0], HOLDS, HOLDS, 0, 20000};
    pthread_create(&thread, 0, reads, &reader);
    RAW(splice, file, 0, p[1], 0, 4096, 0);
    pthread_join(thread, 0);
    CALL(lseek(file, 0, SEEK_CUR));
    RAW(tee, p[0], q[1], LARGE, 0);
    fill(q[1]);
    fill(p[1]);
    reader.fd = q[0], reader.done = 0;
    pthread_create(&thread, 0, reads, &reader);
    RAW(tee, p[0], q[1], 4096, 0);
    pthread_join(thread, 0);
    CALL(read(q[0], got, LARGE));
    struct iovec part = {bytes, LARGE};
    RAW(vmsplice, q[1], &part, 1, 0);
    RAW(vmsplice, q[1], &part, 1, SPLICE_F_NONBLOCK);
    CALL(read(q[0], got, LARGE));
    lseek(file, 0, SEEK_SET);
    CALL(sendfile(q[1], file, 0, LARGE));
    CALL(lseek(file, 0, SEEK_CUR));
    reader.done = 0;
    pthread_create(&thread, 0, reads, &reader);
    off_t at = 10;
    CALL(sendfile(q[1], file, &at, 4096));
    printf("    at %ld\n", (long)at);
    pthread_join(thread, 0);
    /* To a socket all of it goes. */
    CALL(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    struct reader of_socket = {s[1], LARGE, 5000, 0, 100};
    lseek(file, 0, SEEK_SET);
    pthread_create(&thread, 0, reads, &of_socket);
    CALL(sendfile(s[0], file, 0, LARGE));
    CALL(lseek(file, 0, SEEK_CUR));
    pthread_join(thread, 0);
    CHECK(!memcmp(bytes, got, LARGE));
    at = 100;
    of_socket.done = 0, of_socket.len = LARGE - 100;
    pthread_create(&thread, 0, reads, &of_socket);
    CALL(sendfile(s[0], file, &at, 2 * LARGE));
    printf("    at %ld\n", (long)at);
    pthread_join(thread, 0);
    CHECK(!memcmp(bytes + 100, got, LARGE - 100));
    /* At the file's end there is nothing to wait for; nor where nobody reads any more. */
    at = LARGE - 10;
    CALL(sendfile(s[0], file, &at, LARGE));
    CALL(sendfile(s[0], file, &at, LARGE));
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGPIPE, &action, 0);
    signals = 0, at = 0;
    close(s[1]), close(q[0]);
    CALL(sendfile(s[0], file, &at, 10));
    CALL(sendfile(q[1], file, &at, 10));
    printf("    at %ld, %d signals\n", (long)at, signals);
    unlink(name);
}

int main(void)
{
    for (size_t i = 0; i < LARGE; i++) bytes[i] = (char)(i * 7 + i / 251);
    whole();
    without_waiting();
    together();
    interrupted();
    reader_leaves();
    moved();
    return done();
}
