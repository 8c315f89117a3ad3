/* The observer: raw sockets that see every echo request which the host's own input rules let through. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/icmp.h>
#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <string.h>
#include <sys/epoll.h>

#include "serve.h"

enum { RECEIVE_BUFFER = 4 << 20, DATAGRAMS = 64 };

static struct watch raw4, raw6;

/* `echo` is an echo request of n bytes: 8 of header (ICMP and ICMPv6 alike), then the record. */
static void report(int family, const union addr *peer, const uint8_t *echo, ssize_t n)
{
    if (n < 8 + RECORD || memcmp(echo + 8, PROBE_MAGIC, 4))
        return;
    unsigned id = (unsigned)echo[4] << 8 | echo[5];
    say_event("a\ticmp\t%d\t%s\t%u\t0\t%lu\t%lu\n", family, addr_text(peer), id, record_token(echo + 8), now_ns());
}

static void raw_ready(struct watch *w, uint32_t events)
{
    (void)events;
    static uint8_t packet[65535];
    for (int i = 0; i < DATAGRAMS; i++) {
        union addr peer;
        socklen_t len = sizeof peer;
        ssize_t n = recvfrom(w->fd, packet, sizeof packet, MSG_DONTWAIT, &peer.sa, &len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return;
        /* IPv4 raw sockets give the IP header too, IPv6 ones do not. */
        size_t skip = w == &raw4 ? (packet[0] & 15u) * 4u : 0;
        report(w == &raw4 ? 4 : 6, &peer, packet + skip, n - (ssize_t)skip);
    }
}

void observe_icmp(void)
{
    raw4 = (struct watch){raw_ready, socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP)};
    raw6 = (struct watch){raw_ready, socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMPV6)};
    struct icmp_filter only4 = {~(1u << ICMP_ECHO)};
    struct icmp6_filter only6;
    ICMP6_FILTER_SETBLOCKALL(&only6);
    ICMP6_FILTER_SETPASS(ICMP6_ECHO_REQUEST, &only6);
    if (raw4.fd < 0 || raw6.fd < 0 || setsockopt(raw4.fd, SOL_RAW, ICMP_FILTER, &only4, sizeof only4) ||
        setsockopt(raw6.fd, IPPROTO_ICMPV6, ICMP6_FILTER, &only6, sizeof only6))
        die("--observe-icmp: %s", strerror(errno));
    int size = RECEIVE_BUFFER; /* every host may ask at once */
    setsockopt(raw4.fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    setsockopt(raw6.fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
}

void observe_icmp_start(void)
{
    if (raw4.ready) {
        loop_add(&raw4, EPOLLIN);
        loop_add(&raw6, EPOLLIN);
    }
}
