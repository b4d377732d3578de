/* Network interfaces: netlink(7), ioctl(2), getifaddrs(3), if_nameindex(3). Of the host's there may be others: what is printed is of
 * the loopback. */
#define _GNU_SOURCE
#include "check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static void libraries(void)
{
    struct ifaddrs *all, *one;
    CALL(getifaddrs(&all));
    for (one = all; one; one = one->ifa_next) {
        if (strcmp(one->ifa_name, "lo")) continue;
        char text[64] = "", mask[64] = "";
        int family = one->ifa_addr->sa_family;
        if (family == AF_INET) {
            inet_ntop(family, &((struct sockaddr_in *)one->ifa_addr)->sin_addr, text, sizeof text);
            inet_ntop(family, &((struct sockaddr_in *)one->ifa_netmask)->sin_addr, mask, sizeof mask);
        } else if (family == AF_INET6) {
            inet_ntop(family, &((struct sockaddr_in6 *)one->ifa_addr)->sin6_addr, text, sizeof text);
            inet_ntop(family, &((struct sockaddr_in6 *)one->ifa_netmask)->sin6_addr, mask, sizeof mask);
        }
        printf("%s: family %d, flags %x, %s %s\n", one->ifa_name, family, one->ifa_flags, text, mask);
    }
    freeifaddrs(all);
    struct if_nameindex *names = if_nameindex();
    CHECK(names && names[0].if_index == 1 && !strcmp(names[0].if_name, "lo"));
    if_freenameindex(names);
    CALL(if_nametoindex("lo"));
    CALL(if_nametoindex("none"));
    char name[IF_NAMESIZE];
    CHECK(if_indextoname(1, name) && !strcmp(name, "lo"));
    CHECK(!if_indextoname(9999, name) && errno == ENXIO);
}

#define ABOUT(number)                                                              \
    do {                                                                           \
        struct ifreq about = {.ifr_name = "lo"};                                   \
        CALL(ioctl(fd, number, &about));                                           \
        for (unsigned i = 0; i < 16; i++) printf(" %02x", ((unsigned char *)&about.ifr_ifru)[i]); \
        puts("");                                                                  \
    } while (0)

static void controls(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    ABOUT(SIOCGIFFLAGS);
    ABOUT(SIOCGIFADDR);
    ABOUT(SIOCGIFNETMASK);
    ABOUT(SIOCGIFBRDADDR);
    ABOUT(SIOCGIFMTU);
    ABOUT(SIOCGIFHWADDR);
    ABOUT(SIOCGIFINDEX);
    ABOUT(SIOCGIFTXQLEN);
    ABOUT(SIOCGIFMETRIC);
    struct ifreq none = {.ifr_name = "none"}, number = {.ifr_ifindex = 1};
    CALL(ioctl(fd, SIOCGIFFLAGS, &none));
    CALL(ioctl(fd, SIOCGIFNAME, &number));
    CHECK(!strcmp(number.ifr_name, "lo"));
    number.ifr_ifindex = 9999;
    CALL(ioctl(fd, SIOCGIFNAME, &number));
    CALL(ioctl(fd, SIOCGIFFLAGS, (void *)8));
    struct ifreq room[20];
    struct ifconf conf = {.ifc_len = sizeof room, .ifc_req = room};
    CALL(ioctl(fd, SIOCGIFCONF, &conf));
    CHECK(conf.ifc_len >= (int)sizeof *room && !strcmp(room[0].ifr_name, "lo"));
    conf.ifc_req = 0;
    CALL(ioctl(fd, SIOCGIFCONF, &conf));
    CHECK(conf.ifc_len >= (int)sizeof *room && conf.ifc_len % (int)sizeof *room == 0);
    conf = (struct ifconf){.ifc_len = 39, .ifc_req = room};
    CALL(ioctl(fd, SIOCGIFCONF, &conf));
    CHECK(conf.ifc_len == 0);
    int file = open("/dev/null", O_RDONLY);
    CALL(ioctl(file, SIOCGIFINDEX, &none));
    close(fd);
    close(file);
}

struct request {
    struct nlmsghdr head;
    union {
        struct ifinfomsg link;
        struct ifaddrmsg address;
        char bytes[64];
    };
};

/* Sends a request and prints what comes of it, as far as it is of the loopback. */
static void ask(int fd, unsigned type, unsigned flags, unsigned len, const struct request *body)
{
    struct request request = *body;
    request.head = (struct nlmsghdr){NLMSG_LENGTH(len), type, flags, 77, 0};
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    printf("  type %u, flags %x\n", type, flags);
    CALL(sendto(fd, &request, request.head.nlmsg_len, 0, (void *)&kernel, sizeof kernel));
    static char buffer[1 << 16];
    struct sockaddr_nl self;
    socklen_t size = sizeof self;
    getsockname(fd, (void *)&self, &size);
    for (;;) {
        struct sockaddr_nl from = {0};
        size = sizeof from;
        long n = recvfrom(fd, buffer, sizeof buffer, MSG_DONTWAIT, (void *)&from, &size);
        if (n < 0) {
            printf("    %s\n", strerrorname_np(errno));
            return;
        }
        CHECK(size == sizeof from && from.nl_family == AF_NETLINK && from.nl_pid == 0);
        for (struct nlmsghdr *head = (void *)buffer; NLMSG_OK(head, n); head = NLMSG_NEXT(head, n)) {
            CHECK(head->nlmsg_seq == 77 && head->nlmsg_pid == self.nl_pid);
            if (head->nlmsg_type == NLMSG_ERROR) printf("    error %d\n", ((struct nlmsgerr *)NLMSG_DATA(head))->error);
            else if (head->nlmsg_type == NLMSG_DONE) printf("    done\n");
            else if (head->nlmsg_type == RTM_NEWLINK) {
                struct ifinfomsg *link = NLMSG_DATA(head);
                if (link->ifi_index != 1) continue;
                printf("    link %d, type %d, flags %x:", link->ifi_family, link->ifi_type, link->ifi_flags);
                struct rtattr *part = IFLA_RTA(link);
                for (int left = IFLA_PAYLOAD(head); RTA_OK(part, left); part = RTA_NEXT(part, left))
                    if (part->rta_type == IFLA_IFNAME) printf(" %s", (char *)RTA_DATA(part));
                    else if (part->rta_type == IFLA_MTU) printf(" mtu %u", *(unsigned *)RTA_DATA(part));
                    else if (part->rta_type == IFLA_ADDRESS) printf(" %d bytes", (int)RTA_PAYLOAD(part));
                puts("");
            } else if (head->nlmsg_type == RTM_NEWADDR) {
                struct ifaddrmsg *address = NLMSG_DATA(head);
                if (address->ifa_index != 1) continue;
                char text[64] = "";
                struct rtattr *part = IFA_RTA(address);
                for (int left = IFA_PAYLOAD(head); RTA_OK(part, left); part = RTA_NEXT(part, left))
                    if (part->rta_type == IFA_ADDRESS) inet_ntop(address->ifa_family, RTA_DATA(part), text, sizeof text);
                printf("    address %d, /%d, flags %x, scope %d: %s\n", address->ifa_family, address->ifa_prefixlen,
                       address->ifa_flags, address->ifa_scope, text);
            } else printf("    type %u\n", head->nlmsg_type);
        }
    }
}

static void netlink(void)
{
    CALL(socket(AF_NETLINK, SOCK_STREAM, NETLINK_ROUTE));
    CALL(socket(AF_NETLINK, SOCK_RAW, 99));
    int pair[2], fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    CALL(socketpair(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE, pair));
    struct sockaddr_nl self = {.nl_family = AF_NETLINK}, none = self;
    socklen_t size = sizeof self;
    CALL(getsockname(fd, (void *)&self, &size));
    CHECK(size == 12 && self.nl_pid == 0);
    CALL(bind(fd, (void *)&self, 4));
    CALL(bind(fd, (void *)&(struct sockaddr_in){.sin_family = AF_INET}, 16));
    CALL(bind(fd, (void *)&self, sizeof self));
    CALL(getsockname(fd, (void *)&self, &size));
    CHECK(self.nl_family == AF_NETLINK && self.nl_pid != 0);
    int other = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE);
    CALL(bind(other, (void *)&self, sizeof self));
    self.nl_pid++;
    CALL(bind(fd, (void *)&self, sizeof self));
    CALL(connect(other, (void *)&none, sizeof none));
    CALL(listen(fd, 1));
    int value = 1;
    size = sizeof value;
    CALL(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &size));
    CHECK(value == AF_NETLINK);
    CALL(setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &value, sizeof value));
    CALL(setsockopt(fd, IPPROTO_TCP, 1, &value, sizeof value));
    CALL(recv(fd, &value, sizeof value, MSG_DONTWAIT));
    struct pollfd wait = {fd, POLLIN | POLLOUT, 0};
    CALL(poll(&wait, 1, 0));
    printf("%x\n", wait.revents);
    CALL(send(fd, "short", 5, 0));
    struct request body = {0};
    ask(fd, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, sizeof body.link, &body);
    ask(fd, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, sizeof body.address, &body);
    body.address.ifa_family = AF_INET6;
    ask(fd, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, sizeof body.address, &body);
    body = (struct request){.link = {.ifi_index = 1}};
    ask(fd, RTM_GETLINK, NLM_F_REQUEST, sizeof body.link, &body);
    ask(fd, RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, sizeof body.link, &body);
    body.link.ifi_index = 9999;
    ask(fd, RTM_GETLINK, NLM_F_REQUEST, sizeof body.link, &body);
    body = (struct request){0};
    struct rtattr name = {RTA_LENGTH(3), IFLA_IFNAME};
    memcpy(body.bytes + sizeof body.link, &name, sizeof name);
    memcpy(body.bytes + sizeof body.link + sizeof name, "lo", 3);
    ask(fd, RTM_GETLINK, NLM_F_REQUEST, sizeof body.link + 8, &body);
    ask(fd, RTM_GETLINK, 0, sizeof body.link, &body);
    ask(fd, RTM_GETLINK, NLM_F_ACK, sizeof body.link, &body);
    ask(fd, NLMSG_NOOP, NLM_F_REQUEST, sizeof body.link, &body);
    ask(fd, 999, NLM_F_REQUEST, sizeof body.link, &body);
    CALL(sendto(other, &body, 20, 0, (void *)&self, 4));
    self.nl_pid = 4000000;
    CALL(sendto(other, &body, 20, 0, (void *)&self, sizeof self));
    close(fd);
    close(other);
}

/* All there are, with their addresses; and whether names have addresses of IPv4 if only what interfaces have is wanted. */
static int all_of_them(void)
{
    struct ifaddrs *all, *one;
    CHECK(getifaddrs(&all) == 0);
    for (one = all; one; one = one->ifa_next) {
        char text[64] = "-";
        if (one->ifa_addr->sa_family == AF_INET) inet_ntop(AF_INET, &((struct sockaddr_in *)one->ifa_addr)->sin_addr, text, sizeof text);
        if (one->ifa_addr->sa_family == AF_INET6) inet_ntop(AF_INET6, &((struct sockaddr_in6 *)one->ifa_addr)->sin6_addr, text, sizeof text);
        printf("%s %s\n", one->ifa_name, text);
    }
    struct addrinfo hints = {.ai_flags = AI_ADDRCONFIG, .ai_family = AF_INET}, *found;
    printf("%d\n", getaddrinfo("192.0.2.7", 0, &hints, &found));
    return done();
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "all")) return all_of_them();
    libraries();
    controls();
    netlink();
    return done();
}
