/* Descriptors: dup(2) and its relatives, close_range(2), fcntl(2), ioctl(2), pipes; waiting for them by all forms of poll(2),
 * select(2) and epoll_wait(2); and those that stand for something else. */
#define _GNU_SOURCE
#include "raw.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>

#define LAST 8
static sigset_t set;
static struct timespec soon = {0, 1000000}, wrong = {0, -1};
static struct timeval soon_v = {0, 1000}, wrong_v = {-1, 0};

static void duplicates(void)
{
    int p[2];
    RAW(pipe, p);
    RAW(pipe, BAD);
    RAW(pipe2, p, O_CLOEXEC | O_NONBLOCK);
    printf("    %x %x\n", fcntl(p[0], F_GETFD), fcntl(p[0], F_GETFL));
    RAW(pipe2, p, 1 << 30);
    RAW(pipe2, BAD, 0);
    RAW(dup, 1);
    RAW(dup, 999);
    RAW(dup2, 1, 20);
    RAW(dup2, 20, 20);
    RAW(dup2, 99, 99);
    RAW(dup2, 1, -1);
    RAW(dup2, 1, 1 << 20);
    RAW(dup3, 1, 21, O_CLOEXEC);
    RAW(fcntl, 21, F_GETFD);
    RAW(dup3, 1, 1, 0);
    RAW(dup3, 1, 22, 77);
    RAW(dup3, 99, 22, 0);
    RAW(dup3, 1, -1, 0);
    RAW(fcntl, 1, F_DUPFD, 30);
    RAW(fcntl, 1, F_DUPFD_CLOEXEC, 30);
    RAW(fcntl, 31, F_GETFD);
    RAW(fcntl, 31, F_SETFD, 0);
    RAW(fcntl, 31, F_GETFD);
    RAW(fcntl, 1, F_DUPFD, -1);
    RAW(fcntl, 99, F_DUPFD, 0);
    RAW(close_range, 30, 31, 0);
    RAW(fcntl, 31, F_GETFD);
    RAW(close_range, 20, 21, CLOSE_RANGE_CLOEXEC);
    RAW(fcntl, 20, F_GETFD);
    RAW(close_range, 10, -1, 0);
    RAW(close_range, 5, 4, 0);
    RAW(close_range, 10, 11, 99);
    RAW(close, 20);
    RAW(close, -1);
    int n = 0;
    write(4, "abc", 3);
    RAW(ioctl, 3, FIONREAD, &n);
    printf("    %d\n", n);
    RAW(ioctl, 3, FIONREAD, BAD);
    n = 1;
    RAW(ioctl, 3, FIONBIO, &n);
    RAW(fcntl, 3, F_GETFL);
    RAW(ioctl, 3, FIOCLEX);
    RAW(fcntl, 3, F_GETFD);
    RAW(ioctl, 3, FIONCLEX);
    RAW(ioctl, 3, TCGETS, BAD);
    RAW(ioctl, 3, 0x12345);
    RAW(ioctl, 999, FIOCLEX);
}

/* 3 and 4 are a pipe with three bytes in it; 5 and 6 an empty one. */
static void waits(void)
{
    struct pollfd fds[3] = {{3, POLLIN, 0}, {5, POLLIN | POLLOUT, 0}, {999, POLLIN, 0}};
    RAW(poll, fds, 3, -1);
    printf("    %x %x %x\n", fds[0].revents, fds[1].revents, fds[2].revents);
    RAW(poll, fds + 1, 1, 1);
    RAW(poll, 0, 0, 1);
    RAW(poll, BAD, 1, 0);
    RAW(poll, fds, -1, 0);
    fds[0].fd = -1;
    RAW(poll, fds, 1, 0);
    fds[0].fd = 4;
    fds[0].events = POLLOUT;
    RAW(ppoll, fds, 1, &soon, &set, 8);
    RAW(ppoll, fds + 1, 1, &soon, 0, 8);
    printf("    %ld %ld\n", (long)soon.tv_sec, soon.tv_nsec);
    soon.tv_nsec = 1000000;
    RAW(ppoll, fds, 1, &wrong, 0, 8);
    RAW(ppoll, fds, 1, 0, &set, 4);
    RAW(ppoll, fds, 1, BAD, 0, 8);
    RAW(ppoll, fds, 1, 0, BAD, 8);
    fd_set r, w;
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_SET(3, &r);
    FD_SET(5, &r);
    FD_SET(6, &w);
    RAW(select, 7, &r, &w, 0, 0);
    printf("    %lx %lx\n", r.fds_bits[0], w.fds_bits[0]);
    FD_ZERO(&r);
    FD_SET(5, &r);
    RAW(select, 7, &r, 0, 0, &soon_v);
    printf("    %lx, %ld left\n", r.fds_bits[0], (long)soon_v.tv_usec);
    soon_v.tv_usec = 1000;
    FD_SET(100, &r);
    /* select(2), BUGS: descriptors beyond the table are ignored, and how large that is, is inherited: large enough, here. */
    close(fcntl(1, F_DUPFD, 200));
    RAW(select, 101, &r, 0, 0, &soon_v);
    RAW(select, -1, 0, 0, 0, &soon_v);
    RAW(select, 3, BAD, 0, 0, 0);
    RAW(select, 0, 0, 0, 0, &wrong_v);
    RAW(select, 0, 0, 0, 0, BAD);
    struct {
        const sigset_t *mask;
        size_t size;
    } mask = {&set, 8}, short_mask = {&set, 4};
    FD_ZERO(&w);
    FD_SET(4, &w);
    RAW(pselect6, 7, 0, &w, 0, &soon, &mask);
    RAW(pselect6, 7, 0, &w, 0, &soon, 0);
    RAW(pselect6, 7, 0, &w, 0, &soon, &short_mask);
    RAW(pselect6, 7, 0, &w, 0, &wrong, 0);
    RAW(pselect6, 7, 0, &w, 0, &soon, BAD);
    RAW(epoll_create, 1);
    RAW(epoll_create, 0);
    RAW(epoll_create1, EPOLL_CLOEXEC);
    RAW(epoll_create1, 1);
    struct epoll_event event = {EPOLLIN, {.u64 = 7}}, got[2];
    RAW(epoll_ctl, LAST, EPOLL_CTL_ADD, 3, &event);
    RAW(epoll_ctl, LAST, EPOLL_CTL_ADD, 3, &event);
    RAW(epoll_ctl, LAST, EPOLL_CTL_MOD, 5, &event);
    RAW(epoll_ctl, LAST, EPOLL_CTL_DEL, 5, 0);
    RAW(epoll_ctl, LAST, EPOLL_CTL_ADD, LAST, &event);
    RAW(epoll_ctl, LAST, EPOLL_CTL_ADD, 999, &event);
    RAW(epoll_ctl, 3, EPOLL_CTL_ADD, 5, &event);
    RAW(epoll_ctl, LAST, 9, 5, &event);
    RAW(epoll_ctl, LAST, EPOLL_CTL_ADD, 5, BAD);
    RAW(epoll_wait, LAST, got, 2, -1);
    printf("    %x %lu\n", got[0].events, got[0].data.u64);
    RAW(epoll_pwait, LAST, got, 2, 0, &set, 8);
    RAW(epoll_pwait, LAST, got, 2, 0, &set, 4);
    RAW(epoll_pwait2, LAST, got, 2, &soon, 0, 8);
    RAW(epoll_pwait2, LAST, got, 2, &wrong, 0, 8);
    RAW(epoll_pwait2, LAST, got, 2, BAD, 0, 8);
    RAW(epoll_wait, LAST, got, 0, 0);
    RAW(epoll_wait, LAST, got, -1, 0);
    RAW(epoll_wait, LAST, BAD, 1, 0);
    RAW(epoll_wait, 3, got, 1, 0);
    RAW(epoll_wait, 999, got, 1, 0);
    event.events = EPOLLIN | EPOLLEXCLUSIVE;
    RAW(epoll_ctl, LAST, EPOLL_CTL_MOD, 3, &event);
    RAW(epoll_ctl, LAST, EPOLL_CTL_ADD, 5, &event);
    event.events = EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT;
    RAW(epoll_ctl, LAST, EPOLL_CTL_ADD, 6, &event);
}

static void others(void)
{
    uint64_t n = 0;
    int e = syscall(SYS_eventfd, 3);
    RAW(read, e, &n, 8);
    printf("    %lu\n", n);
    int e2 = syscall(SYS_eventfd2, 2, EFD_SEMAPHORE | EFD_NONBLOCK);
    RAW(read, e2, &n, 8);
    RAW(read, e2, &n, 8);
    RAW(read, e2, &n, 8);
    n = -1;
    RAW(write, e2, &n, 8);
    RAW(write, e2, &n, 4);
    RAW(read, e2, &n, 4);
    RAW(read, e2, BAD, 8);
    RAW(eventfd2, 0, 77);
    RAW(lseek, e2, 0, SEEK_SET);
    int t = syscall(SYS_timerfd_create, CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec spec = {{0, 0}, {0, 1000}}, got, odd = {{0, 0}, {0, 1000000000}};
    RAW(read, t, &n, 8);
    RAW(timerfd_settime, t, 0, &spec, 0);
    struct pollfd over = {t, POLLIN, 0};
    RAW(poll, &over, 1, -1);
    RAW(read, t, &n, 8);
    printf("    %lu\n", n);
    RAW(timerfd_gettime, t, &got);
    printf("    %ld %ld\n", (long)got.it_value.tv_sec, got.it_value.tv_nsec);
    RAW(timerfd_settime, t, 99, &spec, 0);
    RAW(timerfd_settime, t, 0, &odd, 0);
    RAW(timerfd_settime, t, 0, BAD, 0);
    RAW(timerfd_settime, 3, 0, &spec, 0);
    RAW(timerfd_gettime, t, BAD);
    RAW(timerfd_gettime, 3, &got);
    RAW(timerfd_gettime, 999, &got);
    RAW(timerfd_create, 99, 0);
    RAW(timerfd_create, 0, 99);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGUSR2);
    sigprocmask(SIG_BLOCK, &one, 0);
    int s = syscall(SYS_signalfd4, -1, &one, 8, SFD_NONBLOCK), s2 = syscall(SYS_signalfd, -1, &one, 8);
    struct signalfd_siginfo info = {0};
    RAW(read, s, &info, sizeof info);
    raise(SIGUSR2);
    RAW(read, s2, &info, sizeof info);
    printf("    %u %d\n", info.ssi_signo, info.ssi_code);
    RAW(read, s, &info, 4);
    RAW(signalfd4, s, &one, 8, 0) ;
    RAW(signalfd4, 3, &one, 8, 0);
    RAW(signalfd4, -1, &one, 4, 0);
    RAW(signalfd4, -1, BAD, 8, 0);
    RAW(signalfd4, -1, &one, 8, 99);
    int i = syscall(SYS_inotify_init), i2 = syscall(SYS_inotify_init1, IN_NONBLOCK | IN_CLOEXEC);
    RAW(inotify_add_watch, i, "/tmp", IN_CREATE);
    RAW(inotify_add_watch, i, "/tmp/no-such", IN_CREATE);
    RAW(inotify_add_watch, 3, "/tmp", IN_CREATE);
    RAW(inotify_add_watch, i, "/tmp", 0);
    RAW(inotify_add_watch, i, BAD, IN_CREATE);
    RAW(inotify_add_watch, 999, "/tmp", IN_CREATE);
    char text[100];
    RAW(read, i2, text, 100);
    RAW(inotify_rm_watch, i, 1);
    RAW(inotify_rm_watch, i, 9);
    RAW(inotify_rm_watch, 3, 1);
    RAW(inotify_rm_watch, 999, 1);
    RAW(inotify_init1, 77);
    int m = syscall(SYS_memfd_create, "name", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    RAW(write, m, "bytes", 5);
    RAW(fcntl, m, F_GET_SEALS);
    RAW(fcntl, m, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    RAW(ftruncate, m, 1);
    RAW(ftruncate, m, 10);
    RAW(write, m, "more", 4);
    RAW(pwrite64, m, "B", 1, 0);
    RAW(fcntl, m, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL);
    RAW(pwrite64, m, "B", 1, 0);
    RAW(fcntl, m, F_ADD_SEALS, F_SEAL_WRITE);
    RAW(fcntl, 3, F_GET_SEALS);
    RAW(memfd_create, BAD, 0);
    RAW(memfd_create, "x", 1 << 20);
}

int main(void)
{
    sigemptyset(&set);
    duplicates();
    waits();
    others();
    return done();
}
