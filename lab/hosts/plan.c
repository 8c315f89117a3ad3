#include "plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_WORDS = 6 };

/* Room for one more at the end of `list`, zeroed. Lists double, so a power of two is full. */
#define ADD(list, len) ((list) = grow((list), (len), sizeof *(list)), &(list)[(len)++])

static void *grow(void *list, size_t len, size_t size)
{
    if (!(len & (len - 1)))
        list = need_more(list, (len ? len * 2 : 1) * size);
    memset((char *)list + len * size, 0, size);
    return list;
}

static bool parse_mac(uint8_t out[6], const char *text)
{
    int used = 0;
    return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", out, out + 1, out + 2, out + 3, out + 4, out + 5,
                  &used) == 6 && !text[used];
}

static bool find_segment(const struct plan *p, const char *bridge, size_t *out)
{
    for (*out = 0; *out < p->segments_len; ++*out)
        if (!strcmp(p->segments[*out].bridge, bridge))
            return true;
    return false;
}

static bool add_member(struct plan *p, char **w)
{
    size_t segment;
    if (!find_segment(p, w[1], &segment))
        return false;
    struct segment *s = &p->segments[segment];
    struct member *m = ADD(s->members, s->members_len);
    return addr_parse(&m->v4, 4, w[2], 0) && addr_parse(&m->v6, 6, w[3], 0) && parse_mac(m->mac, w[4]);
}

static bool add_wire(const struct plan *p, struct host *h, char **w)
{
    struct wire *wire = ADD(h->wires, h->wires_len);
    wire->device = w[1];
    wire->port = w[3];
    return find_segment(p, w[2], &wire->segment) && parse_mac(wire->mac, w[4]);
}

static bool add_address(struct host *h, char **w, bool gateway)
{
    struct address *a = ADD(h->addresses, h->addresses_len);
    long family, prefix = -1;
    a->device = w[1];
    if (!parse_long(w[2], 4, 6, &family) || !addr_parse(&a->address, (int)family, w[3], 0) ||
        (!gateway && !parse_long(w[4], 0, family == 4 ? 32 : 128, &prefix)))
        return false;
    a->prefix = (int)prefix;
    return true;
}

static bool take(struct plan *p, char **w, int n)
{
    struct host *h = p->hosts_len ? &p->hosts[p->hosts_len - 1] : NULL;
    if (!strcmp(w[0], "sysctl") && n == 3) {
        struct sysctl *s = h ? ADD(h->sysctls, h->sysctls_len) : ADD(p->sysctls, p->sysctls_len);
        *s = (struct sysctl){w[1], w[2]};
        return true;
    }
    if ((!strcmp(w[0], "segment") || !strcmp(w[0], "standing")) && n == 2) {
        struct segment *added = ADD(p->segments, p->segments_len);
        added->bridge = w[1];
        added->standing = !strcmp(w[0], "standing");
        return true;
    }
    if (!strcmp(w[0], "member") && n == 5)
        return add_member(p, w);
    if (!strcmp(w[0], "host") && n == 3) {
        struct host *added = ADD(p->hosts, p->hosts_len);
        added->name = w[1];
        added->socket = w[2];
        return true;
    }
    if (h && !strcmp(w[0], "link") && n == 5)
        return add_wire(p, h, w);
    if (h && !strcmp(w[0], "address") && n == 5)
        return add_address(h, w, false);
    return h && !strcmp(w[0], "default") && n == 4 && add_address(h, w, true);
}

void plan_read(struct plan *out, int fd)
{
    *out = (struct plan){0};
    struct buffer text = {0};
    char chunk[65536];
    for (ssize_t n; (n = read(fd, chunk, sizeof chunk)) != 0;) {
        if (n < 0 && errno != EINTR)
            die("hosts: the plan cannot be read: %s", strerror(errno));
        if (n > 0)
            buffer_add(&text, chunk, (size_t)n);
    }
    buffer_add(&text, "", 1);
    int number = 0;
    for (char *line = buffer_head(&text), *next; line && *line; line = next) {
        char *words[MAX_WORDS];
        if ((next = strchr(line, '\n')))
            *next++ = '\0';
        number++;
        if (*line && !take(out, words, split(line, ' ', words, MAX_WORDS)))
            die("hosts: line %d of the plan (%s ...) is not understood", number, line);
    }
}
