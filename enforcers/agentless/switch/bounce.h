/* A refused segment turned into the reset that its sender would get from a closed port, and sent back to it. */
#ifndef LABCTL_SWITCH_BOUNCE_H
#define LABCTL_SWITCH_BOUNCE_H
#include "packet.h"

enum { TC_OK = 0, TC_SHOT = 2 };

INLINE __u64 summed(const void *from, int bytes, __u64 sum)
{
    const __u16 *words = from;
#pragma unroll
    for (int i = 0; i < bytes / 2; i++)
        sum += words[i];
    return sum;
}

INLINE __u16 folded(__u64 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (__u16)~sum;
}

INLINE void answer(const struct packet *p, struct tcp *t)
{
    int known = p->flags & ACK;
    __builtin_memset(t, 0, sizeof *t);
    t->source = p->target_port;
    t->target = p->source_port;
    t->offset = 5 << 4;
    t->flags = known ? RST : RST | ACK;
    t->seq = known ? n32(p->ack) : 0;
    t->ack = known ? 0 : n32(p->seq + p->payload + (p->flags & SYN ? 1 : 0) + (p->flags & FIN ? 1 : 0));
    __u64 sum = summed(&p->source, 16, 0); /* a mapped address adds a constant that IPv4's sum must not have */
    sum = summed(&p->target, 16, sum);
    if (p->family == 4)
        sum -= 2 * 0xffff;
    sum += n16(TCP);
    sum += n16(sizeof *t);
    t->sum = folded(summed(t, sizeof *t, sum));
}

CALLED int bounce(struct __sk_buff *skb, const struct packet *p)
{
    struct {
        __u8 pad[2]; /* so that what follows the Ethernet header is aligned */
        struct ethernet eth;
        union {
            struct v4 four;
            struct v6 six;
        };
    } head = {};
    struct tcp t;
    if (p->flags & RST || load_bytes(skb, 0, &head.eth, ETHERNET))
        return TC_SHOT;
    __u8 mac[6];
    __builtin_memcpy(mac, head.eth.target, 6);
    __builtin_memcpy(head.eth.target, head.eth.source, 6);
    __builtin_memcpy(head.eth.source, mac, 6);
    answer(p, &t);
    __u32 size = p->family == 4 ? V4 : V6;
    if (change_tail(skb, ETHERNET + size + sizeof t, 0))
        return TC_SHOT;
    if (p->family == 4) {
        head.four.version_length = 0x45;
        head.four.length = n16(V4 + sizeof t);
        head.four.ttl = 64;
        head.four.proto = TCP;
        head.four.source = p->target.w[3];
        head.four.target = p->source.w[3];
        head.four.sum = folded(summed(&head.four, V4, 0));
        if (store_bytes(skb, ETHERNET, &head.four, V4, 0) || store_bytes(skb, ETHERNET + V4, &t, sizeof t, 0))
            return TC_SHOT;
    } else {
        head.six.version_flow = n32(6u << 28);
        head.six.length = n16(sizeof t);
        head.six.next = TCP;
        head.six.hops = 64;
        head.six.source = p->target;
        head.six.target = p->source;
        if (store_bytes(skb, ETHERNET, &head.six, V6, 0) || store_bytes(skb, ETHERNET + V6, &t, sizeof t, 0))
            return TC_SHOT;
    }
    if (store_bytes(skb, 0, &head.eth, ETHERNET, 0))
        return TC_SHOT;
    skb->mark = MARK;
    return (int)redirect(skb->ifindex, 0);
}
#endif
