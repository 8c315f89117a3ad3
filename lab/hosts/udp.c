/* UDP: echo every datagram from the address that it was sent to, since a host may have several. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "serve.h"

enum { DATAGRAMS = 64, LARGEST = 65535 };

struct udp_socket {
    struct watch w;
    uint16_t port;
    struct udp_socket *next;
};
static struct udp_socket *sockets;

/* Turn the packet information of what came into that of the answer: from the address asked, by any route. */
static void answer_from(struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo *info = (struct in_pktinfo *)CMSG_DATA(c);
            info->ipi_ifindex = 0;
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo *info = (struct in6_pktinfo *)CMSG_DATA(c);
            if (!IN6_IS_ADDR_LINKLOCAL(&info->ipi6_addr))
                info->ipi6_ifindex = 0;
        }
    }
}

static void udp_ready(struct watch *w, uint32_t events)
{
    (void)events;
    static uint8_t datagram[LARGEST];
    struct udp_socket *s = container_of(w, struct udp_socket, w);
    for (int i = 0; i < DATAGRAMS; i++) {
        char control[CMSG_SPACE(sizeof(struct in6_pktinfo))];
        union addr peer;
        struct iovec iov = {datagram, sizeof datagram};
        struct msghdr msg = {.msg_name = &peer, .msg_namelen = sizeof peer, .msg_iov = &iov, .msg_iovlen = 1,
                             .msg_control = control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(w->fd, &msg, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return;
        if (n >= RECORD && !memcmp(datagram, PROBE_MAGIC, 4))
            say_event("a\tudp\t%d\t%s\t%d\t%u\t%lu\t%lu\n", addr_family(&peer), addr_text(&peer), addr_port(&peer),
                      s->port, record_token(datagram), now_ns());
        answer_from(&msg);
        iov.iov_len = (size_t)n;
        msg.msg_flags = 0;
        sendmsg(w->fd, &msg, MSG_NOSIGNAL); /* an answer that is refused here is lost, as the asker will see */
    }
}

int udp_listen(int family, int port)
{
    union addr any;
    addr_parse(&any, family, family == 4 ? "0.0.0.0" : "::", port);
    int one = 1;
    int fd = socket(any.sa.sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    if (family == 6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof one);
    } else {
        setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
    }
    struct udp_socket *s = need_zero(sizeof *s);
    s->w = (struct watch){udp_ready, fd};
    s->port = (uint16_t)port;
    int error = bind(fd, &any.sa, addr_len(&any)) ? errno : loop_add(&s->w, EPOLLIN);
    if (error) {
        close(fd);
        free(s);
        return error;
    }
    s->next = sockets;
    sockets = s;
    return 0;
}

int udp_unlisten(int port)
{
    int closed = 0;
    for (struct udp_socket **at = &sockets; *at;) {
        struct udp_socket *s = *at;
        if (s->port != port) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        loop_close(&s->w);
        loop_free(s);
        closed++;
    }
    return closed;
}
