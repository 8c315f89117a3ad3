#define _GNU_SOURCE
#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "util.h"

enum { BATCH = 256, PATIENCE = 16 };

static int epoll_fd = -1;
static struct timer **heap; /* heap[1..heap_len], earliest first */
static uint32_t heap_len, heap_cap;
static void **dead;
static uint32_t dead_len, dead_cap;

void loop_init(void)
{
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll: %s", strerror(errno));
}

int loop_add(struct watch *w, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = w};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, w->fd, &ev) ? errno : 0;
}

void loop_change(struct watch *w, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = w};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, w->fd, &ev))
        die("epoll_ctl: %s", strerror(errno));
}

void loop_close(struct watch *w)
{
    if (w->fd < 0)
        return;
    /* Said explicitly: a measuring child may hold a copy, and a copy keeps a closed descriptor's registration. */
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
    close(w->fd);
    w->fd = -1;
}

void loop_free(void *object)
{
    if (dead_len == dead_cap) {
        dead_cap = dead_cap ? dead_cap * 2 : 64;
        dead = need_more(dead, dead_cap * sizeof *dead);
    }
    dead[dead_len++] = object;
}

static void place(struct timer *t, uint32_t slot)
{
    heap[slot] = t;
    t->slot = slot;
}

static void sift_up(struct timer *t, uint32_t slot)
{
    for (; slot > 1 && heap[slot / 2]->due_ns > t->due_ns; slot /= 2)
        place(heap[slot / 2], slot);
    place(t, slot);
}

static void sift_down(struct timer *t, uint32_t slot)
{
    for (uint32_t child; (child = slot * 2) <= heap_len; slot = child) {
        if (child < heap_len && heap[child + 1]->due_ns < heap[child]->due_ns)
            child++;
        if (heap[child]->due_ns >= t->due_ns)
            break;
        place(heap[child], slot);
    }
    place(t, slot);
}

void timer_set(struct timer *t, uint64_t due_ns)
{
    timer_clear(t);
    if (heap_len + 2 > heap_cap) {
        heap_cap = heap_cap ? heap_cap * 2 : 64;
        heap = need_more(heap, heap_cap * sizeof *heap);
    }
    t->due_ns = due_ns;
    sift_up(t, ++heap_len);
}

void timer_clear(struct timer *t)
{
    uint32_t slot = t->slot;
    if (!slot)
        return;
    t->slot = 0;
    struct timer *last = heap[heap_len--];
    if (last == t)
        return;
    if (slot > 1 && heap[slot / 2]->due_ns > last->due_ns)
        sift_up(last, slot);
    else
        sift_down(last, slot);
}

static int wait_ms(bool poll)
{
    if (poll)
        return 0;
    if (!heap_len)
        return -1;
    uint64_t now = now_ns();
    if (heap[1]->due_ns <= now)
        return 0;
    uint64_t ms = (heap[1]->due_ns - now + 999999) / 1000000;
    return ms > 60000 ? 60000 : (int)ms;
}

static void fire_due(void)
{
    if (!heap_len)
        return;
    uint64_t now = now_ns();
    while (heap_len && heap[1]->due_ns <= now) {
        struct timer *t = heap[1];
        timer_clear(t);
        t->fire(t);
    }
}

void loop_pass(bool poll)
{
    static int put_off;
    struct epoll_event events[BATCH];
    int n = epoll_wait(epoll_fd, events, BATCH, wait_ms(poll));
    if (n < 0 && errno != EINTR)
        die("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < n; i++) {
        struct watch *w = events[i].data.ptr;
        if (w->fd >= 0)
            w->ready(w, events[i].events);
    }
    /* After the events, and only once all of them were seen: an answer is not late because we were. */
    put_off = n == BATCH && put_off < PATIENCE ? put_off + 1 : 0;
    if (!put_off)
        fire_due();
    for (uint32_t i = 0; i < dead_len; i++)
        free(dead[i]);
    dead_len = 0;
}
