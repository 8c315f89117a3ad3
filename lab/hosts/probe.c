/* Attempts on command: TCP, UDP and ICMP echo, asynchronous, hundreds to thousands under way. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "serve.h"

enum { TCP, UDP, ICMP, LOOT = 1024, ECHO_HEADER = 8, ICMP4_ECHO = 8, ICMP6_ECHO = 128 };

struct probe {
    struct watch w;
    struct timer deadline;
    uint64_t token, start_ns, connect_ns;
    uint32_t bytes;
    uint16_t sport;
    uint8_t proto, got;
    bool reach; /* the other end is no service of ours: it need not answer as one */
    uint8_t record[RECORD];
    uint8_t answer[RECORD];
    uint8_t *loot; /* not NULL: an exploit, and what it brought back */
    uint32_t loot_len;
};

static void take_loot(const struct probe *p, const char *fields[3])
{
    fields[0] = fields[1] = fields[2] = "";
    const char *at = (const char *)p->loot + 5, *end = (const char *)p->loot + p->loot_len - 8;
    uint64_t proof;
    if (p->loot_len < 5 + 3 + 8 || memcmp(p->loot, "OWNED", 5))
        return;
    memcpy(&proof, end, 8);
    if (proof != (record_nonce(p->record) ^ PROOF_KEY))
        return;
    const char *found[3];
    for (int i = 0; i < 3; i++) {
        found[i] = at;
        at = memchr(at, '\0', (size_t)(end - at));
        if (!at++)
            return;
    }
    memcpy(fields, found, sizeof found);
}

static void finish(struct probe *p, enum outcome outcome, int error)
{
    uint64_t end = now_ns();
    char tail[LOOT + 8] = "";
    if (p->loot) {
        const char *f[3];
        take_loot(p, f);
        snprintf(tail, sizeof tail, "\t%s\t%s\t%s", f[0], f[1], f[2]);
    }
    say_event("%c\t%lu\t%s\t%d\t%u\t%lu\t%lu\t%lu\t%u%s\n", p->loot ? 'x' : 'p', p->token, outcome_names[outcome], error,
              p->sport, p->start_ns, p->connect_ns, end, p->bytes, tail);
    timer_clear(&p->deadline);
    loop_close(&p->w);
    free(p->loot);
    loop_free(p);
}

static void out_of_time(struct timer *t)
{
    struct probe *p = container_of(t, struct probe, deadline);
    /* Connected and then silent is another thing than never connected. */
    finish(p, p->connect_ns ? BROKEN : TIMED_OUT, p->connect_ns ? ETIMEDOUT : 0);
}

/* --- TCP --- */

static void tcp_connected(struct probe *p)
{
    p->connect_ns = now_ns();
    if (p->reach) {
        finish(p, OPEN, 0);
        return;
    }
    ssize_t n = send(p->w.fd, p->record, RECORD, MSG_NOSIGNAL);
    if (n != RECORD) /* a fresh connection has room for it */
        finish(p, BROKEN, n < 0 ? errno : 0);
    else
        p->bytes += RECORD;
}

/* Read what there is. 1: some, 0: none yet, -1: the attempt is over. */
static int tcp_read(struct probe *p)
{
    uint8_t *into = p->loot ? p->loot + p->loot_len : p->answer + p->got;
    size_t room = p->loot ? LOOT - p->loot_len : RECORD - (uint32_t)p->got;
    ssize_t n = recv(p->w.fd, into, room, 0);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n < 0 && errno == EINTR)
        return 1;
    if (n <= 0) {
        finish(p, BROKEN, n < 0 ? errno : 0);
        return -1;
    }
    p->bytes += (uint32_t)n;
    if (p->loot)
        p->loot_len += (uint32_t)n;
    else
        p->got = (uint8_t)(p->got + n);
    return 1;
}

/* An answer is whole when it is the record again, or loot with a proof that fits the nonce. */
static bool tcp_whole(const struct probe *p, bool *good)
{
    const char *f[3];
    if (!p->loot) {
        *good = p->got == RECORD && !memcmp(p->answer, p->record, RECORD);
        return p->got == RECORD;
    }
    take_loot(p, f);
    *good = *f[0] != '\0';
    return *good || p->loot_len == LOOT || (p->loot_len >= 5 && memcmp(p->loot, "OWNED", 5));
}

static void tcp_ready(struct watch *w, uint32_t events)
{
    struct probe *p = container_of(w, struct probe, w);
    if (!p->connect_ns) {
        int error = 0;
        socklen_t len = sizeof error;
        getsockopt(w->fd, SOL_SOCKET, SO_ERROR, &error, &len);
        if (events & EPOLLERR) {
            int queued = queued_error(w->fd);
            error = error ? error : queued;
        }
        if (error) {
            finish(p, outcome_of(error, false), error);
            return;
        }
        if (!(events & EPOLLOUT))
            return;
        tcp_connected(p);
        if (w->fd < 0 || !(events & (EPOLLIN | EPOLLHUP)))
            return;
    }
    for (bool good; tcp_read(p) > 0;) {
        if (tcp_whole(p, &good)) {
            finish(p, good ? OPEN : BROKEN, 0);
            return;
        }
    }
}

static int tcp_open(const union addr *to, int *fd)
{
    int one = 1;
    struct linger reset = {1, 0}; /* no TIME_WAIT, which would cap the rate after 14,000 attempts to one port */
    *fd = socket(to->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (*fd < 0)
        return errno;
    setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(*fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    report_errors(*fd, addr_family(to));
    return connect(*fd, &to->sa, addr_len(to)) && errno != EINPROGRESS ? errno : 0;
}

/* --- UDP and ICMP --- */

static int datagram_open(const union addr *to, int proto, int *fd)
{
    int icmp = addr_family(to) == 4 ? (int)IPPROTO_ICMP : (int)IPPROTO_ICMPV6;
    int kind = proto == UDP ? (int)IPPROTO_UDP : icmp;
    *fd = socket(to->sa.sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, kind);
    if (*fd < 0)
        return errno;
    report_errors(*fd, addr_family(to));
    union addr peer = *to;
    if (proto == ICMP)
        peer.in.sin_port = 0; /* sin6_port lies at the same place */
    return connect(*fd, &peer.sa, addr_len(to)) ? errno : 0;
}

static int datagram_send(struct probe *p, bool v4)
{
    uint8_t packet[ECHO_HEADER + RECORD] = {v4 ? ICMP4_ECHO : ICMP6_ECHO}; /* the kernel fills identifier, checksum */
    packet[7] = 1;
    memcpy(packet + ECHO_HEADER, p->record, RECORD);
    size_t skip = p->proto == ICMP ? 0 : ECHO_HEADER;
    ssize_t n;
    do
        n = send(p->w.fd, packet + skip, sizeof packet - skip, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno;
    p->bytes += RECORD;
    return 0;
}

static void datagram_ready(struct watch *w, uint32_t events)
{
    struct probe *p = container_of(w, struct probe, w);
    uint8_t packet[2048];
    size_t skip = p->proto == ICMP ? ECHO_HEADER : 0;
    int error = events & EPOLLERR ? queued_error(w->fd) : 0;
    for (;;) {
        ssize_t n = recv(w->fd, packet, sizeof packet, 0);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0 && errno != EINTR && !is_advice(errno))
            error = errno;
        if (n > 0 && (p->reach || ((size_t)n == skip + RECORD && !memcmp(packet + skip, p->record, RECORD)))) {
            p->bytes += (uint32_t)((size_t)n - (p->reach ? 0 : skip));
            finish(p, OPEN, 0);
            return;
        }
    }
    if (error)
        finish(p, outcome_of(error, false), error);
}

/* --- starting --- */

static void start(struct probe *p, int family, const char *address, int port, long timeout_ms)
{
    union addr to, local;
    socklen_t len = sizeof local;
    p->w = (struct watch){p->proto == TCP ? tcp_ready : datagram_ready, -1};
    p->start_ns = now_ns();
    if (!addr_parse(&to, family, address, port)) {
        finish(p, BROKEN, EINVAL);
        return;
    }
    int error = p->proto == TCP ? tcp_open(&to, &p->w.fd) : datagram_open(&to, p->proto, &p->w.fd);
    if (p->w.fd >= 0 && !getsockname(p->w.fd, &local.sa, &len)) {
        p->sport = (uint16_t)addr_port(&local);
        /* To a port of our own that nobody listens on, a TCP socket can be given that very port and meet itself. */
        if (!error && p->proto == TCP && addr_same(&local, &to))
            error = ECONNREFUSED;
    }
    if (!error && p->proto != TCP)
        error = datagram_send(p, family == 4);
    if (error) {
        finish(p, outcome_of(error, true), error);
        return;
    }
    p->deadline.fire = out_of_time;
    timer_set(&p->deadline, p->start_ns + (uint64_t)timeout_ms * 1000000u);
    /* Edge-triggered, both ways from the start: one registration serves connect and answer. */
    error = loop_add(&p->w, p->proto == TCP ? EPOLLIN | EPOLLOUT | EPOLLET : EPOLLIN);
    if (error)
        finish(p, BROKEN, error);
}

bool probe_start(char **f, int n, bool reach)
{
    static const char *const names[] = {"tcp", "udp", "icmp"};
    long family, port, timeout_ms;
    uint64_t token;
    int proto = 0;
    if (n != 6 || !parse_u64(f[0], &token) || !parse_long(f[2], 4, 6, &family) || !parse_long(f[4], 0, 65535, &port) ||
        !parse_long(f[5], 1, 3600000, &timeout_ms))
        return false;
    while (proto < 3 && strcmp(f[1], names[proto]))
        proto++;
    if (proto == 3)
        return false;
    struct probe *p = need_zero(sizeof *p);
    p->token = token;
    p->proto = (uint8_t)proto;
    p->reach = reach && proto != ICMP;
    record_make(p->record, PROBE_MAGIC, token, 0);
    start(p, (int)family, f[3], (int)port, timeout_ms);
    return true;
}

bool exploit_start(char **f, int n)
{
    long family, port, timeout_ms;
    uint64_t token, nonce;
    if (n != 6 || !parse_u64(f[0], &token) || !parse_long(f[1], 4, 6, &family) || !parse_long(f[3], 1, 65535, &port) ||
        !parse_long(f[4], 1, 3600000, &timeout_ms) || !parse_u64(f[5], &nonce))
        return false;
    struct probe *p = need_zero(sizeof *p);
    p->token = token;
    p->proto = TCP;
    p->loot = need_zero(LOOT);
    record_make(p->record, EXPLOIT_MAGIC, token, nonce);
    start(p, (int)family, f[2], (int)port, timeout_ms);
    return true;
}
