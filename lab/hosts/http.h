/* HTTP/1.1 on an accepted connection, and the calls that a service makes before it answers. */
#ifndef LABHOST_HTTP_H
#define LABHOST_HTTP_H

#include "serve.h"

struct call;

/* What an HTTP connection adds to an accepted one. A request is read to its end, then called for, then answered. */
struct http {
    struct buffer in;
    size_t body_unread; /* of the request under way */
    char head[160];     /* of the response under way */
    size_t head_len, head_sent;
    size_t body_left;
    size_t asked;      /* bytes that the request under way wants; SIZE_MAX: the ordinary small answer */
    bool in_request;   /* its head was read, its answer is not begun */
    bool last;         /* close after the answer */
    struct call *call; /* under way downstream: nothing is read until it ends */
    uint64_t opened_ns, requests, bytes_in, bytes_out;
};

/* An accepted connection. Until `kind` is known nothing but its first bytes is kept. */
struct conn {
    struct watch w;
    struct timer idle;
    union addr peer;
    uint16_t local_port;
    enum { FRESH, ECHO, WEB } kind;
    uint8_t first[RECORD];
    uint8_t first_len;
    struct buffer unsent;
    struct http *http;
};

void conn_close(struct conn *c);

void http_begin(struct conn *c);
/* Bytes came in. The connection may be gone afterwards. */
void http_feed(struct conn *c, const char *bytes, size_t n);
/* The connection can be written to. */
void http_writable(struct conn *c);
/* The downstream call ended, well or not. */
void http_called(struct conn *c, bool good);
/* Report the connection and give its memory back. */
void http_end(struct conn *c);

/* call.c: targets from "FAM,ADDR,PORT;..."; false if not understood. */
bool calls_set(char *text);
bool calls_any(void);
/* Ask the next target for c. False: it failed at once (and was reported). */
bool call_start(struct conn *c);
void call_forget(struct call *call); /* its connection is gone; the call goes on to its report */

#endif
