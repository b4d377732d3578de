/* What a program does with servers outside: echoes over TCP and UDP, one that says "bye" and closes, one that says nothing. */
#define _GNU_SOURCE
#include "check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>

#define LARGE (4 << 20)

static struct sockaddr_in at(const char *port)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons(atoi(port)),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int connected(const char *port)
{
    struct sockaddr_in to = at(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
        printf("connect: %s\n", strerrorname_np(errno));
        exit(1);
    }
    return fd;
}

static void blocking(const char *echo)
{
    int fd = connected(echo);
    struct sockaddr_in own, peer;
    socklen_t len = sizeof(own);
    CHECK(getsockname(fd, (struct sockaddr *)&own, &len) == 0 && own.sin_port != 0);
    CHECK(own.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    len = sizeof(peer);
    CHECK(getpeername(fd, (struct sockaddr *)&peer, &len) == 0 && peer.sin_port == at(echo).sin_port);
    CALL(connect(fd, (struct sockaddr *)&peer, sizeof(peer)));
    CALL(write(fd, "hello, world", 12));
    char text[16] = "";
    CALL(recv(fd, text, 5, MSG_PEEK));
    CALL(recv(fd, text, 12, MSG_WAITALL));
    printf("%s\n", text);
    CALL(recv(fd, text, 5, MSG_DONTWAIT));
    CALL(shutdown(fd, SHUT_WR));
    CALL(read(fd, text, 5));
    CALL(send(fd, "x", 1, MSG_NOSIGNAL));
    CALL(close(fd));
}

static int begun(const char *port)
{
    struct sockaddr_in to = at(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CALL(connect(fd, (struct sockaddr *)&to, sizeof(to)));
    return fd;
}

static int error_of(int fd)
{
    int error = -1;
    socklen_t len = sizeof(error);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0);
    return error;
}

static void waiting(const char *echo, const char *closed)
{
    struct sockaddr_in to = at(echo);
    int fd = begun(echo);
    struct pollfd entry = {fd, POLLIN | POLLOUT, 0};
    CALL(poll(&entry, 1, 60000));
    printf("events %x, error %d\n", entry.revents, error_of(fd));
    CALL(connect(fd, (struct sockaddr *)&to, sizeof(to)));
    CALL(connect(fd, (struct sockaddr *)&to, sizeof(to)));
    CALL(write(fd, "abc", 3));
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    struct timeval minute = {60, 0};
    CALL(select(fd + 1, &set, NULL, NULL, &minute));
    int available = 0;
    CALL(ioctl(fd, FIONREAD, &available));
    printf("%d available\n", available);
    CALL(close(fd));

    fd = begun(closed);
    entry = (struct pollfd){fd, POLLIN | POLLOUT, 0};
    CALL(poll(&entry, 1, 60000));
    printf("events %x, error %s\n", entry.revents, strerrorname_np(error_of(fd)));
    CALL(close(fd));
    to = at(closed);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    CALL(connect(fd, (struct sockaddr *)&to, sizeof(to)));
    CALL(close(fd));
}

/* As an event loop does it: told once, each way until nothing goes any more. */
static void edges(const char *echo)
{
    static unsigned char out[LARGE], in[LARGE];
    for (size_t i = 0; i < LARGE; i++) out[i] = i * 7 + i / 251;
    int fd = connected(echo);
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    int epoll = epoll_create1(0);
    struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.fd = fd}};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
    size_t sent = 0, received = 0;
    int ended = 0;
    while (!ended) {
        if (epoll_wait(epoll, &event, 1, 60000) != 1) {
            printf("nothing came: %zu %zu\n", sent, received);
            exit(1);
        }
        if (event.events & EPOLLOUT && sent < LARGE) {
            ssize_t n;
            while (sent < LARGE && (n = write(fd, out + sent, LARGE - sent)) > 0) sent += n;
            if (sent == LARGE) CHECK(shutdown(fd, SHUT_WR) == 0);
        }
        if (event.events & EPOLLIN) {
            ssize_t n;
            while ((n = read(fd, in + received, LARGE - received + (received == LARGE))) > 0) received += n;
            ended = n == 0;
        }
    }
    printf("sent %zu, received %zu, %s\n", sent, received, memcmp(in, out, LARGE) ? "different" : "the same");
    close(epoll);
    close(fd);
}

static void closing(const char *bye, const char *silent)
{
    char text[16] = "";
    int fd = connected(bye);
    CALL(read(fd, text, 3));
    printf("%s\n", text);
    CALL(read(fd, text, 3));
    struct pollfd entry = {fd, POLLIN | POLLRDHUP, 0};
    CALL(poll(&entry, 1, 60000));
    printf("events %x\n", entry.revents);
    CALL(close(fd));
    fd = connected(silent);
    struct timeval soon = {0, 50000};
    CALL(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof(soon)));
    CALL(read(fd, text, 1));
    entry = (struct pollfd){fd, POLLIN, 0};
    CALL(poll(&entry, 1, 50));
    CALL(close(fd));
}

static void six(const char *echo)
{
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(echo))}, peer;
    CHECK(inet_pton(AF_INET6, "::ffff:127.0.0.1", &to.sin6_addr) == 1);
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    CALL(connect(fd, (struct sockaddr *)&to, sizeof(to)));
    socklen_t len = sizeof(peer);
    char text[64] = "";
    CALL(getpeername(fd, (struct sockaddr *)&peer, &len));
    printf("%s\n", inet_ntop(AF_INET6, &peer.sin6_addr, text, sizeof(text)));
    CALL(write(fd, "six", 3));
    CALL(read(fd, text, 3));
    CALL(close(fd));
}

static void datagrams(const char *echo, const char *closed)
{
    struct sockaddr_in to = at(echo), from = {0};
    socklen_t len = sizeof(from);
    char text[16] = "";
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    CALL(sendto(fd, "datagram", 8, 0, (struct sockaddr *)&to, sizeof(to)));
    CALL(recvfrom(fd, text, sizeof(text), 0, (struct sockaddr *)&from, &len));
    CHECK(from.sin_port == to.sin_port && from.sin_addr.s_addr == to.sin_addr.s_addr);
    printf("%s\n", text);
    CALL(sendto(fd, "", 0, 0, (struct sockaddr *)&to, sizeof(to)));
    CALL(recv(fd, text, sizeof(text), 0));
    CALL(connect(fd, (struct sockaddr *)&to, sizeof(to)));
    CALL(getpeername(fd, (struct sockaddr *)&from, &len));
    CALL(send(fd, "aimed", 5, 0));
    struct pollfd entry = {fd, POLLIN, 0};
    CALL(poll(&entry, 1, 60000));
    CALL(recv(fd, text, 3, MSG_TRUNC));
    CALL(recv(fd, text, 3, MSG_DONTWAIT));
    to = at(closed);
    CALL(connect(fd, (struct sockaddr *)&to, sizeof(to)));
    CALL(send(fd, "lost", 4, 0));
    CALL(poll(&entry, 1, 60000));
    CALL(recv(fd, text, 3, 0));
    CALL(close(fd));
}

/* What becomes of a connection and a datagram to an address. */
static int try(const char *address, const char *port)
{
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(port))};
    int is_six = inet_pton(AF_INET6, address, &six.sin6_addr);
    struct sockaddr *to = is_six ? (struct sockaddr *)&six : (struct sockaddr *)&four;
    socklen_t len = is_six ? sizeof(six) : sizeof(four);
    CHECK(is_six || inet_pton(AF_INET, address, &four.sin_addr));
    int family = is_six ? AF_INET6 : AF_INET;
    int fd = socket(family, SOCK_STREAM, 0), flags = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int datagrams = socket(family, SOCK_DGRAM, 0);
    CALL(connect(fd, to, len));
    CALL(connect(flags, to, len));
    CALL(sendto(datagrams, "x", 1, 0, to, len));
    CALL(connect(datagrams, to, len));
    return 0;
}

static int many(const char *port, int wanted)
{
    struct sockaddr_in to = at(port);
    int held = 0, refused = 0;
    for (int i = 0; i < wanted; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0) break;
        if (connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0) held++;
        else if (errno == ENFILE) refused++;
    }
    printf("held %d, refused %s\n", held, refused ? "some" : "none");
    return 0;
}

static int name(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = NULL;
    int error = getaddrinfo(host, port, &hints, &found);
    if (error) {
        printf("%s\n", gai_strerror(error));
        return 1;
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char text[8] = "";
    CALL(connect(fd, found->ai_addr, found->ai_addrlen));
    CALL(write(fd, "named", 5));
    CALL(recv(fd, text, 5, MSG_WAITALL));
    printf("%s\n", text);
    return 0;
}

static void answer(int client, const char *text)
{
    char all[256];
    int len = snprintf(all, sizeof(all), "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", strlen(text), text);
    CHECK(write(client, all, len) == len);
    close(client);
}

static const char *ping(int fd)
{
    static char text[64];
    memset(text, 0, sizeof(text));
    if (send(fd, "ping", 4, MSG_NOSIGNAL) != 4 || recv(fd, text, 4, MSG_WAITALL) != 4)
        snprintf(text, sizeof(text), "%s", strerrorname_np(errno));
    return text;
}

/* A server that asks another one: /echo, /hold and leaves it open, /hang and waits, /kept by a connection from its start. */
static _Noreturn void serve(const char *echo, const char *silent, int kept)
{
    struct sockaddr_in own = at("0");
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&own, sizeof(own)) == 0 && listen(listener, 16) == 0);
    int old = kept ? connected(echo) : -1;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        char request[512] = "";
        if (read(client, request, sizeof(request) - 1) <= 0) {
            close(client);
        } else if (strstr(request, "/echo")) {
            int fd = connected(echo);
            answer(client, ping(fd));
            close(fd);
        } else if (strstr(request, "/hold")) {
            answer(client, ping(connected(echo)));
        } else if (strstr(request, "/hang")) {
            answer(client, ping(connected(silent)));
        } else if (strstr(request, "/kept")) {
            answer(client, ping(old));
        } else {
            answer(client, "nothing");
        }
    }
}

/* All that was written goes out, though nobody waits for it. */
static int last(const char *port)
{
    static char bytes[LARGE];
    CALL(write(connected(port), bytes, sizeof(bytes)));
    return 0;
}

static int hang(const char *port)
{
    char byte;
    CALL(read(connected(port), &byte, 1));
    return 0;
}

/* Reads for a while, so that the kernel makes much room, and then no more. */
static int deaf(const char *port)
{
    static char bytes[1 << 16];
    int fd = connected(port);
    for (size_t got = 0; got < 64 << 20;) {
        ssize_t n = read(fd, bytes, sizeof(bytes));
        if (n <= 0) return 1;
        got += n;
    }
    pause();
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *what = argc > 2 ? argv[1] : "";
    if (argc == 3 && !strcmp(what, "last")) return last(argv[2]);
    if (argc == 3 && !strcmp(what, "hang")) return hang(argv[2]);
    if (argc == 3 && !strcmp(what, "deaf")) return deaf(argv[2]);
    if (argc < 4) return 2;
    if (!strcmp(what, "try")) return try(argv[2], argv[3]);
    if (!strcmp(what, "many")) return many(argv[2], atoi(argv[3]));
    if (!strcmp(what, "name")) return name(argv[2], argv[3]);
    if (!strcmp(what, "serve")) serve(argv[2], argv[3], argc > 4);
    if (argc != 7) return 2;
    const char *echo = argv[2], *bye = argv[3], *silent = argv[4], *udp = argv[5], *closed = argv[6];
    blocking(echo);
    waiting(echo, closed);
    edges(echo);
    closing(bye, silent);
    six(echo);
    datagrams(udp, closed);
    return done();
}
