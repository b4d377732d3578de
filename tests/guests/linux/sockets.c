/* Sockets between the threads of one program: streams and datagrams, by IP and by names. */
#define _GNU_SOURCE
#include "check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>

static struct sockaddr_in v4(const char *ip, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, ip, &address.sin_addr);
    return address;
}

#define ADDRESS(address) (struct sockaddr *)&(address), sizeof(address)

static int port_of(int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof(address);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &len) == 0);
    return ntohs(((struct sockaddr_in *)&address)->sin_port);
}

static void shows(const char *what, const struct sockaddr_storage *address, socklen_t len)
{
    char text[64] = "?";
    const struct sockaddr_in *in = (const void *)address;
    const struct sockaddr_in6 *in6 = (const void *)address;
    if (len == 0) strcpy(text, "none");
    else if (address->ss_family == AF_INET) inet_ntop(AF_INET, &in->sin_addr, text, sizeof(text));
    else if (address->ss_family == AF_INET6) inet_ntop(AF_INET6, &in6->sin6_addr, text, sizeof(text));
    printf("%s: family %d len %d %s\n", what, len ? address->ss_family : 0, len, text);
}

static int listens(int family, struct sockaddr *address, socklen_t len)
{
    int fd = socket(family, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK(bind(fd, address, len) == 0);
    CHECK(listen(fd, 5) == 0);
    return fd;
}

static short events(int fd)
{
    struct pollfd entry = {fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0};
    poll(&entry, 1, 0);
    return entry.revents;
}

static int option(int fd, int level, int name)
{
    int value = -1;
    socklen_t len = sizeof(value);
    if (getsockopt(fd, level, name, &value, &len) != 0) return -errno;
    return value;
}

static void making(void)
{
    CALL(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    CALL(socket(AF_INET, SOCK_SEQPACKET, 0));
    CALL(socket(99, SOCK_STREAM, 0));
    CALL(socket(AF_INET, 77, 0));
    CALL(socket(AF_UNIX, SOCK_STREAM, 5));
    CALL(socketpair(AF_INET, SOCK_STREAM, 0, (int[2]){0}));
    int *volatile nowhere = (int *)8;
    CALL(socketpair(AF_UNIX, SOCK_STREAM, 0, nowhere));
    CALL(listen(0, 5));
    CALL(listen(99, 5));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(fcntl(fd, F_GETFL) == (O_RDWR | O_NONBLOCK));
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    char byte = 0;
    printf("new: %x\n", events(fd));
    struct stat stat;
    CHECK(fstat(fd, &stat) == 0 && S_ISSOCK(stat.st_mode));
    CALL(lseek(fd, 0, SEEK_SET));
    CALL(pread(fd, &byte, 1, 0));
    CALL(recv(fd, &byte, 1, 0));
    CALL(send(fd, &byte, 1, MSG_NOSIGNAL));
    CALL(accept(fd, NULL, NULL));
    CALL(shutdown(fd, SHUT_RD));
    CALL(getpeername(fd, (struct sockaddr *)&stat, &(socklen_t){100}));
    CALL(getsockname(fd, (struct sockaddr *)&stat, &(socklen_t){-1}));
    struct sockaddr_in address = v4("8.8.8.8", 80);
    CALL(bind(fd, ADDRESS(address)));
    address = v4("127.0.0.1", 1);
    CALL(bind(fd, (struct sockaddr *)&address, 5));
    CALL(connect(fd, (struct sockaddr *)&address, 5));
    address.sin_family = AF_INET6;
    CALL(bind(fd, ADDRESS(address)));
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    address = v4("127.0.0.1", 1);
    CALL(connect(fd, ADDRESS(address)));
    printf("refused: %x\n", events(fd));
    close(fd);

    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    printf("new unix: %x\n", events(fd));
    CALL(recv(fd, &byte, 1, 0));
    CALL(send(fd, &byte, 1, MSG_NOSIGNAL));
    CALL(listen(fd, 1));
    CALL(accept(fd, NULL, NULL));
    close(fd);
    fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    CALL(listen(fd, 1));
    CALL(accept(fd, NULL, NULL));
    CALL(send(fd, &byte, 1, 0));
    close(fd);
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    printf("new udp: %x\n", events(fd));
    CALL(send(fd, &byte, 1, 0));
    CALL(shutdown(fd, SHUT_WR));
    CALL(recv(fd, &byte, 1, MSG_DONTWAIT));
    close(fd);
}

static void ports(void)
{
    struct sockaddr_in any = v4("0.0.0.0", 0);
    int first = listens(AF_INET, ADDRESS(any));
    int port = port_of(first);
    CHECK(port != 0);
    struct sockaddr_in same = v4("127.0.0.1", port);
    int second = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    CALL(bind(second, ADDRESS(same)));
    setsockopt(second, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    CALL(bind(second, ADDRESS(same)));
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    CALL(bind(udp, ADDRESS(same)));
    CALL(bind(udp, ADDRESS(same)));
    close(udp);
    close(first);
    CALL(bind(second, ADDRESS(same)));
    CALL(bind(second, ADDRESS(any)));
    CALL(listen(second, -1));
    CALL(listen(second, 5));
    close(second);

    any = v4("127.0.0.1", 0);
    first = socket(AF_INET, SOCK_STREAM, 0);
    second = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(first, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
    setsockopt(second, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
    CHECK(bind(first, ADDRESS(any)) == 0);
    same = v4("127.0.0.1", port_of(first));
    CALL(bind(second, ADDRESS(same)));
    CALL(listen(first, 5));
    CALL(listen(second, 5));
    close(first);
    close(second);
}

static void options(void)
{
    int tcp = socket(AF_INET, SOCK_STREAM, 0), unix_fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    int udp = socket(AF_INET6, SOCK_DGRAM, 0), value = 5, zero = 0;
    printf("%d %d %d\n", option(tcp, SOL_SOCKET, SO_TYPE), option(udp, SOL_SOCKET, SO_TYPE), option(unix_fd, SOL_SOCKET, SO_TYPE));
    printf("%d %d %d\n", option(tcp, SOL_SOCKET, SO_DOMAIN), option(udp, SOL_SOCKET, SO_DOMAIN), option(unix_fd, SOL_SOCKET, SO_DOMAIN));
    printf("%d %d %d\n", option(tcp, SOL_SOCKET, SO_PROTOCOL), option(udp, SOL_SOCKET, SO_PROTOCOL), option(unix_fd, SOL_SOCKET, SO_PROTOCOL));
    printf("%d %d %d\n", option(tcp, SOL_SOCKET, SO_ACCEPTCONN), option(tcp, SOL_SOCKET, SO_ERROR), option(tcp, SOL_SOCKET, SO_REUSEADDR));
    printf("%d %d %d\n", option(tcp, IPPROTO_TCP, TCP_NODELAY), option(tcp, IPPROTO_TCP, TCP_KEEPIDLE), option(tcp, IPPROTO_IP, IP_TTL));
    printf("%d %d %d\n", option(tcp, IPPROTO_IPV6, IPV6_V6ONLY), option(unix_fd, IPPROTO_TCP, TCP_NODELAY), option(tcp, SOL_SOCKET, 9999));
    printf("%d %d\n", option(udp, IPPROTO_TCP, TCP_NODELAY), option(udp, IPPROTO_IPV6, IPV6_V6ONLY));
    CALL(setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &value, sizeof(value)));
    CALL(setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &value, sizeof(value)));
    CALL(setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &value, 2));
    CALL(setsockopt(tcp, SOL_SOCKET, SO_KEEPALIVE, NULL, sizeof(value)));
    CALL(setsockopt(tcp, SOL_SOCKET, SO_KEEPALIVE, &value, -1));
    CALL(setsockopt(tcp, SOL_SOCKET, SO_TYPE, &value, sizeof(value)));
    CALL(setsockopt(tcp, IPPROTO_TCP, TCP_KEEPIDLE, &zero, sizeof(zero)));
    CALL(setsockopt(tcp, IPPROTO_TCP, TCP_KEEPCNT, &value, sizeof(value)));
    printf("%d %d %d\n", option(tcp, SOL_SOCKET, SO_REUSEADDR), option(tcp, IPPROTO_TCP, TCP_NODELAY), option(tcp, IPPROTO_TCP, TCP_KEEPCNT));
    value = 10000;
    CALL(setsockopt(tcp, SOL_SOCKET, SO_RCVBUF, &value, sizeof(value)));
    printf("%d\n", option(tcp, SOL_SOCKET, SO_RCVBUF));
    struct linger linger = {1, 7};
    socklen_t len = sizeof(linger);
    CALL(setsockopt(tcp, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
    memset(&linger, 0, sizeof(linger));
    CALL(getsockopt(tcp, SOL_SOCKET, SO_LINGER, &linger, &len));
    printf("%d %d %d\n", linger.l_onoff, linger.l_linger, len);
    struct timeval time = {0, 30000}, got = {9, 9};
    CALL(setsockopt(tcp, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time)));
    len = sizeof(got);
    CALL(getsockopt(tcp, SOL_SOCKET, SO_RCVTIMEO, &got, &len));
    CHECK(got.tv_sec == 0 && labs(got.tv_usec - 30000) < 5000);
    char small[2] = {9, 9};
    len = 1;
    CALL(getsockopt(tcp, SOL_SOCKET, SO_TYPE, small, &len));
    printf("%d %d %d\n", small[0], small[1], len);
    time.tv_usec = 1000000;
    CALL(setsockopt(tcp, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time)));
    CALL(getsockopt(tcp, SOL_SOCKET, SO_TYPE, NULL, &len));
    close(tcp);
    close(udp);
    close(unix_fd);
}

static int listener, ends[2];
static char big[3 << 20];

static void *client(void *argument)
{
    struct sockaddr_in address = v4("127.0.0.1", port_of(listener));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK(connect(fd, ADDRESS(address)) == 0);
    char byte;
    CHECK(connect(fd, ADDRESS(address)) == -1 && errno == EISCONN);
    CHECK(send(fd, "hello", 5, 0) == 5);
    /* One call, whatever fits. */
    CHECK(write(fd, big, sizeof(big)) == (ssize_t)sizeof(big));
    CHECK(shutdown(fd, SHUT_WR) == 0);
    CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    CHECK(recv(fd, &byte, 1, 0) == 1 && byte == '!');
    CHECK(recv(fd, &byte, 1, 0) == 0);
    close(fd);
    return argument;
}

static void streams(void)
{
    struct sockaddr_in any = v4("0.0.0.0", 0);
    listener = listens(AF_INET, ADDRESS(any));
    printf("listens: %x, %d\n", events(listener), option(listener, SOL_SOCKET, SO_ACCEPTCONN));
    fcntl(listener, F_SETFL, O_NONBLOCK);
    CALL(accept(listener, NULL, NULL));
    fcntl(listener, F_SETFL, 0);
    CALL(recv(listener, big, 1, 0));
    for (size_t i = 0; i < sizeof(big); i++) big[i] = (char)(i * 7 + i / 251);
    pthread_t thread;
    pthread_create(&thread, NULL, client, NULL);
    struct sockaddr_storage peer, own;
    socklen_t len = sizeof(peer);
    int fd = accept4(listener, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC);
    CHECK(fd >= 0);
    shows("peer", &peer, len);
    len = sizeof(own);
    CHECK(getsockname(fd, (struct sockaddr *)&own, &len) == 0);
    shows("own", &own, len);
    CHECK(port_of(fd) == port_of(listener));
    char buffer[16] = "";
    CHECK(recv(fd, buffer, 5, MSG_PEEK) > 0);
    CHECK(recv(fd, buffer, 5, MSG_WAITALL) == 5 && memcmp(buffer, "hello", 5) == 0);
    int available = 0;
    CHECK(poll(&(struct pollfd){fd, POLLIN, 0}, 1, 10000) == 1);
    CHECK(ioctl(fd, FIONREAD, &available) == 0 && available > 0);
    static char got[sizeof(big)];
    CHECK(recv(fd, got, 1000000, MSG_WAITALL) == 1000000);
    size_t done = 1000000;
    ssize_t n;
    while ((n = read(fd, got + done, sizeof(got) - done)) > 0) done += n;
    CHECK(n == 0 && done == sizeof(got) && memcmp(got, big, sizeof(big)) == 0);
    /* All bytes may be there before the end is. */
    CHECK(recv(fd, buffer, 1, MSG_PEEK) == 0);
    printf("ended: %x\n", events(fd));
    CHECK(recv(fd, buffer, 1, 0) == 0);
    CHECK(send(fd, "!", 1, 0) == 1);
    close(fd);
    pthread_join(thread, NULL);
    close(listener);
}

static int connected(int how)
{
    struct sockaddr_in any = v4("127.0.0.1", 0);
    int l = listens(AF_INET, ADDRESS(any));
    struct sockaddr_in address = v4("127.0.0.1", port_of(l));
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(ends[0], ADDRESS(address)) == 0);
    ends[1] = accept(l, NULL, NULL);
    close(l);
    (void)how;
    return ends[1];
}

static void ending(void)
{
    char byte = 0;
    struct timespec little = {0, 20000000};
    connected(0);
    printf("connected: %x %x\n", events(ends[0]), events(ends[1]));
    /* Closed with something unread: a reset. */
    CHECK(send(ends[0], "abc", 3, 0) == 3);
    CHECK(send(ends[1], "xyz", 3, 0) == 3);
    nanosleep(&little, NULL);
    close(ends[1]);
    nanosleep(&little, NULL);
    printf("reset: %x\n", events(ends[0]));
    CALL(option(ends[0], SOL_SOCKET, SO_ERROR));
    CALL(option(ends[0], SOL_SOCKET, SO_ERROR));
    close(ends[0]);

    connected(0);
    close(ends[1]);
    nanosleep(&little, NULL);
    printf("closed: %x\n", events(ends[0]));
    CALL(recv(ends[0], &byte, 1, 0));
    CALL(send(ends[0], "x", 1, MSG_NOSIGNAL));
    nanosleep(&little, NULL);
    printf("answered: %x\n", events(ends[0]));
    CALL(send(ends[0], "x", 1, MSG_NOSIGNAL));
    CALL(send(ends[0], "x", 1, MSG_NOSIGNAL));
    CALL(recv(ends[0], &byte, 1, 0));
    close(ends[0]);

    connected(0);
    CALL(shutdown(ends[0], SHUT_WR));
    nanosleep(&little, NULL);
    printf("half: %x %x\n", events(ends[0]), events(ends[1]));
    CALL(send(ends[1], "x", 1, 0));
    CALL(recv(ends[0], &byte, 1, 0));
    CALL(shutdown(ends[1], SHUT_WR));
    nanosleep(&little, NULL);
    printf("both: %x %x\n", events(ends[0]), events(ends[1]));
    CALL(recv(ends[0], &byte, 1, 0));
    CALL(shutdown(ends[0], 7));
    close(ends[0]);
    close(ends[1]);

    connected(0);
    CALL(shutdown(ends[0], SHUT_RD));
    printf("deaf: %x\n", events(ends[0]));
    CALL(send(ends[1], "x", 1, 0));
    nanosleep(&little, NULL);
    CALL(recv(ends[0], &byte, 1, 0));
    CALL(recv(ends[0], &byte, 1, 0));
    close(ends[0]);
    close(ends[1]);

    struct linger none = {1, 0};
    connected(0);
    setsockopt(ends[1], SOL_SOCKET, SO_LINGER, &none, sizeof(none));
    close(ends[1]);
    nanosleep(&little, NULL);
    CALL(recv(ends[0], &byte, 1, 0));
    CALL(recv(ends[0], &byte, 1, 0));
    close(ends[0]);

    /* Not accepted, and nobody listens any more. */
    struct sockaddr_in any = v4("127.0.0.1", 0);
    int l = listens(AF_INET, ADDRESS(any));
    struct sockaddr_in address = v4("127.0.0.1", port_of(l));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, ADDRESS(address)) == 0);
    printf("waits: %x\n", events(l));
    close(l);
    nanosleep(&little, NULL);
    CALL(recv(fd, &byte, 1, 0));
    close(fd);

    /* Without waiting. */
    l = listens(AF_INET, ADDRESS(any));
    address = v4("127.0.0.1", port_of(l));
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CALL(connect(fd, ADDRESS(address)));
    nanosleep(&little, NULL);
    printf("goes on: %x %x\n", events(fd), events(l));
    CALL(option(fd, SOL_SOCKET, SO_ERROR));
    CALL(connect(fd, ADDRESS(address)));
    CALL(connect(fd, ADDRESS(address)));
    close(fd);
    close(l);
    for (int i = 0; i < 2; i++) {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CALL(connect(fd, ADDRESS(address)));
        nanosleep(&little, NULL);
        printf("refused: %x\n", events(fd));
        if (i) CALL(option(fd, SOL_SOCKET, SO_ERROR));
        CALL(connect(fd, ADDRESS(address)));
        printf("refused: %x\n", events(fd));
        close(fd);
    }

    /* Time limits. */
    connected(0);
    struct timeval time = {0, 30000};
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
    setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
    CALL(recv(ends[0], &byte, 1, 0));
    CALL(recv(ends[0], &byte, 1, MSG_DONTWAIT));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    CALL(read(ends[0], &byte, 1));
    while (send(ends[0], big, 100000, 0) > 0) {}
    CHECK(errno == EAGAIN);
    printf("full: %x\n", events(ends[0]));
    fcntl(ends[0], F_SETFL, 0);
    CALL(send(ends[0], big, 100000, 0));
    close(ends[0]);
    close(ends[1]);
}

static volatile int pipes;

static void on_pipe(int signal)
{
    (void)signal;
    pipes++;
}

static void pairs(int type)
{
    char buffer[32] = "";
    printf("pair of type %d\n", type);
    CHECK(socketpair(AF_UNIX, type, 0, ends) == 0);
    printf("new: %x %x\n", events(ends[0]), events(ends[1]));
    CALL(write(ends[0], "first", 5));
    CALL(write(ends[0], "second", 6));
    int available = 0;
    CALL(ioctl(ends[1], FIONREAD, &available));
    printf("%d\n", available);
    CALL(recv(ends[1], buffer, 3, MSG_PEEK));
    CALL(recv(ends[1], buffer, 3, MSG_TRUNC));
    printf("%.3s\n", buffer);
    memset(buffer, 0, sizeof(buffer));
    struct iovec two[2] = {{buffer, 2}, {buffer + 10, 20}};
    struct msghdr header = {.msg_iov = two, .msg_iovlen = 2};
    CALL(recvmsg(ends[1], &header, 0));
    printf("%s %s %x %zu\n", buffer, buffer + 10, header.msg_flags, header.msg_controllen);
    CALL(recv(ends[1], buffer, sizeof(buffer), MSG_DONTWAIT));
    CALL(writev(ends[1], (struct iovec[2]){{"ab", 2}, {"cd", 2}}, 2));
    CALL(recvfrom(ends[0], buffer, 2, 0, (struct sockaddr *)big, &(socklen_t){100}));
    CALL(recv(ends[0], buffer, 4, MSG_DONTWAIT));
    CALL(write(ends[0], "", 0));
    CALL(recv(ends[1], buffer, 4, MSG_DONTWAIT));
    struct sockaddr_storage name;
    socklen_t len = sizeof(name);
    CALL(getsockname(ends[0], (struct sockaddr *)&name, &len));
    printf("%d\n", len);
    len = sizeof(name);
    CALL(getpeername(ends[0], (struct sockaddr *)&name, &len));
    printf("%d\n", len);
    CALL(shutdown(ends[0], SHUT_WR));
    printf("half: %x %x\n", events(ends[0]), events(ends[1]));
    pipes = 0;
    CALL(write(ends[0], "x", 1));
    printf("%d signals\n", pipes);
    CALL(recv(ends[1], buffer, 4, MSG_DONTWAIT));
    close(ends[0]);
    printf("closed: %x\n", events(ends[1]));
    CALL(write(ends[1], "x", 1));
    CALL(write(ends[1], "x", 1));
    printf("%d signals\n", pipes);
    CALL(recv(ends[1], buffer, 4, MSG_DONTWAIT));
    close(ends[1]);

    CHECK(socketpair(AF_UNIX, type, 0, ends) == 0);
    CHECK(write(ends[0], "unread", 6) == 6);
    close(ends[1]);
    CALL(recv(ends[0], buffer, 4, MSG_DONTWAIT));
    CALL(recv(ends[0], buffer, 4, MSG_DONTWAIT));
    close(ends[0]);
}

static void names(void)
{
    struct sockaddr_un hidden = {.sun_family = AF_UNIX, .sun_path = "\0vmod-kvm-test-sockets"};
    socklen_t len = offsetof(struct sockaddr_un, sun_path) + 22;
    int l = listens(AF_UNIX, (struct sockaddr *)&hidden, len);
    printf("listens: %x\n", events(l));
    int other = socket(AF_UNIX, SOCK_STREAM, 0);
    CALL(bind(other, (struct sockaddr *)&hidden, len));
    CALL(connect(other, (struct sockaddr *)&hidden, len - 1));
    CALL(connect(other, (struct sockaddr *)&hidden, len));
    printf("connected: %x %x\n", events(other), events(l));
    CALL(send(other, "early", 5, 0));
    struct sockaddr_storage name = {0};
    socklen_t got = sizeof(name);
    int fd = accept(l, (struct sockaddr *)&name, &got);
    printf("%d %d\n", name.ss_family, got);
    got = sizeof(name);
    CALL(getpeername(other, (struct sockaddr *)&name, &got));
    printf("%d %s\n", got, ((struct sockaddr_un *)&name)->sun_path + 1);
    got = sizeof(name);
    CALL(getpeername(fd, (struct sockaddr *)&name, &got));
    printf("%d\n", got);
    char buffer[8] = "";
    CALL(read(fd, buffer, 8));
    struct {
        int pid, uid, gid;
    } credentials;
    got = sizeof(credentials);
    CALL(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &got));
    CHECK(credentials.pid == getpid() && credentials.uid == (int)getuid());
    CALL(sendto(fd, "x", 1, 0, (struct sockaddr *)&hidden, len));
    close(fd);
    close(other);
    close(l);
    other = socket(AF_UNIX, SOCK_STREAM, 0);
    CALL(connect(other, (struct sockaddr *)&hidden, len));
    struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "/no/such/path/for/sockets"};
    CALL(connect(other, ADDRESS(path)));
    CALL(bind(other, (struct sockaddr *)&path, 2));
    got = sizeof(name);
    CALL(getsockname(other, (struct sockaddr *)&name, &got));
    CHECK(got == 8);
    CALL(listen(other, 0));
    close(other);

    int receiver = socket(AF_UNIX, SOCK_DGRAM, 0), sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    CALL(bind(receiver, (struct sockaddr *)&hidden, len));
    CALL(sendto(sender, "one", 3, 0, (struct sockaddr *)&hidden, len));
    CALL(connect(sender, (struct sockaddr *)&hidden, len));
    CALL(send(sender, "two", 3, 0));
    got = sizeof(name);
    CALL(recvfrom(receiver, buffer, 8, 0, (struct sockaddr *)&name, &got));
    printf("%d\n", got);
    struct mmsghdr many[3] = {0};
    struct iovec pieces[3];
    char texts[3][8];
    for (int i = 0; i < 3; i++) {
        pieces[i] = (struct iovec){texts[i], 8};
        many[i].msg_hdr.msg_iov = &pieces[i];
        many[i].msg_hdr.msg_iovlen = 1;
    }
    CALL(send(sender, "three", 5, 0));
    CALL(recvmmsg(receiver, many, 3, MSG_DONTWAIT, NULL));
    printf("%u %u\n", many[0].msg_len, many[1].msg_len);
    CALL(sendmmsg(sender, many, 3, 0));
    int available = 0;
    CALL(ioctl(receiver, FIONREAD, &available));
    printf("%d\n", available);
    close(receiver);
    CALL(send(sender, "gone", 4, 0));
    CALL(send(sender, "gone", 4, 0));
    close(sender);
}

static void both_families(void)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6};
    int l = listens(AF_INET6, ADDRESS(any));
    struct sockaddr_in address = v4("127.0.0.1", port_of(l));
    int fd = socket(AF_INET, SOCK_STREAM, 0), six = socket(AF_INET6, SOCK_STREAM, 0);
    CALL(connect(fd, ADDRESS(address)));
    struct sockaddr_storage name;
    socklen_t len = sizeof(name);
    int got = accept(l, (struct sockaddr *)&name, &len);
    shows("of 4", &name, len);
    len = sizeof(name);
    getsockname(got, (struct sockaddr *)&name, &len);
    shows("of 4, own", &name, len);
    close(got);
    any.sin6_addr = in6addr_loopback;
    any.sin6_port = htons(port_of(l));
    CALL(connect(six, ADDRESS(any)));
    len = sizeof(name);
    got = accept(l, (struct sockaddr *)&name, &len);
    shows("of 6", &name, len);
    close(got);
    close(fd);
    close(six);
    close(l);
    l = socket(AF_INET6, SOCK_STREAM, 0);
    int on = 1;
    CALL(setsockopt(l, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)));
    any = (struct sockaddr_in6){.sin6_family = AF_INET6};
    CALL(bind(l, ADDRESS(any)));
    CALL(setsockopt(l, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)));
    CALL(listen(l, 1));
    address = v4("127.0.0.1", port_of(l));
    fd = socket(AF_INET, SOCK_STREAM, 0);
    CALL(connect(fd, ADDRESS(address)));
    int four = socket(AF_INET, SOCK_STREAM, 0);
    CALL(bind(four, ADDRESS(address)));
    close(four);
    close(fd);
    close(l);
}

static void datagrams(void)
{
    struct sockaddr_in any = v4("127.0.0.1", 0), from;
    int receiver = socket(AF_INET, SOCK_DGRAM, 0), sender = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(bind(receiver, ADDRESS(any)) == 0);
    struct sockaddr_in to = v4("127.0.0.1", port_of(receiver));
    CALL(sendto(sender, "datagram", 8, 0, ADDRESS(to)));
    char buffer[100];
    socklen_t len = sizeof(from);
    CALL(recvfrom(receiver, buffer, 4, MSG_TRUNC, (struct sockaddr *)&from, &len));
    CHECK(ntohs(from.sin_port) == port_of(sender));
    CALL(sendto(receiver, "back", 4, 0, ADDRESS(from)));
    CALL(recv(sender, buffer, 100, 0));
    CALL(sendto(sender, big, 70000, 0, ADDRESS(to)));
    CALL(connect(sender, ADDRESS(to)));
    CALL(send(sender, "", 0, 0));
    printf("readable: %x\n", events(receiver));
    CALL(recv(receiver, buffer, 4, 0));
    close(receiver);
    CALL(send(sender, "nobody", 6, 0));
    struct timespec little = {0, 20000000};
    nanosleep(&little, NULL);
    printf("nobody: %x\n", events(sender));
    CALL(recv(sender, buffer, 4, MSG_DONTWAIT));
    CALL(recv(sender, buffer, 4, MSG_DONTWAIT));
    close(sender);
}

int main(void)
{
    /* So that it can be seen where it came to. */
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, on_pipe);
    making();
    ports();
    options();
    streams();
    ending();
    pairs(SOCK_STREAM);
    pairs(SOCK_DGRAM);
    pairs(SOCK_SEQPACKET);
    names();
    both_families();
    datagrams();
    return done();
}
