/* Room for flows: the closed make way for each other in turn, and a full table parts with what is least missed.
 *
 * A connection that stands is never forgotten for somebody's new ones: who fills the table with openings and datagrams
 * loses his own oldest, and who fills it with connections finds it full. */
#ifndef LABCTL_SWITCH_ROOM_H
#define LABCTL_SWITCH_ROOM_H
#include "policy.h"
#include "tcp.h"

enum { LOOKS = 4096 }; /* into the openings, for one new flow: of a flood most are gone already; each is passed once */
enum { TRIES = 4 }; /* another processor may take the room that was made */

INLINE void tell(const struct key *key, struct flow *f)
{
    struct record *r;
    if (f->told)
        return;
    f->told = 1;
    r = ring_reserve(&records, sizeof *r, 0);
    if (!r) {
        count(RING_FULL);
        return;
    }
    r->key = *key;
    r->pad = 0;
    __builtin_memcpy(r->flow, f, TOLD_BYTES);
    ring_submit(r, BPF_RB_NO_WAKEUP); /* the daemon looks by the clock: to wake it costs more than the flow */
}

/* The next place of a ring of `room` places, whose turn is kept in `turns`. */
INLINE struct key *next_place(void *ring, __u32 which, __u32 room)
{
    __u32 *turn = map_lookup(&turns, &which);
    if (!turn)
        return 0;
    __u32 at = __sync_fetch_and_add(turn, 1) % room;
    return map_lookup(ring, &at);
}

INLINE void note_opening(const struct key *key)
{
    struct key *place = next_place(&openings, OPENED, OPENINGS);
    if (place)
        *place = *key;
}

/* A flow has closed. The one that closed CLOSED_KEPT closings ago goes. */
CALLED int note_closing(const struct key *key)
{
    struct key *place = next_place(&closings, CLOSED_FLOWS, CLOSED_KEPT);
    if (!place)
        return 0;
    struct key old = *place;
    *place = *key;
    struct flow *f = map_lookup(&flows, &old);
    if (f && f->closed)
        map_delete(&flows, &old);
    return 0;
}

/* Whether it may go where room is needed: whatever is no connection that both sides have opened. */
INLINE int dispensable(const struct key *key, const struct flow *f, __u64 now)
{
    return !CHECK_STANDING || f->closed || now > f->expires_ns || key->proto != TCP || f->side[0].state < OPEN ||
           f->side[1].state < OPEN;
}

struct search {
    __u64 now;
    int found;
};

/* Look at the oldest opening that nobody looked at yet, and forget its flow if that may go. 1 ends the search. */
static long look(__u32 step, struct search *search)
{
    (void)step;
    __u32 which = OPENED;
    __u32 *opened = map_lookup(&turns, &which);
    which = RECLAIMED;
    __u32 *reclaimed = map_lookup(&turns, &which);
    if (!opened || !reclaimed)
        return 1;
    __u32 last = *(volatile __u32 *)opened, at = *(volatile __u32 *)reclaimed;
    if (last - at > OPENINGS)
        at = last - OPENINGS; /* what was there has been written over */
    if (at == last)
        return 1;
    *(volatile __u32 *)reclaimed = at + 1;
    at %= OPENINGS;
    struct key *place = map_lookup(&openings, &at);
    if (!place)
        return 1;
    struct key key = *place;
    struct flow *f = map_lookup(&flows, &key);
    if (!f || !dispensable(&key, f, search->now))
        return 0;
    tell(&key, f);
    map_delete(&flows, &key);
    search->found = 1;
    return 1;
}

/* Forget the oldest flow that may go. 0 where none of those looked at may. */
CALLED int make_room(__u64 now)
{
    struct search search = {.now = now};
    repeat(LOOKS, look, &search, 0);
    return search.found;
}

/* Keep a new flow. 0, or -1 where there is no room for it and none could be made. */
CALLED int keep(const struct key *key, const struct flow *fresh, __u64 now)
{
    for (int i = 0; i < TRIES; i++) {
        if (!map_update(&flows, key, fresh, 0)) {
            note_opening(key);
            return 0;
        }
        if (!make_room(now))
            break;
    }
    return -1;
}
#endif
