/* Small things that every part of labhost uses: time, addresses, growing buffers, decimal numbers. */
#ifndef LABHOST_UTIL_H
#define LABHOST_UTIL_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

/* CLOCK_MONOTONIC in nanoseconds: one clock for every host of a local lab. */
uint64_t now_ns(void);

/* Print "labhost: ..." on standard error and leave with status 1. */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* A stream socket that is connected to the unix socket at `path`, which `option` named; else the end of the process. */
int connect_unix(const char *option, const char *path);

/* malloc and realloc that never return NULL: a service without memory cannot say anything true. */
void *need(size_t bytes);
void *need_zero(size_t bytes);
void *need_more(void *old, size_t bytes);

/* Give up all supplementary groups; quietly nothing where a user namespace forbids it to everyone. 0, or -1 and errno. */
int drop_groups(void);

/* An IPv4 or IPv6 socket address. */
union addr {
    struct sockaddr sa;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
};

/* Fill `out` from family 4 or 6, address text and port. False if the text is no address of that family. */
bool addr_parse(union addr *out, int family, const char *text, int port);
socklen_t addr_len(const union addr *a);
int addr_family(const union addr *a); /* 4 or 6 */
int addr_port(const union addr *a);
bool addr_same(const union addr *a, const union addr *b); /* address and port */
/* The address as text, in a static buffer that the next call overwrites. */
const char *addr_text(const union addr *a);

/* Bytes waiting to be consumed from the front; a big one gives its memory back when it runs empty. */
struct buffer {
    char *data;
    size_t start, len, cap; /* the content is data[start .. start+len) */
};

void buffer_add(struct buffer *b, const void *bytes, size_t n);
void buffer_take(struct buffer *b, size_t n); /* drop n bytes from the front */
void buffer_clear(struct buffer *b);
static inline char *buffer_head(const struct buffer *b) { return b->data + b->start; }

/* A whole decimal number within [low, high], or false. */
bool parse_long(const char *text, long low, long high, long *out);
bool parse_u64(const char *text, uint64_t *out);

/* Split at `sep` in place; returns how many fields there are, at most `max` (the last takes the rest). */
int split(char *text, char sep, char **fields, int max);

#endif
