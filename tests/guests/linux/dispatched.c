/* A server that makes the calls which its connection's bytes ask for, those foremost that the machine's dispatcher may answer. What
 * comes of them goes to standard error: the same, whoever has answered.
 *
 * Arguments: how it waits ("accept", "level", "edge"), whether its connection blocks ("blocks", "never").
 * A connection: how many operations follow, as two bytes; the operations, eight bytes each; anything else.
 */
#define _GNU_SOURCE
#include "listening.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define OPS 64
#define ROOM (1 << 16)

struct op {
    uint8_t what, a;
    uint16_t b;
    uint32_t c;
};

static char log_[1 << 18];
static size_t logged;
static int listener, connection = -1, copy = -1, counter, epolls[2], blocks;
static char *buffer, *fresh, *locked;
static uint32_t words[4];
static volatile int handled;

static void say(const char *name, long result, const void *data, size_t len)
{
    uint32_t sum = 2166136261u;
    for (size_t i = 0; i < len; i++) sum = (sum ^ ((const unsigned char *)data)[i]) * 16777619u;
    logged += snprintf(log_ + logged, sizeof log_ - logged, "%s %ld %d %zu %08x\n", name, result, result == -1 ? errno : 0, len, sum);
}

/* What is there after an error is nobody's to say. */
static void say_read(const char *name, long result)
{
    say(name, result, buffer, result < 0 ? 0 : 4096);
    if (result < 0) memset(buffer, 1, ROOM);
}

static void on_signal(int number) { handled += number; }

static void *waiter(void *word)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    return NULL;
}

/* A read that would wait is left out where it does wait. */
static int may_read(void)
{
    int there = 0;
    return !blocks || (ioctl(connection, FIONREAD, &there) == 0 && there > 0);
}

/* Some place to write to, or one that can't be: pages that were never touched, the end of what is mapped. */
static char *place(int which)
{
    switch ((unsigned)which % 8) {
    case 0: return fresh + (unsigned)which / 8 % 60 * 4096;
    case 1: return fresh + 4096 - 7;
    case 2: return buffer + ROOM - 5; /* nothing is mapped behind it */
    case 3: return locked;            /* read only */
    case 4: return (char *)8;
    case 5: return (char *)0x8000000000000000;
    default: return buffer;
    }
}

static size_t pieces(struct iovec *vector, const struct op *op)
{
    size_t count = op->a % 10, at = 0;
    for (size_t i = 0; i < count; i++) {
        vector[i] = (struct iovec){buffer + at, (op->c >> (3 * i)) % 8 * 61};
        at += vector[i].iov_len;
    }
    if (op->b % 16 == 0 && count) vector[count - 1].iov_base = place(op->b / 16);
    return count;
}

static int some_descriptor(int which)
{
    const int all[] = {connection, listener, counter, epolls[0], epolls[1], -1, 77, 0};
    return which % 3 ? connection : all[which / 3 % 8];
}

static void names(const struct op *op)
{
    union {
        struct sockaddr any;
        char bytes[128];
    } address;
    memset(&address, 0, sizeof address);
    socklen_t len = op->b % 40;
    int peer = op->a & 1;
    void *to = op->a % 16 == 3 ? (void *)place(op->c) : &address;
    long result = peer ? getpeername(some_descriptor(op->a), to, &len) : getsockname(some_descriptor(op->a), to, &len);
    say(peer ? "peer" : "name", result, to == &address ? address.bytes : 0, to == &address ? 40 : 0);
    say("len", len, 0, 0);
}

static void options(const struct op *op)
{
    const int levels[] = {IPPROTO_TCP, SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP};
    const int of_tcp[] = {TCP_NODELAY, TCP_CORK, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_QUICKACK, TCP_MAXSEG, 99};
    const int of_socket[] = {SO_KEEPALIVE, SO_REUSEADDR, SO_LINGER, SO_RCVTIMEO, SO_ERROR, SO_TYPE, 99, SO_DEBUG};
    int level = levels[op->b % 4];
    int name = level == SOL_SOCKET ? of_socket[op->b / 4 % 8] : of_tcp[op->b / 4 % 8];
    int value = op->c % 3 ? (int)(op->c % 300) : (int)op->c;
    socklen_t len = op->a % 5 ? 4 : op->a % 9;
    void *from = op->a % 17 == 4 ? (void *)place(op->c) : &value;
    say("set", setsockopt(some_descriptor(op->a), level, name, from, len), 0, 0);
    int now[2] = {0, 0};
    len = sizeof now;
    say("option", getsockopt(connection, level, name, now, &len), now, sizeof now);
}

static void watch(const struct op *op)
{
    struct epoll_event event = {.events = op->c & (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET | EPOLLONESHOT), .data.u64 = op->c * 3ull};
    if (op->b % 8 == 0) event.events |= EPOLLEXCLUSIVE;
    void *from = op->b % 16 == 5 ? (void *)place(op->c) : &event;
    say("watch", epoll_ctl(epolls[op->b & 1], op->a % 5, some_descriptor(op->a / 5), from), 0, 0);
}

static void ready(const struct op *op)
{
    struct epoll_event events[8];
    memset(events, 0, sizeof events);
    void *to = op->b % 16 == 5 ? (void *)place(op->c) : events;
    int most = op->a % 9, epoll = op->b % 16 == 7 ? connection : epolls[op->b & 1];
    sigset_t none;
    sigemptyset(&none);
    long result = op->b & 2 ? epoll_pwait(epoll, to, most, 0, op->b & 4 ? &none : NULL) : epoll_wait(epoll, to, most, 0);
    say("ready", result, to == events ? events : 0, to == events ? sizeof events : 0);
}

static void masks(const struct op *op)
{
    uint64_t set = op->c * 0x100000001ull & ~(1ull << (SIGALRM - 1)), old = 0;
    void *from = op->b % 4 == 0 ? NULL : op->b % 16 == 5 ? (void *)place(op->c) : &set;
    void *to = op->b % 4 == 1 ? NULL : op->b % 16 == 6 ? (void *)place(op->c) : &old;
    say("mask", syscall(SYS_rt_sigprocmask, op->a % 4, from, to, op->a == 200 ? 4 : 8), &old, 8);
    if (op->b % 32 == 9) say("raise", raise(SIGUSR1), 0, 0);
    say("handled", handled, 0, 0);
}

/* What was just opened, asked about and closed, and again. */
static void files(const struct op *op)
{
    static int last = -1;
    struct stat status;
    memset(&status, 0, sizeof status);
    if (last < 0 || op->a % 4 == 0) say("open", (last = open(op->b % 5 ? "/proc/self/exe" : op->b % 2 ? "/" : "/missing", O_RDONLY)), 0, 0);
    for (unsigned i = 0; i < op->c % 4; i++) {
        void *to = op->b % 11 == 3 ? (void *)place(op->c) : &status;
        const char *path = op->b % 13 == 5 ? "x" : op->b % 17 == 6 ? place(op->c) : "";
        int fd = op->b % 7 ? last : some_descriptor(op->a);
        long result = (op->c >> (8 + i)) & 1 ? syscall(SYS_fstat, fd, to) : syscall(SYS_newfstatat, fd, path, to, op->b % 19 == 7 ? 0 : AT_EMPTY_PATH);
        say("status", result, &status.st_size, sizeof status.st_size);
        say("status", status.st_mode, &status.st_ino, sizeof status.st_ino);
    }
    if (op->a % 3 == 0) say("lock", fcntl(last, F_SETLK, &(struct flock){.l_type = F_RDLCK}), 0, 0);
    if (op->a % 2) {
        say("close", close(last), 0, 0);
        if (op->a % 5 == 0) say("close", close(last), 0, 0);
        last = -1;
    }
}

static void one(const struct op *op)
{
    struct iovec vector[10];
    long result;
    memset(buffer, op->a, 256);
    switch (op->what) {
    case 0:
        if (!may_read()) return;
        result = read(some_descriptor(op->a) == connection ? connection : -1, op->b % 4 ? buffer : place(op->c), op->b % 700);
        say_read("read", result);
        return;
    case 1: {
        const int flags[] = {0, MSG_DONTWAIT, MSG_PEEK, MSG_NOSIGNAL, MSG_WAITALL | MSG_DONTWAIT, MSG_TRUNC};
        struct sockaddr_in from;
        socklen_t len = sizeof from;
        if (!may_read()) return;
        result = recvfrom(connection, op->b % 4 ? buffer : place(op->c), op->b % 700, flags[op->a % 6], op->a & 32 ? (void *)&from : NULL,
                          op->a & 32 ? &len : NULL);
        say_read("receive", result);
        return;
    }
    case 2:
        if (!may_read()) return;
        say_read("read vector", readv(connection, vector, pieces(vector, op)));
        return;
    case 3:
        say("write", write(some_descriptor(op->a) == counter ? connection : some_descriptor(op->a) == connection ? connection : -1,
                           op->b % 8 ? buffer : place(op->c), op->b % 3000), 0, 0);
        return;
    case 4: {
        const int flags[] = {0, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_MORE, MSG_OOB};
        say("send", send(connection, op->b % 8 ? buffer : place(op->c), op->b % 3000, flags[op->a % 5]), 0, 0);
        return;
    }
    case 5: say("write vector", writev(connection, vector, pieces(vector, op)), 0, 0); return;
    case 6: {
        struct msghdr message = {.msg_iov = vector, .msg_iovlen = pieces(vector, op)};
        say("send message", sendmsg(connection, op->b % 32 == 1 ? (void *)place(op->c) : &message, op->b & 64 ? MSG_NOSIGNAL : 0), 0, 0);
        return;
    }
    case 7: options(op); return;
    case 8: watch(op); return;
    case 9: ready(op); return;
    case 10:
        if (op->c % 4 == 0) say("shutdown", shutdown(some_descriptor(op->a) == listener ? connection : some_descriptor(op->a), op->b % 4), 0, 0);
        return;
    case 11: names(op); return;
    case 12: {
        struct sockaddr_in from;
        socklen_t len = sizeof from;
        if (blocks) return;
        say("accept", accept4(op->a % 4 ? listener : some_descriptor(op->b), op->b & 1 ? (void *)&from : NULL, &len, op->c % 3 * SOCK_NONBLOCK), 0, 0);
        return;
    }
    case 13:
        say("wake", syscall(SYS_futex, op->b % 16 ? (char *)&words[op->a % 4] + (op->b % 64 == 1) : place(op->c),
                            op->b & 64 ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE, op->c % 4), 0, 0);
        return;
    case 14: masks(op); return;
    case 15:
        say("who", getpid(), 0, 0);
        say("who", syscall(SYS_gettid), 0, 0);
        say("who", getppid(), 0, 0);
        say("who", getuid() + geteuid() * 3 + getgid() * 5 + getegid() * 7, 0, 0);
        return;
    case 16: say("yield", sched_yield(), 0, 0); return;
    case 17: {
        uint64_t value = op->b % 8 ? op->c % 5 : op->c * 0x100000001ull;
        say("count", write(counter, op->b % 16 == 3 ? (void *)place(op->c) : &value, op->b % 9 ? 8 : op->b % 12), 0, 0);
        return;
    }
    case 18: {
        uint64_t value = 0;
        result = read(counter, &value, 8);
        say("counted", result, &value, 8);
        return;
    }
    case 19:
        if (copy < 0) say("dup", (copy = dup(connection)) >= 0, 0, 0);
        else say("close", close(copy), 0, 0), copy = -1;
        return;
    case 20: say("flags", fcntl(connection, F_GETFL), 0, 0); return;
    case 21: {
        struct pollfd waited = {connection, POLLIN | POLLOUT | POLLRDHUP, 0};
        result = poll(&waited, 1, 0);
        say("poll", result, &waited.revents, 2);
        return;
    }
    case 24: files(op); return;
    case 22: say("robust", syscall(SYS_set_robust_list, locked, op->a % 2 ? 24 : op->b), 0, 0); return;
    default: {
        int there = -1;
        result = ioctl(connection, FIONREAD, &there);
        say("there", result, &there, 4);
    }
    }
}

static void serve(void)
{
    static struct op ops[OPS];
    uint16_t count = 0;
    logged = 0;
    if (read(connection, &count, 2) == 2) {
        if (count > OPS) count = OPS;
        ssize_t got = count ? read(connection, ops, count * sizeof *ops) : 0;
        for (ssize_t i = 0; i < got / (ssize_t)sizeof *ops; i++) one(&ops[i]);
    }
    say("end", 0, 0, 0);
    if (write(2, log_, logged) < 0) _exit(1);
}

int main(int argc, char **argv)
{
    const char *way = argc > 1 ? argv[1] : "accept";
    int edge = !strcmp(way, "edge"), waits = strcmp(way, "accept");
    blocks = argc > 2 && !strcmp(argv[2], "blocks");
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    char *all = mmap(NULL, ROOM + 4096 * 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    buffer = all;
    memset(buffer, 1, ROOM);
    munmap(all + ROOM, 4096);
    locked = all + ROOM + 4096;
    mprotect(locked, 4096, PROT_READ);
    fresh = mmap(NULL, 4096 * 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, waiter, &words[i / 2]);
    }
    counter = eventfd(0, EFD_NONBLOCK);
    epolls[0] = epoll_create1(0);
    epolls[1] = argc > 3 ? dup(epolls[0]) : epoll_create1(0);
    listener = listening(0, NULL);
    if (listener < 0) return 1;
    if (!blocks) fcntl(listener, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | (edge ? EPOLLET : 0), .data.u64 = 5};
    if (waits) epoll_ctl(epolls[0], EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct epoll_event found;
        struct sockaddr_in from;
        socklen_t len = sizeof from;
        struct pollfd waited = {listener, POLLIN, 0};
        if (waits) epoll_wait(epolls[0], &found, 1, -1);
        else if (!blocks) poll(&waited, 1, -1);
        connection = accept4(listener, (struct sockaddr *)&from, &len, blocks ? 0 : SOCK_NONBLOCK);
        if (connection < 0) continue;
        serve();
        close(copy);
        close(connection);
    }
}
