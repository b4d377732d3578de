/* eventfd, timerfd, signalfd. */
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
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>

static short events(int fd)
{
    struct pollfd entry = {fd, POLLIN | POLLOUT, 0};
    poll(&entry, 1, 0);
    return entry.revents;
}

static int counter;

static void *adds(void *argument)
{
    struct timespec little = {0, 20000000};
    nanosleep(&little, NULL);
    uint64_t value = 7;
    CHECK(write(counter, &value, 8) == 8);
    return argument;
}

static void *empties(void *argument)
{
    struct timespec little = {0, 20000000};
    nanosleep(&little, NULL);
    uint64_t value = 0;
    CHECK(read(counter, &value, 8) == 8);
    CHECK(value == UINT64_MAX - 1);
    return argument;
}

static void counters(void)
{
    uint64_t value = 0, values[16];
    CALL(eventfd(0, 99));
    counter = eventfd(3, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(fcntl(counter, F_GETFD) == FD_CLOEXEC);
    CHECK(fcntl(counter, F_GETFL) == (O_RDWR | O_NONBLOCK));
    struct stat stat;
    CHECK(fstat(counter, &stat) == 0);
    printf("mode %o\n", stat.st_mode);
    CALL(lseek(counter, 0, SEEK_SET));
    printf("%x\n", events(counter));
    CALL(read(counter, &value, 7));
    CALL(read(counter, values, 100));
    CHECK(values[0] == 3);
    CALL(read(counter, &value, 8));
    printf("%x\n", events(counter));
    CALL(write(counter, &value, 4));
    value = UINT64_MAX;
    CALL(write(counter, &value, 8));
    value = UINT64_MAX - 1;
    CALL(write(counter, &value, 8));
    printf("%x\n", events(counter));
    value = 1;
    CALL(write(counter, &value, 8));
    value = 0;
    CALL(write(counter, &value, 8));
    fcntl(counter, F_SETFL, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, empties, NULL);
    value = 5;
    CALL(write(counter, &value, 8));
    pthread_join(thread, NULL);
    CALL(read(counter, &value, 8));
    pthread_create(&thread, NULL, adds, NULL);
    CALL(read(counter, &value, 8));
    CHECK(value == 7);
    pthread_join(thread, NULL);
    close(counter);

    counter = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
    for (int i = 0; i < 3; i++) {
        CALL(read(counter, &value, 8));
        CHECK(value == 1);
    }
    close(counter);

    counter = eventfd(0, EFD_NONBLOCK);
    int epoll = epoll_create1(0);
    struct epoll_event event = {EPOLLIN | EPOLLET, {0}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, counter, &event);
    value = 1;
    for (int i = 0; i < 2; i++) {
        CHECK(write(counter, &value, 8) == 8);
        CALL(epoll_wait(epoll, &event, 1, 0));
        CALL(epoll_wait(epoll, &event, 1, 0));
    }
    close(epoll);
    close(counter);
}

static void timers(void)
{
    uint64_t value = 0;
    struct itimerspec set = {{0, 0}, {0, 20000000}}, old;
    CALL(timerfd_create(99, 0));
    CALL(timerfd_create(CLOCK_MONOTONIC, 1));
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    CALL(timerfd_settime(0, 0, &set, NULL));
    CALL(timerfd_settime(timer, 8, &set, NULL));
    CALL(timerfd_settime(timer, 0, NULL, NULL));
    CALL(read(timer, &value, 8));
    CALL(read(timer, &value, 4));
    CALL(write(timer, &value, 8));
    printf("%x\n", events(timer));
    CALL(timerfd_settime(timer, 0, &set, &old));
    CHECK(old.it_value.tv_sec == 0 && old.it_value.tv_nsec == 0);
    CALL(timerfd_gettime(timer, &old));
    CHECK(old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 20000000);
    CALL(poll(&(struct pollfd){timer, POLLIN, 0}, 1, 10000));
    printf("%x\n", events(timer));
    CALL(read(timer, &value, 8));
    CHECK(value == 1);
    CALL(read(timer, &value, 8));
    CALL(timerfd_gettime(timer, &old));
    CHECK(old.it_value.tv_nsec == 0);
    /* Again and again. */
    set.it_interval.tv_nsec = 10000000;
    CALL(timerfd_settime(timer, 0, &set, NULL));
    struct timespec time = {0, 100000000};
    nanosleep(&time, NULL);
    CALL(read(timer, &value, 8));
    CHECK(value >= 8);
    fcntl(timer, F_SETFL, 0);
    CALL(read(timer, &value, 8));
    CHECK(value >= 1);
    int epoll = epoll_create1(0);
    struct epoll_event event = {EPOLLIN | EPOLLET, {0}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
    for (int i = 0; i < 3; i++) CALL(epoll_wait(epoll, &event, 1, 1000));
    set = (struct itimerspec){{0, 0}, {0, 0}};
    CALL(timerfd_settime(timer, 0, &set, &old));
    CHECK(old.it_interval.tv_nsec == 10000000);
    fcntl(timer, F_SETFL, O_NONBLOCK);
    CALL(read(timer, &value, 8));
    CALL(epoll_wait(epoll, &event, 1, 20));
    close(epoll);
    /* At a time, on both clocks; one that is past is now. */
    clock_gettime(CLOCK_MONOTONIC, &set.it_value);
    set.it_value.tv_sec -= 1;
    CALL(timerfd_settime(timer, TFD_TIMER_ABSTIME, &set, NULL));
    CALL(read(timer, &value, 8));
    close(timer);
    timer = timerfd_create(CLOCK_REALTIME, 0);
    clock_gettime(CLOCK_REALTIME, &set.it_value);
    set.it_value.tv_nsec += 20000000;
    if (set.it_value.tv_nsec >= 1000000000) {
        set.it_value.tv_nsec -= 1000000000;
        set.it_value.tv_sec++;
    }
    CALL(timerfd_settime(timer, TFD_TIMER_ABSTIME, &set, NULL));
    CALL(read(timer, &value, 8));
    set.it_value.tv_nsec = 1000000000;
    CALL(timerfd_settime(timer, 0, &set, NULL));
    close(timer);
}

static pthread_t first;

static void *sends(void *argument)
{
    struct timespec little = {0, 20000000};
    nanosleep(&little, NULL);
    pthread_kill(first, SIGUSR1);
    return argument;
}

static void signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    CALL(signalfd(-1, &set, 99));
    CALL(signalfd(0, &set, 0));
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    struct signalfd_siginfo info[4];
    printf("%x\n", events(fd));
    CALL(read(fd, info, sizeof(info)));
    CALL(read(fd, info, 100));
    CALL(write(fd, info, 128));
    raise(SIGUSR1);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 4711});
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 4712});
    printf("%x\n", events(fd));
    CALL(read(fd, info, 2 * sizeof(info[0])));
    CHECK(info[0].ssi_signo == SIGUSR1 && info[0].ssi_code == SI_TKILL);
    CHECK(info[0].ssi_pid == (uint32_t)getpid() && info[0].ssi_uid == getuid());
    CHECK(info[1].ssi_signo == (uint32_t)SIGRTMIN && info[1].ssi_int == 4711);
    CALL(read(fd, info, sizeof(info)));
    CHECK(info[0].ssi_int == 4712 && info[0].ssi_code == SI_QUEUE);
    CALL(read(fd, info, sizeof(info)));
    fcntl(fd, F_SETFL, 0);
    first = pthread_self();
    pthread_t thread;
    pthread_create(&thread, NULL, sends, NULL);
    CALL(poll(&(struct pollfd){fd, POLLIN, 0}, 1, 10000));
    CALL(read(fd, info, sizeof(info)));
    pthread_join(thread, NULL);
    pthread_create(&thread, NULL, sends, NULL);
    CALL(read(fd, info, sizeof(info)));
    pthread_join(thread, NULL);
    /* Another set for the same. */
    sigdelset(&set, SIGUSR1);
    CHECK(signalfd(fd, &set, 0) == fd);
    raise(SIGUSR1);
    printf("%x\n", events(fd));
    signal(SIGUSR1, SIG_IGN);
    close(fd);
}

int main(void)
{
    counters();
    timers();
    signals();
    return done();
}
