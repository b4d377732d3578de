/* What UDP's packets say beside their bytes: setsockopt(2), sendmsg(2), recvmsg(2) with IP_PKTINFO, IP_TTL, IP_TOS, and IPv6's. */
#define _GNU_SOURCE
#include "check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define SET(fd, level, name, number)                                      \
    do {                                                                  \
        int number_ = number;                                             \
        CALL(setsockopt(fd, level, name, &number_, sizeof number_));      \
    } while (0)

static int udp(int family, const char *address, struct sockaddr_storage *name)
{
    int fd = socket(family, SOCK_DGRAM, 0);
    socklen_t len = sizeof *name;
    memset(name, 0, len);
    name->ss_family = family;
    if (family == AF_INET) inet_pton(family, address, &((struct sockaddr_in *)name)->sin_addr);
    else inet_pton(family, address, &((struct sockaddr_in6 *)name)->sin6_addr);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)name, len) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)name, &len) == 0);
    return fd;
}

/* The same port at another address. */
static struct sockaddr_storage at(struct sockaddr_storage name, const char *address)
{
    if (name.ss_family == AF_INET) inet_pton(AF_INET, address, &((struct sockaddr_in *)&name)->sin_addr);
    else inet_pton(AF_INET6, address, &((struct sockaddr_in6 *)&name)->sin6_addr);
    return name;
}

static long sends(int fd, struct sockaddr_storage to, const void *control, size_t len)
{
    struct iovec piece = {"hello", 5};
    struct msghdr message = {&to, to.ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6), &piece, 1,
                             (void *)control, len, 0};
    return sendmsg(fd, &message, 0);
}

/* One item beside the message. */
static long with(int fd, struct sockaddr_storage to, int level, int type, const void *data, size_t len)
{
    union {
        struct cmsghdr head;
        char bytes[64];
    } control = {.head = {CMSG_LEN(len), level, type}};
    memcpy(CMSG_DATA(&control.head), data, len);
    return sends(fd, to, &control, CMSG_SPACE(len));
}

/* Receives with so much room for what is told, and prints it. */
static void told(int fd, size_t room)
{
    char bytes[10], control[256];
    memset(control, 0xee, sizeof control);
    struct sockaddr_storage from;
    struct iovec piece = {bytes, sizeof bytes};
    struct msghdr message = {&from, sizeof from, &piece, 1, control, room, 0};
    errno = 0;
    long n = recvmsg(fd, &message, MSG_DONTWAIT);
    printf("    %ld %s, %zu bytes told, flags %x\n", n, n < 0 ? strerrorname_np(errno) : "", n < 0 ? 0 : message.msg_controllen,
           n < 0 ? 0 : message.msg_flags);
    if (n < 0) return;
    char text[64] = "";
    if (from.ss_family == AF_INET) inet_ntop(AF_INET, &((struct sockaddr_in *)&from)->sin_addr, text, sizeof text);
    else inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&from)->sin6_addr, text, sizeof text);
    printf("    from %s\n", text);
    for (struct cmsghdr *item = CMSG_FIRSTHDR(&message); item; item = CMSG_NXTHDR(&message, item)) {
        printf("    %d %d, %zu:", item->cmsg_level, item->cmsg_type, (size_t)item->cmsg_len);
        for (size_t i = CMSG_LEN(0); i < item->cmsg_len; i++) printf(" %02x", ((unsigned char *)item)[i]);
        puts("");
    }
}

static void v4(void)
{
    struct sockaddr_storage here, there;
    int one = udp(AF_INET, "127.0.0.1", &here), two = udp(AF_INET, "0.0.0.0", &there);
    struct sockaddr_storage to = at(there, "127.0.0.1");
    CALL(sends(one, to, 0, 0));
    told(two, 256); /* nobody asked */
    SET(two, IPPROTO_IP, IP_PKTINFO, 1);
    CALL(sends(one, to, 0, 0));
    told(two, 256);
    CALL(sends(one, at(there, "127.0.0.5"), 0, 0));
    told(two, 256);
    SET(two, IPPROTO_IP, IP_RECVTTL, 1);
    SET(two, IPPROTO_IP, IP_RECVTOS, 1);
    CALL(sends(one, to, 0, 0));
    told(two, 256);
    for (size_t room = 0; room < 80; room += 4) {
        CALL(sends(one, to, 0, 0));
        told(two, room);
    }
    SET(one, IPPROTO_IP, IP_TTL, 9);
    SET(one, IPPROTO_IP, IP_TOS, 0x10);
    CALL(sends(one, to, 0, 0));
    told(two, 256);
    int numbers[] = {7, 255, 256, 0, -1};
    for (int i = 0; i < 5; i++) {
        CALL(with(one, to, IPPROTO_IP, IP_TTL, &numbers[i], 4));
        told(two, 256);
        CALL(with(one, to, IPPROTO_IP, IP_TOS, &numbers[i], 4));
        told(two, 256);
    }
    char class = 0x20;
    CALL(with(one, to, IPPROTO_IP, IP_TOS, &class, 1));
    told(two, 256);
    CALL(with(one, to, IPPROTO_IP, IP_TTL, &class, 1));
    CALL(with(one, to, IPPROTO_IP, 99, &numbers, 4));
    CALL(with(one, to, IPPROTO_IPV6, IPV6_HOPLIMIT, &numbers, 4));
    told(two, 256);
    struct in_pktinfo info = {.ipi_spec_dst = {htonl(0x7f000009)}};
    CALL(with(two, here, IPPROTO_IP, IP_PKTINFO, &info, sizeof info));
    told(one, 256);
    CALL(with(two, here, IPPROTO_IP, IP_PKTINFO, &info, sizeof info - 4));
    info.ipi_spec_dst.s_addr = htonl(0xc0000201); /* 192.0.2.1; why not differs between kernels */
    CHECK(with(two, here, IPPROTO_IP, IP_PKTINFO, &info, sizeof info) == -1);
    SET(two, IPPROTO_IP, IP_PKTINFO, 0);
    CALL(sends(one, to, 0, 0));
    told(two, 256);
    close(one);
    close(two);
}

static void v6(void)
{
    struct sockaddr_storage here, there;
    int one = udp(AF_INET6, "::1", &here), two = udp(AF_INET6, "::", &there);
    struct sockaddr_storage to = at(there, "::1");
    SET(two, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
    SET(two, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
    SET(two, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
    SET(two, IPPROTO_IP, IP_RECVTTL, 1);
    CALL(sends(one, to, 0, 0));
    told(two, 256);
    for (size_t room = 0; room < 100; room += 4) {
        CALL(sends(one, to, 0, 0));
        told(two, room);
    }
    SET(one, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 5);
    SET(one, IPPROTO_IPV6, IPV6_TCLASS, 6);
    CALL(sends(one, to, 0, 0));
    told(two, 256);
    int numbers[] = {7, 0, 255, 256, -1, -2};
    for (int i = 0; i < 6; i++) {
        CALL(with(one, to, IPPROTO_IPV6, IPV6_HOPLIMIT, &numbers[i], 4));
        told(two, 256);
        if (numbers[i] == -1) continue; /* what it is then differs, too */
        CALL(with(one, to, IPPROTO_IPV6, IPV6_TCLASS, &numbers[i], 4));
        told(two, 256);
    }
    CALL(with(one, to, IPPROTO_IPV6, IPV6_HOPLIMIT, numbers, 5));
    CALL(with(one, to, IPPROTO_IPV6, 99, numbers, 4));
    CALL(with(one, to, IPPROTO_IP, IP_TTL, numbers, 4));
    told(two, 256);
    struct in6_pktinfo info = {.ipi6_addr = IN6ADDR_LOOPBACK_INIT};
    CALL(with(two, here, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info));
    told(one, 256);
    CALL(with(two, here, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info - 4));
    inet_pton(AF_INET6, "2001:db8::1", &info.ipi6_addr);
    CALL(with(two, here, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info));
    /* From IPv4 to a socket of both. */
    struct sockaddr_storage small;
    int three = udp(AF_INET, "127.0.0.1", &small);
    ((struct sockaddr_in *)&small)->sin_port = ((struct sockaddr_in6 *)&there)->sin6_port;
    CALL(sends(three, small, 0, 0));
    told(two, 256);
    close(one);
    close(two);
    close(three);
}

int main(void)
{
    v4();
    v6();
    return done();
}
