/* Open files that go through sockets (SCM_RIGHTS), and who sends them (SCM_CREDENTIALS): unix(7), cmsg(3). */
#define _GNU_SOURCE
#include "raw.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define MOST 260

static union {
    char bytes[CMSG_SPACE(MOST * sizeof(int)) + 64];
    struct cmsghdr first;
} control;

/* Sends bytes with descriptors. */
static long send_with(int to, const void *bytes, size_t len, const int *fds, int n)
{
    struct iovec piece = {(void *)bytes, len};
    struct msghdr m = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(n * sizeof(int))};
    memset(&control, 0, sizeof control);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    long result = sendmsg(to, &m, MSG_NOSIGNAL);
    if (result < 0) printf("    sent: %s\n", strerrorname_np(errno));
    else printf("    sent: %ld\n", result);
    return result;
}

/* Receives and says what came; the first descriptor is given back, others are closed. */
static int receive(int from, size_t most, size_t room, int how)
{
    char bytes[200] = "";
    struct iovec piece = {bytes, most};
    struct msghdr m = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = room ? &control : 0, .msg_controllen = room};
    memset(&control, 0, sizeof control);
    long result = recvmsg(from, &m, how);
    if (result < 0) {
        printf("    received: %s\n", strerrorname_np(errno));
        return -1;
    }
    printf("    received: %ld \"%.*s\", flags %x, control %zu", result, (int)result, bytes, m.msg_flags, m.msg_controllen);
    int first = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
        printf(", level %d type %d length %zu", c->cmsg_level, c->cmsg_type, (size_t)c->cmsg_len);
        if (c->cmsg_type != SCM_RIGHTS) {
            struct ucred *who = (struct ucred *)CMSG_DATA(c);
            if (c->cmsg_len >= CMSG_LEN(sizeof *who)) printf(" of %s %d %d", who->pid == getpid() ? "this" : "another", who->uid, who->gid);
            continue;
        }
        for (size_t i = 0; CMSG_LEN((i + 1) * sizeof(int)) <= c->cmsg_len; i++) {
            int fd = ((int *)CMSG_DATA(c))[i];
            printf(" %s", fcntl(fd, F_GETFD) & FD_CLOEXEC ? "cloexec" : "open");
            if (first < 0) first = fd;
            else close(fd);
        }
    }
    putchar('\n');
    return first;
}

#define WHOLE sizeof control

static void streams(const int *p)
{
    int s[2];
    CALL(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    send_with(s[0], "a", 1, p, 1);
    int got = receive(s[1], 10, WHOLE, 0);
    CALL(write(p[1], "through", 7));
    char text[20] = "";
    CALL(read(got, text, 20));
    puts(text);
    /* It is the same open file. */
    CALL(fcntl(got, F_SETFL, O_NONBLOCK));
    CALL(fcntl(p[0], F_GETFL));
    CALL(fcntl(p[0], F_SETFL, 0));
    CALL(close(got));
    /* Where a read ends. */
    write(s[0], "before ", 7);
    send_with(s[0], "with", 4, p, 2);
    write(s[0], " after", 6);
    receive(s[1], 100, WHOLE, MSG_CMSG_CLOEXEC);
    receive(s[1], 100, WHOLE, 0);
    send_with(s[0], "one", 3, p, 1);
    send_with(s[0], "two", 3, p, 1);
    receive(s[1], 2, WHOLE, 0);
    receive(s[1], 100, WHOLE, 0);
    receive(s[1], 100, WHOLE, MSG_DONTWAIT);
    send_with(s[0], "peek", 4, p, 1);
    close(receive(s[1], 100, WHOLE, MSG_PEEK));
    close(receive(s[1], 100, WHOLE, 0));
    /* Read without them. */
    send_with(s[0], "read", 4, p, 1);
    CALL(read(s[1], text, 20));
    send_with(s[0], "recv", 4, p, 1);
    CALL(recv(s[1], text, 20, 0));
    send_with(s[0], "", 0, p, 1);
    receive(s[1], 100, WHOLE, MSG_DONTWAIT);
    /* Too little room. */
    int three[3] = {p[0], p[1], p[0]};
    for (size_t room = 0; room <= CMSG_SPACE(sizeof three); room += room < 12 ? 12 : 2) {
        printf("room %zu\n", room);
        send_with(s[0], "x", 1, three, 3);
        close(receive(s[1], 100, room, 0));
    }
    CALL(close(s[0]));
    send_with(s[1], "gone", 4, p, 1);
    CALL(close(s[1]));
}

static void lives(void)
{
    int s[2], p[2];
    CALL(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s));
    CALL(pipe(p));
    send_with(s[0], "kept", 4, &p[1], 1);
    close(p[1]);
    char byte;
    fcntl(p[0], F_SETFL, O_NONBLOCK);
    CALL(read(p[0], &byte, 1)); /* a writer is on its way */
    int got = receive(s[1], 100, WHOLE, 0);
    CALL(write(got, "w", 1));
    CALL(read(p[0], &byte, 1));
    CALL(close(got));
    CALL(read(p[0], &byte, 1));
    /* Gone with the socket that it waits at. */
    int q[2];
    CALL(pipe(q));
    send_with(s[0], "lost", 4, &q[1], 1);
    close(q[1]);
    CALL(close(s[0]));
    CALL(close(s[1]));
    CALL(read(q[0], &byte, 1));
    /* So is one that has others on their way to it. */
    int a[2], b[2], r[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, a);
    socketpair(AF_UNIX, SOCK_STREAM, 0, b);
    CALL(pipe(r));
    send_with(a[0], "inner", 5, &r[1], 1);
    send_with(b[0], "outer", 5, &a[1], 1);
    close(r[1]);
    close(a[1]);
    close(b[0]);
    close(b[1]);
    CALL(read(r[0], &byte, 1));
    close(a[0]);
}

static void datagrams(const int *p)
{
    int s[2], on = 1;
    CALL(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    send_with(s[0], "datagram", 8, p, 2);
    receive(s[1], 4, WHOLE, 0);
    send_with(s[0], "", 0, p, 1);
    receive(s[1], 4, WHOLE, 0);
    CALL(setsockopt(s[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    send_with(s[0], "who", 3, p, 1);
    receive(s[1], 4, WHOLE, 0);
    send(s[0], "who", 3, 0);
    receive(s[1], 4, WHOLE, 0);
    send(s[0], "who", 3, 0);
    receive(s[1], 4, 20, 0);
    send(s[0], "who", 3, 0);
    receive(s[1], 4, 0, 0);
}

static void bad(const int *p)
{
    int s[2], wrong = 999, many[MOST];
    for (int i = 0; i < MOST; i++) many[i] = p[0];
    CALL(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    send_with(s[0], "bad", 3, &wrong, 1);
    send_with(s[0], "most", 4, many, 253);
    send_with(s[0], "more", 4, many, 254);
    receive(s[1], 100, CMSG_SPACE(0), 0);
    struct ucred who = {getpid() + 1, 12, 12};
    struct msghdr m = {.msg_control = &control, .msg_controllen = CMSG_SPACE(sizeof who)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_CREDENTIALS;
    c->cmsg_len = CMSG_LEN(sizeof who);
    who = (struct ucred){getpid(), 0, 0};
    memcpy(CMSG_DATA(c), &who, sizeof who);
    CALL(sendmsg(s[0], &m, 0));
    receive(s[1], 100, WHOLE, 0);
    c->cmsg_len = CMSG_LEN(3);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_CREDENTIALS;
    m.msg_controllen = CMSG_SPACE(sizeof who);
    CALL(sendmsg(s[0], &m, 0));
    c->cmsg_type = 77;
    CALL(sendmsg(s[0], &m, 0));
    c->cmsg_len = 3;
    CALL(sendmsg(s[0], &m, 0));
    c->cmsg_len = 1000;
    CALL(sendmsg(s[0], &m, 0));
    m.msg_control = BAD;
    CALL(sendmsg(s[0], &m, 0));
}

int main(void)
{
    int p[2];
    CALL(pipe(p));
    streams(p);
    lives();
    datagrams(p);
    bad(p);
    return done();
}
