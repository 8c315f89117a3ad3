/* TCP as a firewall has to follow it: each side's state, and whether a segment can be of this connection at all.
 *
 * Sides and window checks: G. van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2000). A reset counts
 * only where the receiver would take it (RFC 5961); one that is merely near passes, and changes nothing. */
#ifndef LABCTL_SWITCH_TCP_H
#define LABCTL_SWITCH_TCP_H
#include "packet.h"

enum { MOST_UNACKED = 66000 }; /* an acknowledgment may be this late, whatever window was offered */

CALLED void learn_scale(struct __sk_buff *skb, const struct packet *p, struct side *me)
{
    __u32 at = p->at + sizeof(struct tcp), end = p->at + p->header;
    for (int i = 0; i < 20; i++) {
        __u8 option[3];
        if (at >= end || load_bytes(skb, at, option, 3)) /* this one has three bytes: past the end it is not there */
            return;
        if (option[0] == 0)
            return;
        if (option[0] == 1) {
            at += 1;
            continue;
        }
        if (option[0] == 3 && option[1] == 3) {
            me->scale = option[2] > 14 ? 14 : option[2];
            me->has_scale = 1;
            return;
        }
        if (option[1] < 2)
            return;
        at += option[1];
    }
}

INLINE void begin(struct __sk_buff *skb, const struct packet *p, struct side *me, const struct side *him)
{
    me->first = p->seq;
    me->end = p->seq + p->payload + 1;
    me->limit = me->end + him->window;
    me->window = p->window ? p->window : 1;
    me->acked = 0;
    me->state = SYN_SENT;
    learn_scale(skb, p, me);
}

/* A connection that began before we looked: nothing is known of its windows. */
INLINE void begin_midway(const struct packet *p, struct flow *f, int d)
{
    struct side *me = d ? &f->side[1] : &f->side[0], *him = d ? &f->side[0] : &f->side[1];
    me->first = p->seq;
    me->end = p->seq + p->payload;
    him->first = p->ack;
    him->end = p->ack;
    me->acked = p->ack;
    me->state = p->flags & FIN ? FIN_SENT : OPEN;
    him->state = OPEN;
    f->loose = 1;
}

INLINE int acks_syn(const struct packet *p, const struct side *him)
{
    return after(p->ack, him->first) && !after(p->ack, him->end);
}

INLINE int in_window(const struct packet *p, const struct side *me, const struct side *him, __u32 end)
{
    __u32 late = me->window > MOST_UNACKED ? me->window : MOST_UNACKED;
    return !after(end, me->limit + 1) && !before(end, me->end - (him->window ? him->window : 1)) &&
           !after(p->ack, him->end) && !before(p->ack, him->end - late);
}

INLINE int reset(const struct packet *p, struct flow *f, struct side *me, const struct side *him)
{
    if (me->state == NOTHING) { /* who is asked refuses */
        if (!(p->flags & ACK) || him->state != SYN_SENT || !acks_syn(p, him))
            return OUT_OF_WINDOW;
        f->closed = 1;
        return 0;
    }
    if (CHECK_WINDOWS && !f->loose &&
        (after(p->seq, me->limit + 1) || before(p->seq, me->end - (him->window ? him->window : 1))))
        return OUT_OF_WINDOW;
    if (!CHECK_EXACT_RESET || p->seq == me->end || (him->acked && p->seq == him->acked))
        f->closed = 1;
    return 0;
}

INLINE int opening(struct __sk_buff *skb, const struct packet *p, struct side *me, struct side *him)
{
    if (!(p->flags & ACK)) {
        if (me->state == SYN_SENT)
            return p->seq == me->first ? 0 : OUT_OF_STATE; /* once more */
        if (me->state != NOTHING || him->state != SYN_SENT || !CHECK_SIMULTANEOUS_OPEN)
            return OUT_OF_STATE;
        begin(skb, p, me, him);
        return 0;
    }
    if (him->state != SYN_SENT || !acks_syn(p, him)) {
        if (me->state >= SYN_SENT && him->state >= OPEN && p->seq == me->first && p->ack == me->acked)
            return 0; /* once more */
        return him->state == NOTHING ? OUT_OF_STATE : OUT_OF_WINDOW;
    }
    if (me->state == NOTHING)
        begin(skb, p, me, him);
    else if (me->state > OPEN || p->seq != me->first)
        return OUT_OF_STATE;
    if (!me->has_scale || !him->has_scale)
        me->scale = him->scale = 0;
    him->state = OPEN;
    him->limit = p->ack + me->window;
    me->acked = p->ack;
    return 0;
}

/* What a segment from side `d` means. 0: it belongs; else why it does not (the counter of that name). */
CALLED int follow(struct __sk_buff *skb, const struct packet *p, struct flow *f, int d)
{
    struct side *me = &f->side[d & 1], *him = &f->side[!d];
    __u8 flags = p->flags;
    if (flags & RST)
        return reset(p, f, me, him);
    if (flags & SYN)
        return opening(skb, p, me, him);
    if (CHECK_STATE && (me->state == NOTHING || him->state == NOTHING))
        return OUT_OF_STATE;
    __u32 end = p->seq + p->payload + (flags & FIN ? 1 : 0);
    if (!f->loose) {
        if (him->state == SYN_SENT && !acks_syn(p, him))
            return OUT_OF_WINDOW;
        if (CHECK_WINDOWS && !in_window(p, me, him, end))
            return OUT_OF_WINDOW;
    }
    if (me->state >= FIN_SENT && after(end, me->end)) /* nothing comes after the last */
        return OUT_OF_WINDOW;
    if (him->state == SYN_SENT)
        him->state = OPEN;
    __u32 window = (__u32)p->window << me->scale, room = p->ack + (window ? window : 1);
    if (window > me->window)
        me->window = window;
    if (after(end, me->end))
        me->end = end;
    if (after(room, him->limit))
        him->limit = room;
    if (!me->acked || after(p->ack, me->acked))
        me->acked = p->ack;
    if (flags & FIN && me->state < FIN_SENT && end == me->end)
        me->state = FIN_SENT;
    if (him->state == FIN_SENT && p->ack == him->end)
        him->state = FIN_ACKED;
    if (me->state == FIN_ACKED && him->state == FIN_ACKED)
        f->closed = 1;
    return 0;
}

INLINE __u32 tcp_timeout(const struct flow *f)
{
    __u8 a = f->side[0].state, b = f->side[1].state;
    if (f->closed)
        return CLOSED;
    if (a >= FIN_SENT || b >= FIN_SENT)
        return CLOSING_TIME;
    if (a == OPEN && b == OPEN)
        return ESTABLISHED;
    return a == NOTHING || b == NOTHING ? FIRST : OPENING;
}

/* Flags that no honest stack sends: nothing, everything, an opening that closes. */
INLINE int senseless(const struct packet *p)
{
    __u8 f = p->flags & (FIN | SYN | RST | ACK);
    return CHECK_FLAG && f != SYN && f != (SYN | ACK) && f != RST && f != (RST | ACK) && f != ACK && f != (FIN | ACK);
}
#endif
