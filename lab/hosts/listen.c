/* TCP: listeners and what comes in through them: probe records, exploits, HTTP, and plain echo for all else. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "http.h"

enum { BACKLOG = 4096, ACCEPTS = 64, CHUNK = 65536 };
/* An enforcer may swallow the reset that ends a probe; what is answered must not be kept for ever. */
#define ANSWERED_NS 30000000000ULL

struct listener {
    struct watch w;
    uint16_t port;
    struct listener *next;
};
static struct listener *listeners;
static int spare_fd = -1; /* given up to take and refuse a connection when descriptors are out */

static void conn_ready(struct watch *w, uint32_t events);
static void conn_idle(struct timer *t);

static void refuse_one(int listener, int error)
{
    close(spare_fd);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        close(fd);
    spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    say_event("e\taccept\t%d\n", error);
}

static void accept_ready(struct watch *w, uint32_t events)
{
    (void)events;
    struct listener *l = container_of(w, struct listener, w);
    for (int i = 0; i < ACCEPTS; i++) {
        union addr peer;
        socklen_t len = sizeof peer;
        int fd = accept4(w->fd, &peer.sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
            refuse_one(w->fd, errno);
            return;
        }
        if (fd < 0 && errno == EAGAIN)
            return;
        if (fd < 0)
            continue; /* that one was gone before we took it */
        struct conn *c = need_zero(sizeof *c);
        c->w = (struct watch){conn_ready, fd};
        c->idle.fire = conn_idle;
        c->peer = peer;
        c->local_port = l->port;
        if (loop_add(&c->w, EPOLLIN))
            conn_close(c);
    }
}

int tcp_listen(int family, int port)
{
    union addr any;
    addr_parse(&any, family, family == 4 ? "0.0.0.0" : "::", port);
    int one = 1;
    int fd = socket(any.sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* accepted sockets inherit it */
    if (family == 6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    struct listener *l = need_zero(sizeof *l);
    l->w = (struct watch){accept_ready, fd};
    l->port = (uint16_t)port;
    int error = 0;
    if (bind(fd, &any.sa, addr_len(&any)) || listen(fd, BACKLOG))
        error = errno;
    else
        error = loop_add(&l->w, EPOLLIN);
    if (error) {
        close(fd);
        free(l);
        return error;
    }
    if (spare_fd < 0)
        spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    l->next = listeners;
    listeners = l;
    return 0;
}

int tcp_unlisten(int port)
{
    int closed = 0;
    for (struct listener **at = &listeners; *at;) {
        struct listener *l = *at;
        if (l->port != port) {
            at = &l->next;
            continue;
        }
        *at = l->next;
        loop_close(&l->w);
        loop_free(l);
        closed++;
    }
    return closed;
}

void conn_close(struct conn *c)
{
    if (c->http)
        http_end(c);
    timer_clear(&c->idle);
    loop_close(&c->w);
    buffer_clear(&c->unsent);
    loop_free(c);
}

static void conn_idle(struct timer *t)
{
    conn_close(container_of(t, struct conn, idle));
}

/* Send now what can be sent and keep the rest. False: the connection failed and is closed. */
static bool conn_send(struct conn *c, const void *bytes, size_t n)
{
    ssize_t sent = send(c->w.fd, bytes, n, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        conn_close(c);
        return false;
    }
    if (sent < 0)
        sent = 0;
    if ((size_t)sent < n) {
        buffer_add(&c->unsent, (const char *)bytes + sent, n - (size_t)sent);
        loop_change(&c->w, EPOLLOUT); /* read no more until it has gone */
    }
    return true;
}

static void report_arrival(struct conn *c)
{
    say_event("a\ttcp\t%d\t%s\t%d\t%u\t%lu\t%lu\n", addr_family(&c->peer), addr_text(&c->peer), addr_port(&c->peer),
              c->local_port, record_token(c->first), now_ns());
}

static bool answer_record(struct conn *c)
{
    report_arrival(c);
    timer_set(&c->idle, now_ns() + ANSWERED_NS);
    if (!memcmp(c->first, PROBE_MAGIC, 4))
        return conn_send(c, c->first, RECORD);
    if (!me.vulnerable) {
        conn_close(c);
        return false;
    }
    struct buffer loot = {0};
    uint64_t proof = record_nonce(c->first) ^ PROOF_KEY;
    buffer_add(&loot, "OWNED", 5);
    buffer_add(&loot, me.host, strlen(me.host) + 1);
    buffer_add(&loot, me.process, strlen(me.process) + 1);
    buffer_add(&loot, me.user, strlen(me.user) + 1);
    buffer_add(&loot, &proof, sizeof proof);
    bool alive = conn_send(c, buffer_head(&loot), loot.len);
    buffer_clear(&loot);
    return alive;
}

static bool starts(const uint8_t *bytes, size_t n, const char *magic)
{
    return !memcmp(bytes, magic, n < 4 ? n : 4);
}

/* Handle first bytes that are not plain echo from the start. Returns how many of `n` were taken; 0 if c is closed. */
static size_t first_bytes(struct conn *c, const uint8_t *bytes, size_t n)
{
    size_t room = RECORD - (size_t)c->first_len, taken = room < n ? room : n;
    memcpy(c->first + c->first_len, bytes, taken);
    c->first_len = (uint8_t)(c->first_len + taken);
    const uint8_t *first = c->first;
    size_t have = c->first_len;
    if (starts(first, have, PROBE_MAGIC) || starts(first, have, EXPLOIT_MAGIC)) {
        if (have < RECORD)
            return taken;
        c->kind = ECHO;
        return answer_record(c) ? taken : 0;
    }
    if (starts(first, have, "GET ") || starts(first, have, "POST")) {
        if (have < 4)
            return taken;
        c->kind = WEB;
        http_begin(c);
        c->first_len = 0;
        http_feed(c, (const char *)first, have);
        return c->w.fd < 0 ? 0 : taken;
    }
    c->kind = ECHO;
    return conn_send(c, first, have) ? taken : 0;
}

/* Whether they begin, as far as they go, like something other than plain echo. */
static bool special(const uint8_t *first, size_t n)
{
    return starts(first, n, PROBE_MAGIC) || starts(first, n, EXPLOIT_MAGIC) || starts(first, n, "GET ") ||
           starts(first, n, "POST");
}

static uint64_t wait_ns;

void tcp_echo_wait(uint64_t ns)
{
    wait_ns = ns;
}

/* Busily, by the clock: asleep, the processor would do other things, and wake up late. */
static void wait_before_answer(void)
{
    for (uint64_t end = wait_ns ? now_ns() + wait_ns : 0; end && now_ns() < end;)
        ;
}

static void feed(struct conn *c, const char *bytes, size_t n)
{
    if (c->kind == FRESH && !c->first_len && !special((const uint8_t *)bytes, n))
        c->kind = ECHO; /* in one piece: the measuring loops' 64 bytes must not become two segments */
    if (c->kind == FRESH) {
        size_t taken = first_bytes(c, (const uint8_t *)bytes, n);
        if (!taken || taken == n)
            return;
        bytes += taken;
        n -= taken;
    }
    if (c->kind == WEB)
        http_feed(c, bytes, n);
    else if (c->unsent.len)
        buffer_add(&c->unsent, bytes, n);
    else {
        wait_before_answer();
        conn_send(c, bytes, n);
    }
}

static bool flush_unsent(struct conn *c)
{
    ssize_t n = send(c->w.fd, buffer_head(&c->unsent), c->unsent.len, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        conn_close(c);
        return false;
    }
    if (n > 0)
        buffer_take(&c->unsent, (size_t)n);
    if (c->unsent.len)
        return true;
    buffer_clear(&c->unsent);
    loop_change(&c->w, EPOLLIN);
    return true;
}

static void conn_ready(struct watch *w, uint32_t events)
{
    static char chunk[CHUNK];
    struct conn *c = container_of(w, struct conn, w);
    if (events & EPOLLOUT) {
        if (c->kind == WEB)
            http_writable(c);
        else
            flush_unsent(c);
        return; /* what can be read is told again by the next pass */
    }
    ssize_t n = recv(w->fd, chunk, sizeof chunk, 0);
    if (n > 0)
        feed(c, chunk, (size_t)n);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        conn_close(c);
}
