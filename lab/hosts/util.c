#define _GNU_SOURCE
#include "util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("labhost: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

int connect_unix(const char *option, const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof to.sun_path)
        die("--%s %s: the path is longer than %zu bytes", option, path, sizeof to.sun_path - 1);
    memcpy(to.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
        die("--%s %s: %s", option, path, strerror(errno));
    return fd;
}

int drop_groups(void)
{
    char said[8] = "";
    if (!setgroups(0, NULL))
        return 0;
    int error = errno, fd = open("/proc/self/setgroups", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, said, sizeof said - 1) >= 0 && !strncmp(said, "deny", 4))
        error = 0;
    if (fd >= 0)
        close(fd);
    errno = error;
    return error ? -1 : 0;
}

void *need(size_t bytes)
{
    void *p = malloc(bytes);
    if (!p)
        die("out of memory");
    return p;
}

void *need_zero(size_t bytes)
{
    void *p = calloc(1, bytes);
    if (!p)
        die("out of memory");
    return p;
}

void *need_more(void *old, size_t bytes)
{
    void *p = realloc(old, bytes);
    if (!p)
        die("out of memory");
    return p;
}

bool addr_parse(union addr *out, int family, const char *text, int port)
{
    memset(out, 0, sizeof *out);
    if (family == 4) {
        out->in.sin_family = AF_INET;
        out->in.sin_port = htons((uint16_t)port);
        return inet_pton(AF_INET, text, &out->in.sin_addr) == 1;
    }
    out->in6.sin6_family = AF_INET6;
    out->in6.sin6_port = htons((uint16_t)port);
    return family == 6 && inet_pton(AF_INET6, text, &out->in6.sin6_addr) == 1;
}

socklen_t addr_len(const union addr *a)
{
    return a->sa.sa_family == AF_INET ? sizeof a->in : sizeof a->in6;
}

int addr_family(const union addr *a)
{
    return a->sa.sa_family == AF_INET ? 4 : 6;
}

int addr_port(const union addr *a)
{
    return ntohs(a->sa.sa_family == AF_INET ? a->in.sin_port : a->in6.sin6_port);
}

bool addr_same(const union addr *a, const union addr *b)
{
    if (a->sa.sa_family != b->sa.sa_family || addr_port(a) != addr_port(b))
        return false;
    if (a->sa.sa_family == AF_INET)
        return a->in.sin_addr.s_addr == b->in.sin_addr.s_addr;
    return memcmp(&a->in6.sin6_addr, &b->in6.sin6_addr, 16) == 0;
}

const char *addr_text(const union addr *a)
{
    static char text[INET6_ADDRSTRLEN];
    const void *raw = a->sa.sa_family == AF_INET ? (const void *)&a->in.sin_addr : (const void *)&a->in6.sin6_addr;
    return inet_ntop(a->sa.sa_family, raw, text, sizeof text) ? text : "?";
}

void buffer_add(struct buffer *b, const void *bytes, size_t n)
{
    if (b->start + b->len + n > b->cap) {
        if (b->start) {
            memmove(b->data, b->data + b->start, b->len);
            b->start = 0;
        }
        if (b->len + n > b->cap) {
            size_t cap = b->cap ? b->cap : 512;
            while (cap < b->len + n)
                cap *= 2;
            b->data = need_more(b->data, cap);
            b->cap = cap;
        }
    }
    memcpy(b->data + b->start + b->len, bytes, n);
    b->len += n;
}

void buffer_take(struct buffer *b, size_t n)
{
    b->start += n;
    b->len -= n;
    if (b->len)
        return;
    b->start = 0;
    /* A burst must not leave its high-water mark behind in each of thousands of services. */
    if (b->cap > 65536)
        buffer_clear(b);
}

void buffer_clear(struct buffer *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

bool parse_long(const char *text, long low, long high, long *out)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high)
        return false;
    *out = value;
    return true;
}

bool parse_u64(const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-')
        return false;
    *out = value;
    return true;
}

int split(char *text, char sep, char **fields, int max)
{
    int n = 0;
    fields[n++] = text;
    while (n < max) {
        char *at = strchr(fields[n - 1], sep);
        if (!at)
            break;
        *at = '\0';
        fields[n++] = at + 1;
    }
    return n;
}
