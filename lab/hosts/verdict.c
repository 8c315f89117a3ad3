#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <time.h>

#include <linux/errqueue.h> /* wants struct timespec from above */

#include "serve.h"

const char *const outcome_names[] = {"OPEN", "REFUSED", "DENIED_LOCALLY", "UNREACHABLE", "TIMED_OUT", "BROKEN"};

/* EPERM and EACCES from the call itself are this host's doing (a firewall's output hook, a cgroup program). Coming
 * later they are the network's: ICMPv6 "administratively prohibited" arrives as EACCES (icmpv6_err_convert in
 * net/ipv6/icmp.c), its IPv4 sibling as EHOSTUNREACH (icmp_err_convert in net/ipv4/icmp.c). For a connected UDP
 * socket send() is the call itself, and recv() and the error queue are the network; a send() that met the ICMP error
 * of an earlier send would be told wrongly, but a probe sends once. An ICMPv6 ping socket hides what the output hooks said of its packet
 * (ping_v6_sendmsg in net/ipv6/ping.c drops the error), as TCP does of its SYN: both read as TIMED_OUT. Out of ports, descriptors or memory is our own
 * failure: BROKEN. */
enum outcome outcome_of(int error, bool direct)
{
    switch (error) {
    case ECONNREFUSED:
        return REFUSED;
    case EPERM:
    case EACCES:
        return direct ? DENIED_LOCALLY : UNREACHABLE;
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EHOSTDOWN:
    case ENOPROTOOPT: /* ICMP "protocol unreachable" */
        return UNREACHABLE;
    case ETIMEDOUT:
        return TIMED_OUT;
    default:
        return BROKEN;
    }
}

void report_errors(int fd, int family)
{
    int one = 1;
    setsockopt(fd, family == 4 ? IPPROTO_IP : IPPROTO_IPV6, family == 4 ? IP_RECVERR : IPV6_RECVERR, &one, sizeof one);
}

int queued_error(int fd)
{
    int error = 0;
    for (;;) {
        uint8_t payload[64], control[512];
        struct iovec iov = {payload, sizeof payload};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        if (recvmsg(fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            return error;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
            if ((c->cmsg_level != IPPROTO_IP || c->cmsg_type != IP_RECVERR) &&
                (c->cmsg_level != IPPROTO_IPV6 || c->cmsg_type != IPV6_RECVERR))
                continue;
            struct sock_extended_err *e = (struct sock_extended_err *)CMSG_DATA(c);
            if (!is_advice((int)e->ee_errno))
                error = (int)e->ee_errno;
        }
    }
}

bool is_advice(int error)
{
    return error == EREMOTEIO || error == EMSGSIZE;
}

static void put_u64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_u64(const uint8_t *at)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

void record_make(uint8_t out[RECORD], const char *magic, uint64_t token, uint64_t nonce)
{
    memset(out, 0, RECORD);
    memcpy(out, magic, 4);
    put_u64(out + 8, token);
    put_u64(out + 16, nonce);
}

uint64_t record_token(const uint8_t *record)
{
    return get_u64(record + 8);
}

uint64_t record_nonce(const uint8_t *record)
{
    return get_u64(record + 16);
}
