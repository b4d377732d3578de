/* epoll, and that poll and select agree with it. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

static int epoll;

static int add(int fd, uint32_t events)
{
    struct epoll_event event = {events, {.u64 = 0x1234567800000000 + fd}};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static int modify(int fd, uint32_t events)
{
    struct epoll_event event = {events, {.u64 = 0x1234567800000000 + fd}};
    return epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
}

/* What is ready, of one descriptor. */
static int ready(int fd)
{
    struct epoll_event events[8];
    int found = 0, n = epoll_wait(epoll, events, 8, 0);
    for (int i = 0; i < n; i++)
        if (events[i].data.u64 == 0x1234567800000000 + (uint64_t)fd) found = events[i].events;
    return found;
}

static void mistakes(void)
{
    struct epoll_event event = {EPOLLIN, {0}}, events[4];
    CALL(epoll_create(0));
    CALL(epoll_create1(1));
    epoll = epoll_create1(EPOLL_CLOEXEC);
    CHECK(fcntl(epoll, F_GETFD) == FD_CLOEXEC);
    int ends[2], file = open("/proc/self/maps", O_RDONLY);
    CHECK(pipe(ends) == 0 && file >= 0);
    CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, 99, &event));
    CALL(epoll_ctl(99, EPOLL_CTL_ADD, ends[0], &event));
    CALL(epoll_ctl(ends[0], EPOLL_CTL_ADD, ends[0], &event));
    CALL(epoll_ctl(ends[0], EPOLL_CTL_ADD, ends[1], &event));
    CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, epoll, &event));
    CALL(syscall(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, ends[0], NULL));
    CALL(epoll_ctl(epoll, 7, ends[0], &event));
    CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, ends[0], NULL));
    CALL(epoll_ctl(epoll, EPOLL_CTL_MOD, ends[0], &event));
    CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
    CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
    CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, ends[0], NULL));
    int folder = open("/proc/self", O_RDONLY | O_PATH);
    CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, folder, &event));
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0) CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, null, &event));
    CALL(epoll_wait(epoll, events, 0, 0));
    CALL(syscall(SYS_epoll_wait, epoll, events, -1, 0));
    CALL(epoll_wait(ends[0], events, 4, 0));
    CALL(epoll_wait(98, events, 4, 0));
    CALL(epoll_wait(epoll, events, 4, 0));
    CALL(epoll_wait(epoll, events, 4, 20));
    add(ends[1], EPOLLOUT);
    struct epoll_event *volatile nowhere = (struct epoll_event *)8;
    CALL(epoll_wait(epoll, nowhere, 4, 0));
    char byte;
    CALL(read(epoll, &byte, 1));
    CALL(write(epoll, &byte, 1));
    event.events = EPOLLIN | EPOLLEXCLUSIVE;
    CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
    CALL(epoll_ctl(epoll, EPOLL_CTL_MOD, ends[0], &event));
    event.events = EPOLLIN;
    CALL(epoll_ctl(epoll, EPOLL_CTL_MOD, ends[0], &event));
    event.events = EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT;
    int other[2];
    CHECK(pipe(other) == 0);
    CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, other[0], &event));
    close(other[0]);
    close(other[1]);
    close(ends[0]);
    close(ends[1]);
    close(epoll);
    close(file);
    close(null);
    close(folder);
}

static void levels_and_edges(void)
{
    int ends[2];
    char buffer[64];
    epoll = epoll_create1(0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    add(ends[0], EPOLLIN | EPOLLRDHUP);
    printf("nothing: %x\n", ready(ends[0]));
    CHECK(write(ends[1], "ab", 2) == 2);
    printf("level: %x", ready(ends[0]));
    printf(" %x\n", ready(ends[0]));
    CHECK(modify(ends[0], EPOLLIN | EPOLLET) == 0);
    printf("edge: %x", ready(ends[0]));
    printf(" %x", ready(ends[0]));
    CHECK(read(ends[0], buffer, 1) == 1);
    printf(" %x", ready(ends[0]));
    CHECK(write(ends[1], "c", 1) == 1);
    printf(" %x", ready(ends[0]));
    printf(" %x", ready(ends[0]));
    modify(ends[0], EPOLLIN | EPOLLET);
    printf(" %x\n", ready(ends[0]));
    modify(ends[0], EPOLLIN | EPOLLOUT | EPOLLET);
    printf("both: %x", ready(ends[0]));
    printf(" %x", ready(ends[0]));
    CHECK(write(ends[1], "c", 1) == 1);
    printf(" %x\n", ready(ends[0]));
    modify(ends[0], EPOLLIN | EPOLLONESHOT);
    printf("once: %x", ready(ends[0]));
    CHECK(write(ends[1], "c", 1) == 1);
    printf(" %x", ready(ends[0]));
    modify(ends[0], EPOLLIN | EPOLLONESHOT);
    printf(" %x", ready(ends[0]));
    printf(" %x\n", ready(ends[0]));
    modify(ends[0], 0);
    printf("none: %x", ready(ends[0]));
    CHECK(shutdown(ends[1], SHUT_WR) == 0);
    printf(" %x", ready(ends[0]));
    modify(ends[0], EPOLLRDHUP | EPOLLET);
    printf(" %x", ready(ends[0]));
    printf(" %x", ready(ends[0]));
    close(ends[1]);
    printf(" %x", ready(ends[0]));
    printf(" %x\n", ready(ends[0]));
    close(ends[0]);

    /* Room again. */
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    add(ends[0], EPOLLOUT | EPOLLET);
    printf("room: %x", ready(ends[0]));
    static char much[4096];
    while (write(ends[0], much, sizeof(much)) > 0) {}
    printf(" %x", ready(ends[0]));
    while (read(ends[1], much, sizeof(much)) > 0) {}
    printf(" %x", ready(ends[0]));
    printf(" %x\n", ready(ends[0]));
    close(ends[0]);
    close(ends[1]);

    int pipes[2];
    CHECK(pipe2(pipes, O_NONBLOCK) == 0);
    add(pipes[0], EPOLLIN | EPOLLET);
    add(pipes[1], EPOLLOUT | EPOLLET);
    printf("pipe: %x %x", ready(pipes[0]), ready(pipes[1]));
    CHECK(write(pipes[1], "x", 1) == 1);
    printf(" %x", ready(pipes[0]));
    CHECK(write(pipes[1], "x", 1) == 1);
    printf(" %x", ready(pipes[0]));
    printf(" %x", ready(pipes[0]));
    close(pipes[1]);
    printf(" %x\n", ready(pipes[0]));
    close(pipes[0]);
    close(epoll);
}

static void descriptions(void)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    epoll = epoll_create1(0);
    add(ends[0], EPOLLIN);
    int twin = dup(ends[0]);
    CALL(add(twin, EPOLLIN));
    CHECK(write(ends[1], "x", 1) == 1);
    struct epoll_event events[4];
    CALL(epoll_wait(epoll, events, 4, 0));
    CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, twin, NULL));
    /* Open by its twin, it is told of by a number that is closed. */
    close(ends[0]);
    CALL(epoll_wait(epoll, events, 4, 0));
    CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, twin, NULL));
    close(twin);
    CALL(epoll_wait(epoll, events, 4, 0));
    /* Nothing is left of it for the next one of that number. */
    int next[2];
    CHECK(pipe(next) == 0);
    CHECK(write(next[1], "x", 1) == 1);
    CALL(epoll_wait(epoll, events, 4, 0));
    CALL(add(next[0], EPOLLIN));
    int twin_epoll = dup(epoll);
    CALL(epoll_wait(twin_epoll, events, 4, 0));
    close(epoll);
    CALL(epoll_wait(twin_epoll, events, 4, 0));
    close(twin_epoll);

    /* More than is asked for: all get their turn. */
    epoll = epoll_create1(0);
    int counters[5], told = 0;
    for (int i = 0; i < 5; i++) {
        counters[i] = eventfd(1, 0);
        struct epoll_event event = {EPOLLIN, {.u32 = i}};
        CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, counters[i], &event) == 0);
    }
    for (int i = 0; i < 5; i++) {
        int n = epoll_wait(epoll, events, 2, 0);
        for (int k = 0; k < n; k++) told |= 1 << events[k].data.u32;
    }
    printf("told %x\n", told);
    for (int i = 0; i < 5; i++) close(counters[i]);
    CALL(epoll_wait(epoll, events, 4, 0));
    close(epoll);
}

static void nesting(void)
{
    struct epoll_event event = {EPOLLIN, {0}}, events[4];
    int level[8];
    for (int i = 0; i < 8; i++) level[i] = epoll_create1(0);
    int counter = eventfd(0, 0);
    epoll_ctl(level[0], EPOLL_CTL_ADD, counter, &event);
    for (int i = 1; i < 8; i++) {
        printf("%d: ", i);
        CALL(epoll_ctl(level[i], EPOLL_CTL_ADD, level[i - 1], &event));
    }
    CALL(epoll_ctl(level[0], EPOLL_CTL_ADD, level[2], &event));
    CALL(epoll_wait(level[2], events, 4, 0));
    eventfd_write(counter, 1);
    CALL(epoll_wait(level[2], events, 4, 0));
    struct pollfd polled = {level[1], POLLIN | POLLOUT, 0};
    CALL(poll(&polled, 1, 0));
    printf("%x\n", polled.revents);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(level[2], &set);
    CALL(select(level[2] + 1, &set, NULL, NULL, &(struct timeval){0, 0}));
    for (int i = 0; i < 8; i++) close(level[i]);
    close(counter);
}

static int ends[2];
static pthread_t first;

static void *writes(void *argument)
{
    struct timespec little = {0, 20000000};
    nanosleep(&little, NULL);
    if (argument) pthread_kill(first, SIGUSR1);
    nanosleep(&little, NULL);
    CHECK(write(ends[1], "x", 1) == 1);
    return argument;
}

static volatile int handled;

static void handles(int signal)
{
    (void)signal;
    handled++;
}

static void waiting(void)
{
    pthread_t thread;
    struct epoll_event events[4];
    char byte;
    first = pthread_self();
    epoll = epoll_create1(0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    add(ends[0], EPOLLIN);
    pthread_create(&thread, NULL, writes, NULL);
    CALL(epoll_wait(epoll, events, 4, -1));
    pthread_join(thread, NULL);
    CHECK(read(ends[0], &byte, 1) == 1);
    struct timespec time = {0, 20000000}, start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    CALL(syscall(SYS_epoll_pwait2, epoll, events, 4, &time, NULL, 8));
    clock_gettime(CLOCK_MONOTONIC, &end);
    CHECK((end.tv_sec - start.tv_sec) * 1000000000 + end.tv_nsec - start.tv_nsec >= 20000000);
    time.tv_nsec = -1;
    CALL(syscall(SYS_epoll_pwait2, epoll, events, 4, &time, NULL, 8));

    /* select's sets stay what they were until it returns. */
    fd_set set_of;
    FD_ZERO(&set_of);
    FD_SET(ends[0], &set_of);
    pthread_create(&thread, NULL, writes, NULL);
    CALL(select(ends[0] + 1, &set_of, NULL, NULL, &(struct timeval){10, 0}));
    CHECK(FD_ISSET(ends[0], &set_of));
    pthread_join(thread, NULL);
    CHECK(read(ends[0], &byte, 1) == 1);
    CALL(select(ends[0] + 1, &set_of, NULL, NULL, &(struct timeval){0, 20000}));
    CHECK(!FD_ISSET(ends[0], &set_of));

    signal(SIGUSR1, handles);
    pthread_create(&thread, NULL, writes, events);
    CALL(epoll_wait(epoll, events, 4, 10000));
    printf("%d handled\n", handled);
    pthread_join(thread, NULL);
    CHECK(read(ends[0], &byte, 1) == 1);

    sigset_t set, empty;
    sigemptyset(&empty);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    CALL(epoll_pwait(epoll, events, 4, 20, NULL));
    CALL(epoll_pwait(epoll, events, 4, 10000, &empty));
    printf("%d handled\n", handled);
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    CHECK(sigismember(&now, SIGUSR1) == 1);
    raise(SIGUSR1);
    CHECK(write(ends[1], "x", 1) == 1);
    CALL(epoll_pwait(epoll, events, 4, 10000, &empty));
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    printf("%d handled\n", handled);
    close(epoll);
}

int main(void)
{
    mistakes();
    levels_and_edges();
    descriptions();
    nesting();
    waiting();
    return done();
}
