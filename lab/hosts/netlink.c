#define _GNU_SOURCE
#include "netlink.h"

#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { ROOM = 32768, LARGEST_MESSAGE = 512 };

void netlink_open(struct netlink *n)
{
    *n = (struct netlink){.fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), .buffer = need(ROOM)};
    int one = 1;
    if (n->fd < 0)
        die("netlink: %s", strerror(errno));
    setsockopt(n->fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one); /* an error need not repeat the message */
}

void netlink_close(struct netlink *n)
{
    close(n->fd);
    free(n->buffer);
}

unsigned netlink_index(const struct netlink *n, const char *name)
{
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    return ioctl(n->fd, SIOCGIFINDEX, &request) ? 0 : (unsigned)request.ifr_ifindex;
}

static const char *kind_of(uint16_t type)
{
    switch (type) {
    case RTM_NEWLINK: return "link";
    case RTM_NEWADDR: return "address";
    case RTM_NEWROUTE: return "default route";
    default: return "neighbour";
    }
}

/* Send the queue. The kernel answers only errors, and the last message, which asks for it. */
static void flush(struct netlink *n)
{
    if (!n->len)
        return;
    struct nlmsghdr *last = NULL;
    for (unsigned at = 0; at < n->len; at += NLMSG_ALIGN(last->nlmsg_len))
        last = (struct nlmsghdr *)(n->buffer + at);
    last->nlmsg_flags |= NLM_F_ACK;
    uint32_t awaited = last->nlmsg_seq;
    uint32_t first = ((struct nlmsghdr *)n->buffer)->nlmsg_seq;
    if (send(n->fd, n->buffer, n->len, 0) != (ssize_t)n->len)
        die("netlink: %s", strerror(errno));
    for (bool done = false; !done;) {
        char answers[8192];
        ssize_t got = recv(n->fd, answers, sizeof answers, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            die("netlink: %s", strerror(errno));
        for (struct nlmsghdr *h = (struct nlmsghdr *)answers; NLMSG_OK(h, got); h = NLMSG_NEXT(h, got)) {
            if (h->nlmsg_type != NLMSG_ERROR)
                continue;
            int error = -((struct nlmsgerr *)NLMSG_DATA(h))->error;
            struct nlmsghdr *of = (struct nlmsghdr *)n->buffer;
            for (uint32_t s = first; s != h->nlmsg_seq; s++)
                of = (struct nlmsghdr *)((char *)of + NLMSG_ALIGN(of->nlmsg_len));
            if (error && !n->error) {
                n->error = error;
                n->what = kind_of(of->nlmsg_type);
            }
            done = done || h->nlmsg_seq == awaited;
        }
    }
    n->len = 0;
}

int netlink_sync(struct netlink *n)
{
    flush(n);
    int error = n->error;
    n->error = 0;
    return error;
}

/* --- messages; every length is known to fit in LARGEST_MESSAGE --- */

static struct nlmsghdr *begin(struct netlink *n, uint16_t type, uint16_t flags, const void *head, size_t size)
{
    if (n->len + LARGEST_MESSAGE > ROOM)
        flush(n);
    struct nlmsghdr *h = (struct nlmsghdr *)(n->buffer + n->len);
    memset(h, 0, LARGEST_MESSAGE);
    *h = (struct nlmsghdr){NLMSG_LENGTH(size), type, NLM_F_REQUEST | NLM_F_CREATE | flags, ++n->seq, 0};
    memcpy(NLMSG_DATA(h), head, size);
    return h;
}

static void end(struct netlink *n, const struct nlmsghdr *h)
{
    n->len += NLMSG_ALIGN(h->nlmsg_len);
}

static struct rtattr *put(struct nlmsghdr *h, uint16_t type, const void *data, size_t size)
{
    struct rtattr *a = (struct rtattr *)((char *)h + NLMSG_ALIGN(h->nlmsg_len));
    *a = (struct rtattr){(uint16_t)RTA_LENGTH(size), type};
    if (size)
        memcpy(RTA_DATA(a), data, size);
    h->nlmsg_len = NLMSG_ALIGN(h->nlmsg_len) + (uint32_t)RTA_LENGTH(size);
    return a;
}

static void put_text(struct nlmsghdr *h, uint16_t type, const char *text)
{
    put(h, type, text, strlen(text) + 1);
}

static void put_u32(struct nlmsghdr *h, uint16_t type, uint32_t value)
{
    put(h, type, &value, sizeof value);
}

static void put_address(struct nlmsghdr *h, uint16_t type, const union addr *a)
{
    if (addr_family(a) == 4)
        put(h, type, &a->in.sin_addr, 4);
    else
        put(h, type, &a->in6.sin6_addr, 16);
}

static void nest_end(struct nlmsghdr *h, struct rtattr *nest)
{
    nest->rta_len = (uint16_t)((char *)h + h->nlmsg_len - (char *)nest);
}

void netlink_bridge(struct netlink *n, const char *name)
{
    struct ifinfomsg link = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    struct nlmsghdr *h = begin(n, RTM_NEWLINK, 0, &link, sizeof link);
    put_text(h, IFLA_IFNAME, name);
    struct rtattr *info = put(h, IFLA_LINKINFO, NULL, 0);
    put_text(h, IFLA_INFO_KIND, "bridge");
    struct rtattr *data = put(h, IFLA_INFO_DATA, NULL, 0);
    put_u32(h, IFLA_BR_FORWARD_DELAY, 0);
    put(h, IFLA_BR_MCAST_SNOOPING, &(uint8_t){0}, 1);
    nest_end(h, data);
    nest_end(h, info);
    end(n, h);
}

void netlink_pair(struct netlink *n, const char *port, unsigned master, const char *name, const uint8_t mac[6],
                  int netns_fd)
{
    struct ifinfomsg link = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    struct nlmsghdr *h = begin(n, RTM_NEWLINK, NLM_F_EXCL, &link, sizeof link);
    put_text(h, IFLA_IFNAME, port);
    put_u32(h, IFLA_MASTER, master);
    struct rtattr *info = put(h, IFLA_LINKINFO, NULL, 0);
    put_text(h, IFLA_INFO_KIND, "veth");
    struct rtattr *data = put(h, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *peer = put(h, VETH_INFO_PEER, &(struct ifinfomsg){0}, sizeof link);
    put_text(h, IFLA_IFNAME, name);
    put(h, IFLA_ADDRESS, mac, 6);
    put_u32(h, IFLA_NET_NS_FD, (uint32_t)netns_fd);
    nest_end(h, peer);
    nest_end(h, data);
    nest_end(h, info);
    end(n, h);
}

void netlink_up(struct netlink *n, unsigned device)
{
    struct ifinfomsg link = {.ifi_index = (int)device, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    end(n, begin(n, RTM_NEWLINK, 0, &link, sizeof link));
}

static void add_address(struct netlink *n, uint16_t flags, unsigned device, const union addr *a, int prefix)
{
    struct ifaddrmsg address = {.ifa_family = (uint8_t)a->sa.sa_family, .ifa_prefixlen = (uint8_t)prefix,
                                .ifa_flags = IFA_F_NODAD, .ifa_index = device};
    if (addr_family(a) == 4)
        address.ifa_flags = 0;
    struct nlmsghdr *h = begin(n, RTM_NEWADDR, flags, &address, sizeof address);
    put_address(h, IFA_LOCAL, a);
    put_address(h, IFA_ADDRESS, a);
    end(n, h);
}

void netlink_address(struct netlink *n, unsigned device, const union addr *a, int prefix)
{
    add_address(n, NLM_F_EXCL, device, a, prefix);
}

void netlink_readdress(struct netlink *n, unsigned device, const union addr *a, int prefix)
{
    add_address(n, NLM_F_REPLACE, device, a, prefix);
}

void netlink_default(struct netlink *n, unsigned device, const union addr *gateway)
{
    struct rtmsg route = {.rtm_family = (uint8_t)gateway->sa.sa_family, .rtm_table = RT_TABLE_MAIN,
                          .rtm_protocol = RTPROT_BOOT, .rtm_type = RTN_UNICAST};
    struct nlmsghdr *h = begin(n, RTM_NEWROUTE, NLM_F_EXCL, &route, sizeof route);
    put_address(h, RTA_GATEWAY, gateway);
    put_u32(h, RTA_OIF, device);
    end(n, h);
}

void netlink_neighbour(struct netlink *n, unsigned device, const union addr *a, const uint8_t mac[6])
{
    struct ndmsg neighbour = {.ndm_family = (uint8_t)a->sa.sa_family, .ndm_ifindex = (int)device,
                              .ndm_state = NUD_PERMANENT};
    struct nlmsghdr *h = begin(n, RTM_NEWNEIGH, NLM_F_REPLACE, &neighbour, sizeof neighbour);
    put_address(h, NDA_DST, a);
    put(h, NDA_LLADDR, mac, 6);
    end(n, h);
}
