/* Where it may listen. */
#define _GNU_SOURCE
#include "check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

static int at(int style, const char *ip, int port)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int is_v6 = strchr(ip, ':') != 0, one = 1;
    int fd = socket(is_v6 ? AF_INET6 : AF_INET, style, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (is_v6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one), inet_pton(AF_INET6, ip, &v6.sin6_addr);
    else inet_pton(AF_INET, ip, &v4.sin_addr);
    int failed = is_v6 ? bind(fd, (void *)&v6, sizeof v6) : bind(fd, (void *)&v4, sizeof v4);
    printf("%s %s %d: %s", style == SOCK_STREAM ? "tcp" : "udp", ip, port, failed ? strerrorname_np(errno) : "bound");
    if (!failed && style == SOCK_STREAM) printf(", %s", listen(fd, 5) ? strerrorname_np(errno) : "listens");
    printf("\n");
    return fd;
}

int main(void)
{
    at(SOCK_STREAM, "127.0.0.1", 8000), at(SOCK_STREAM, "::1", 8000);
    at(SOCK_STREAM, "0.0.0.0", 8001), at(SOCK_STREAM, "127.0.0.1", 8001);
    at(SOCK_STREAM, "127.0.0.1", 0);
    at(SOCK_DGRAM, "127.0.0.1", 8000), at(SOCK_DGRAM, "127.0.0.1", 8001), at(SOCK_DGRAM, "0.0.0.0", 0);
    int unbound = socket(AF_INET, SOCK_STREAM, 0);
    CALL(listen(unbound, 5));
    int local = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "/tmp/listens"};
    CALL(bind(local, (void *)&path, sizeof path));
    CALL(listen(local, 5));
    CALL(unlink("/tmp/listens"));
    return done();
}
