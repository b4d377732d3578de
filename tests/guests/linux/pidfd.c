/* pidfd_open(2) and pidfd_send_signal(2) of the process itself and of its threads, and futex_waitv(2). */
#define _GNU_SOURCE
#include "raw.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREAD O_EXCL /* PIDFD_THREAD */
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

static volatile int signals, last, code, value;

static void on_signal(int number, siginfo_t *info, void *unused)
{
    (void)unused;
    signals++, last = number, code = info->si_code, value = info->si_value.sival_int;
}

static void said(void)
{
    printf("    %d signals, the last %d by %d with %d\n", signals, last, code, value);
}

static int out[2];
static volatile pid_t tid;

static void *waits(void *unused)
{
    tid = gettid();
    char byte;
    while (read(out[0], &byte, 1) < 0) /* interrupted */
        ;
    return unused;
}

static void *late(void *unused)
{
    usleep(20000);
    write(out[1], "", 1);
    return unused;
}

/* A thread, until it ends; says nothing, since Linux has had these since 6.9 only. */
static void thread_fd(void)
{
    CHECK(!pipe(out));
    pthread_t thread, other;
    pthread_create(&thread, 0, waits, 0);
    while (!tid) usleep(1000);
    int fd = syscall(SYS_pidfd_open, tid, THREAD);
    if (fd < 0 && errno == EINVAL) {
        write(out[1], "", 1);
        pthread_join(thread, 0);
        return;
    }
    struct pollfd of = {fd, POLLIN, 0};
    CHECK(poll(&of, 1, 0) == 0);
    CHECK(!syscall(SYS_pidfd_send_signal, fd, SIGUSR1, 0, 0));
    while (signals < 4) usleep(1000);
    CHECK(last == SIGUSR1 && code == SI_TKILL);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
    pthread_create(&other, 0, late, 0);
    CHECK(poll(&of, 1, -1) == 1 && of.revents & POLLIN);
    CHECK(epoll_wait(epoll, &event, 1, -1) == 1);
    pthread_join(thread, 0), pthread_join(other, 0);
    CHECK(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0) == -1 && errno == ESRCH);
    CHECK(syscall(SYS_pidfd_open, tid, THREAD) == -1 && errno == ESRCH);
    close(fd), close(epoll);
}

static void pidfds(void)
{
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    CHECK(self >= 0);
    CALL(fcntl(self, F_GETFD));
    CALL(fcntl(self, F_GETFL) & O_NONBLOCK);
    int now = syscall(SYS_pidfd_open, getpid(), O_NONBLOCK);
    CALL(fcntl(now, F_GETFL) & O_NONBLOCK);
    RAW(pidfd_open, getpid(), 1 << 20);
    RAW(pidfd_open, 0, 0);
    RAW(pidfd_open, -1, 0);
    RAW(pidfd_open, 1 << 22, 0);
    /* Nothing comes of it while the process is there. */
    struct pollfd of = {self, POLLIN, 0};
    CALL(poll(&of, 1, 0));
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, self, &event));
    CALL(epoll_wait(epoll, &event, 1, 0));
    char byte;
    CALL(read(self, &byte, 1));
    CALL(write(self, &byte, 1));
    siginfo_t none;
    CALL(waitid(P_PIDFD, self, &none, WEXITED | WNOHANG));
    CALL(waitid(P_PIDFD, 77, &none, WEXITED | WNOHANG));
    CALL(waitid(P_PIDFD, 0, &none, WEXITED | WNOHANG));
    /* Signals. */
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGRTMIN, &action, 0);
    RAW(pidfd_send_signal, self, 0, 0, 0);
    said();
    RAW(pidfd_send_signal, self, SIGUSR1, 0, 0);
    said();
    siginfo_t info = {.si_signo = SIGRTMIN, .si_code = SI_QUEUE};
    info.si_value.sival_int = 42;
    RAW(pidfd_send_signal, self, SIGRTMIN, &info, 0);
    said();
    RAW(pidfd_send_signal, self, SIGUSR1, &info, 0);
    RAW(pidfd_send_signal, self, SIGUSR1, BAD, 0);
    RAW(pidfd_send_signal, self, 99, 0, 0);
    RAW(pidfd_send_signal, self, SIGUSR1, 0, 1 << 20);
    RAW(pidfd_send_signal, 0, SIGUSR1, 0, 0);
    RAW(pidfd_send_signal, 77, SIGUSR1, 0, 0);
    said();
    char proc[40];
    snprintf(proc, sizeof proc, "/proc/%d", getpid());
    int folder = open(proc, O_RDONLY | O_DIRECTORY), other = open("/proc", O_RDONLY | O_DIRECTORY);
    RAW(pidfd_send_signal, folder, SIGUSR1, 0, 0);
    RAW(pidfd_send_signal, other, SIGUSR1, 0, 0);
    said();
    CHECK(!close(folder) && !close(other));
    thread_fd();
    CALL(close(self));
    RAW(pidfd_send_signal, self, 0, 0, 0);
}

static uint32_t words[3] = {10, 20, 30};

struct waiter {
    uint64_t value, address;
    uint32_t flags, reserved;
};

static void *wakes(void *which)
{
    usleep(20000);
    while (syscall(SYS_futex, &words[(long)which], FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, 0, 0, 0) == 0) usleep(1000);
    return 0;
}

static volatile int finished;
static pthread_t main_thread;

static void *interrupts(void *unused)
{
    while (!finished) usleep(5000), pthread_kill(main_thread, SIGUSR1);
    return unused;
}

static void futexes(void)
{
    struct waiter all[3];
    for (int i = 0; i < 3; i++) all[i] = (struct waiter){words[i], (uintptr_t)&words[i], 2 | FUTEX_PRIVATE_FLAG, 0};
    for (long i = 0; i < 3; i++) {
        pthread_t thread;
        pthread_create(&thread, 0, wakes, (void *)i);
        RAW(futex_waitv, all, 3, 0, 0, 0);
        pthread_join(thread, 0);
    }
    struct timespec past = {1, 0}, soon;
    RAW(futex_waitv, all, 3, 0, &past, CLOCK_MONOTONIC);
    RAW(futex_waitv, all, 3, 0, &past, CLOCK_REALTIME);
    clock_gettime(CLOCK_MONOTONIC, &soon);
    soon.tv_nsec += 10000000;
    if (soon.tv_nsec >= 1000000000) soon.tv_sec++, soon.tv_nsec -= 1000000000;
    RAW(futex_waitv, all, 1, 0, &soon, CLOCK_MONOTONIC);
    RAW(futex_waitv, all, 3, 0, &soon, CLOCK_BOOTTIME);
    soon.tv_nsec = -1;
    RAW(futex_waitv, all, 3, 0, &soon, CLOCK_MONOTONIC);
    RAW(futex_waitv, all, 3, 0, BAD, CLOCK_MONOTONIC);
    all[1].value = 21;
    RAW(futex_waitv, all, 3, 0, 0, 0);
    all[1].value = 20;
    all[1].reserved = 1;
    RAW(futex_waitv, all, 3, 0, 0, 0);
    all[1].reserved = 0, all[1].flags = FUTEX_PRIVATE_FLAG;
    RAW(futex_waitv, all, 3, 0, 0, 0);
    all[1].flags = 2 | 1 << 20;
    RAW(futex_waitv, all, 3, 0, 0, 0);
    all[1].flags = 2, all[1].address += 1;
    RAW(futex_waitv, all, 3, 0, 0, 0);
    all[1].address = 8;
    RAW(futex_waitv, all, 3, 0, 0, 0);
    RAW(futex_waitv, all, 0, 0, 0, 0);
    RAW(futex_waitv, all, 129, 0, 0, 0);
    RAW(futex_waitv, all, 1, 1, 0, 0);
    RAW(futex_waitv, 0, 1, 0, 0, 0);
    RAW(futex_waitv, BAD, 1, 0, 0, 0);
    /* A signal. */
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, 0);
    main_thread = pthread_self();
    pthread_t thread;
    pthread_create(&thread, 0, interrupts, 0);
    RAW(futex_waitv, all, 1, 0, 0, 0);
    finished = 1;
    pthread_join(thread, 0);
}

int main(void)
{
    pidfds();
    futexes();
    return done();
}
