/* The calls a service makes downstream before it answers an HTTP request: one GET each, a new connection each. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "http.h"

enum { ANSWER_LIMIT = 65536 };
#define PATIENCE_NS 2000000000ULL

struct target {
    union addr addr;
    char text[INET6_ADDRSTRLEN]; /* as it was given to us, so that reports can be joined by it */
};
static struct target *targets;
static size_t target_count, next_target;

struct call {
    struct watch w;
    struct timer deadline;
    struct conn *conn; /* NULL: it closed meanwhile */
    union addr to;
    char text[INET6_ADDRSTRLEN];
    uint64_t start_ns, connect_ns;
    size_t bytes;
    struct buffer in;
};

bool calls_set(char *text)
{
    struct target *fresh = NULL;
    size_t n = 0;
    for (char *at = *text ? text : NULL, *rest; at; at = rest) {
        rest = strchr(at, ';');
        if (rest)
            *rest++ = '\0';
        char *f[3];
        long family, port;
        fresh = need_more(fresh, (n + 1) * sizeof *fresh);
        if (split(at, ',', f, 3) != 3 || !parse_long(f[0], 4, 6, &family) || !parse_long(f[2], 1, 65535, &port) ||
            !addr_parse(&fresh[n].addr, (int)family, f[1], (int)port)) {
            free(fresh);
            return false;
        }
        snprintf(fresh[n++].text, sizeof fresh->text, "%s", f[1]);
    }
    free(targets);
    targets = fresh;
    target_count = n;
    next_target = 0;
    return true;
}

bool calls_any(void)
{
    return target_count > 0;
}

void call_forget(struct call *call)
{
    call->conn = NULL;
}

static void report(struct call *call, enum outcome outcome, int error)
{
    char source[INET6_ADDRSTRLEN] = "";
    union addr local = {0};
    socklen_t len = sizeof local;
    if (call->w.fd >= 0 && !getsockname(call->w.fd, &local.sa, &len))
        snprintf(source, sizeof source, "%s", addr_text(&local));
    say_event("c\t%s\t%d\t%d\t%s\t%d\t%s\t%d\t%lu\t%lu\t%lu\t%zu\n", outcome_names[outcome], error,
              addr_family(&call->to), source, source[0] ? addr_port(&local) : 0, call->text, addr_port(&call->to),
              call->start_ns, call->connect_ns, now_ns(), call->bytes);
    timer_clear(&call->deadline);
    loop_close(&call->w);
    buffer_clear(&call->in);
    loop_free(call);
}

/* The call is over; `status` is that of the answer, 0 if there was none. */
static void finish(struct call *call, enum outcome outcome, int error, int status)
{
    struct conn *c = call->conn;
    report(call, outcome, error);
    if (c)
        http_called(c, status == 200);
}

static void out_of_time(struct timer *t)
{
    struct call *call = container_of(t, struct call, deadline);
    /* Connected and then silent is another thing than never connected. */
    finish(call, call->connect_ns ? BROKEN : TIMED_OUT, call->connect_ns ? ETIMEDOUT : 0, 0);
}

/* The status of a whole answer, or 0 while it is not whole. */
static int whole_answer(const struct call *call)
{
    if (!call->in.len)
        return 0;
    char *head = buffer_head(&call->in);
    char *end = memmem(head, call->in.len, "\r\n\r\n", 4);
    char *length = end ? memmem(head, (size_t)(end - head), "Content-Length: ", 16) : NULL;
    size_t body = length ? strtoul(length + 16, NULL, 10) : 0;
    if (!end || call->in.len < (size_t)(end - head) + 4 + body)
        return 0;
    return call->in.len > 12 && !memcmp(head, "HTTP/1.1 ", 9) ? atoi(head + 9) : -1;
}

static void ask(struct call *call)
{
    char request[160];
    int n = snprintf(request, sizeof request, "GET / HTTP/1.1\r\nHost: %s:%d\r\n\r\n", call->text,
                     addr_port(&call->to));
    call->connect_ns = now_ns();
    if (send(call->w.fd, request, (size_t)n, MSG_NOSIGNAL) != n) { /* a fresh socket has room for it */
        finish(call, BROKEN, errno, 0);
        return;
    }
    call->bytes += (size_t)n;
    loop_change(&call->w, EPOLLIN);
}

static void call_ready(struct watch *w, uint32_t events)
{
    struct call *call = container_of(w, struct call, w);
    if (!call->connect_ns) {
        int error = 0;
        socklen_t len = sizeof error;
        getsockopt(w->fd, SOL_SOCKET, SO_ERROR, &error, &len);
        if (error)
            finish(call, outcome_of(error, false), error, 0);
        else if (events & EPOLLOUT)
            ask(call);
        return;
    }
    char chunk[4096];
    ssize_t n = recv(w->fd, chunk, sizeof chunk, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 || call->in.len > ANSWER_LIMIT) {
        finish(call, BROKEN, n < 0 ? errno : 0, 0);
        return;
    }
    call->bytes += (size_t)n;
    buffer_add(&call->in, chunk, (size_t)n);
    int status = whole_answer(call);
    if (status)
        finish(call, OPEN, 0, status);
}

bool call_start(struct conn *c)
{
    const struct target *t = &targets[next_target++ % target_count];
    struct call *call = need_zero(sizeof *call);
    call->conn = c;
    call->to = t->addr;
    memcpy(call->text, t->text, sizeof call->text);
    call->start_ns = now_ns();
    call->w = (struct watch){call_ready, socket(t->addr.sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
    int error = call->w.fd < 0 ? errno : 0;
    if (!error) {
        int one = 1;
        struct linger reset = {1, 0};
        setsockopt(call->w.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(call->w.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        if (connect(call->w.fd, &t->addr.sa, addr_len(&t->addr)) && errno != EINPROGRESS)
            error = errno;
        else
            error = loop_add(&call->w, EPOLLOUT);
    }
    if (error) {
        call->conn = NULL;
        report(call, outcome_of(error, true), error);
        return false;
    }
    call->deadline.fire = out_of_time;
    timer_set(&call->deadline, call->start_ns + PATIENCE_NS);
    c->http->call = call;
    return true;
}
