/* The one event loop of `labhost serve`: watched descriptors and deadlines. */
#ifndef LABHOST_LOOP_H
#define LABHOST_LOOP_H

#include <stdbool.h>
#include <stdint.h>

/* Embedded first in whatever owns the descriptor. `ready` is never called once `fd` is -1. */
struct watch {
    void (*ready)(struct watch *, uint32_t events);
    int fd;
};

/* Embedded likewise. `slot` is 0 when it is not set (memory from calloc is a timer that is not set). */
struct timer {
    uint64_t due_ns;
    void (*fire)(struct timer *);
    uint32_t slot;
};

void loop_init(void);
/* Watch w->fd. On failure returns errno, and the descriptor stays the caller's. */
int loop_add(struct watch *w, uint32_t events);
void loop_change(struct watch *w, uint32_t events);
/* Close the descriptor; later events of the same pass are not delivered. */
void loop_close(struct watch *w);
/* Free after the pass, since events of it may still name the object. */
void loop_free(void *object);

void timer_set(struct timer *t, uint64_t due_ns);
void timer_clear(struct timer *t);

/* One pass: wait for events or the next deadline (not at all if `poll`), deliver them. */
void loop_pass(bool poll);

#endif
