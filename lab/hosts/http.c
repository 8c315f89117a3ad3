#define _GNU_SOURCE
#include "http.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/uio.h>

enum { HEAD_LIMIT = 65536, BODY_LIMIT = 10000000, PATTERN = 65536 };

static char *pattern; /* what bodies are made of; made when first asked for */

void http_begin(struct conn *c)
{
    c->http = need_zero(sizeof *c->http);
    c->http->opened_ns = now_ns();
}

void http_end(struct conn *c)
{
    struct http *h = c->http;
    say_event("h\t%d\t%s\t%d\t%u\t%lu\t%lu\t%lu\t%lu\t%lu\n", addr_family(&c->peer), addr_text(&c->peer),
              addr_port(&c->peer), c->local_port, h->opened_ns, now_ns(), h->requests, h->bytes_in, h->bytes_out);
    if (h->call)
        call_forget(h->call);
    buffer_clear(&h->in);
    free(h);
    c->http = NULL;
}

/* The value of a header within the head (which ends in a NUL), or NULL. */
static const char *header(const char *head, const char *name)
{
    size_t n = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line && line[2]; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, n) && line[2 + n] == ':')
            return line + 2 + n + 1 + strspn(line + 3 + n, " \t");
    return NULL;
}

static void answer(struct http *h, int status, const char *reason, size_t body)
{
    const char *small = status == 200 ? "ok\n" : "";
    size_t length = body == SIZE_MAX ? strlen(small) : body;
    h->head_len = (size_t)snprintf(h->head, sizeof h->head,
                                   "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n%s\r\n%s",
                                   status, reason, length, h->last ? "Connection: close\r\n" : "",
                                   body == SIZE_MAX ? small : "");
    h->head_sent = 0;
    h->body_left = body == SIZE_MAX ? 0 : body;
    h->in_request = false;
}

static void refuse(struct http *h, int status, const char *reason)
{
    h->last = true;
    answer(h, status, reason, SIZE_MAX);
}

/* Understand a request's head: what is asked for and how much body follows. Refuses what it cannot serve. */
static void read_head(struct http *h, char *head)
{
    const char *length = header(head, "Content-Length");
    const char *connection = header(head, "Connection");
    h->requests++;
    h->in_request = true;
    h->last = strstr(head, " HTTP/1.0\r\n") || (connection && !strncasecmp(connection, "close", 5));
    h->body_unread = length ? strtoul(length, NULL, 10) : 0;
    h->asked = SIZE_MAX;
    char *path = strchr(head, ' ');
    if (header(head, "Transfer-Encoding"))
        refuse(h, 411, "Length Required");
    else if (!path || (strncmp(head, "GET ", 4) && strncmp(head, "POST ", 5)))
        refuse(h, 400, "Bad Request");
    else if (!strncmp(path, " /bytes/", 8)) {
        h->asked = strtoul(path + 8, NULL, 10);
        if (h->asked > BODY_LIMIT)
            refuse(h, 400, "Bad Request");
    }
}

/* Write what is left of the answer. 1: all gone, 0: the socket is full, -1: the connection failed. */
static int write_answer(struct conn *c)
{
    struct http *h = c->http;
    if (h->body_left && !pattern) {
        pattern = need(PATTERN);
        memset(pattern, 'x', PATTERN);
    }
    while (h->head_sent < h->head_len || h->body_left) {
        struct iovec parts[2] = {{h->head + h->head_sent, h->head_len - h->head_sent},
                                 {pattern, h->body_left < PATTERN ? h->body_left : PATTERN}};
        struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t n = sendmsg(c->w.fd, &msg, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        h->bytes_out += (size_t)n;
        size_t of_head = (size_t)n < parts[0].iov_len ? (size_t)n : parts[0].iov_len;
        h->head_sent += of_head;
        h->body_left -= (size_t)n - of_head;
    }
    h->head_len = h->head_sent = 0;
    return 1;
}

/* Take a request from what has come. False: more is needed. */
static bool next_request(struct http *h)
{
    if (!h->in.len)
        return false;
    char *head = buffer_head(&h->in);
    char *end = memmem(head, h->in.len, "\r\n\r\n", 4);
    if (!end) {
        if (h->in.len > HEAD_LIMIT)
            refuse(h, 431, "Request Header Fields Too Large");
        return h->in.len > HEAD_LIMIT;
    }
    end[2] = '\0'; /* keeps the line end that closes the last header */
    read_head(h, head);
    buffer_take(&h->in, (size_t)(end - head) + 4);
    return true;
}

static bool skip_body(struct http *h)
{
    size_t n = h->body_unread < h->in.len ? h->body_unread : h->in.len;
    if (n)
        buffer_take(&h->in, n);
    h->body_unread -= n;
    return !h->body_unread;
}

/* Go on until something must be waited for: bytes, room to write, or a call downstream. */
static void step(struct conn *c)
{
    struct http *h = c->http;
    for (;;) {
        if (h->head_len) {
            int wrote = write_answer(c);
            if (wrote < 0 || (wrote && h->last)) {
                conn_close(c);
                return;
            }
            if (!wrote) {
                loop_change(&c->w, EPOLLOUT);
                return;
            }
        } else if (h->in_request) {
            if (!skip_body(h))
                break;
            if (calls_any()) {
                if (call_start(c)) {
                    loop_change(&c->w, 0); /* errors are still told */
                    return;
                }
                answer(h, 502, "Bad Gateway", SIZE_MAX);
            } else {
                answer(h, 200, "OK", h->asked);
            }
        } else if (!next_request(h)) {
            break;
        }
    }
    loop_change(&c->w, EPOLLIN);
}

void http_feed(struct conn *c, const char *bytes, size_t n)
{
    struct http *h = c->http;
    h->bytes_in += n;
    buffer_add(&h->in, bytes, n);
    if (!h->head_len && !h->call)
        step(c);
}

void http_writable(struct conn *c)
{
    step(c);
}

void http_called(struct conn *c, bool good)
{
    struct http *h = c->http;
    h->call = NULL;
    if (good)
        answer(h, 200, "OK", h->asked);
    else
        answer(h, 502, "Bad Gateway", SIZE_MAX);
    step(c);
}
