/* A packet taken apart: addresses, transport header, fragment. Lengths are those of the packet, not of the frame. */
#ifndef LABCTL_SWITCH_PACKET_H
#define LABCTL_SWITCH_PACKET_H
#include "state.h"

enum { TCP = 6, UDP = 17, ICMP = 1, ICMP6 = 58, FRAGMENT = 44, AUTHENTICATION = 51, NO_NEXT = 59 };
enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16, URG = 32 };
enum { ETHERNET = 14, V4 = 20, V6 = 40, MOST_HEADERS = 8 };
enum { ETH_V4 = 0x0800, ETH_ARP = 0x0806, ETH_V6 = 0x86dd };

struct ethernet {
    __u8 target[6], source[6];
    __be16 type;
} __attribute__((packed));

struct v4 {
    __u8 version_length, tos;
    __be16 length, id, fragment;
    __u8 ttl, proto;
    __be16 sum;
    __be32 source, target;
};

struct v6 {
    __be32 version_flow;
    __be16 length;
    __u8 next, hops;
    struct address source, target;
};

struct tcp {
    __be16 source, target;
    __be32 seq, ack;
    __u8 offset, flags;
    __be16 window, sum, urgent;
};

struct packet {
    struct address source, target;
    __u32 ip_bytes;      /* of the whole packet */
    __u32 at, length;    /* the transport header, in the frame; bytes from there to the packet's end */
    __u32 id;            /* of a fragmented packet */
    __u32 fragment_at;   /* where in its transport part this fragment begins */
    __u32 seq, ack, payload;
    __be16 source_port, target_port;
    __u16 window;
    __u8 family, proto, flags, header, hops;
    __u8 fragmented, more, type, code;
};

INLINE void mapped(struct address *to, __be32 v4)
{
    to->w[0] = 0;
    to->w[1] = 0;
    to->w[2] = n32(0xffff);
    to->w[3] = v4;
}

/* Bytes from a place known to the compiler: without a call where they lie in one piece, which is nearly always. */
INLINE int peek(struct __sk_buff *skb, __u32 at, void *to, __u32 size)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    if (data + at + size <= end) {
        __builtin_memcpy(to, data + at, size);
        return 0;
    }
    return (int)load_bytes(skb, at, to, size);
}

INLINE int peek_transport(struct __sk_buff *skb, const struct packet *p, void *to, __u32 size)
{
    if (p->at == ETHERNET + V4)
        return peek(skb, ETHERNET + V4, to, size);
    if (p->at == ETHERNET + V6)
        return peek(skb, ETHERNET + V6, to, size);
    return (int)load_bytes(skb, p->at, to, size);
}

/* Whatever may follow the IPv6 header, up to the transport's. Returns 0, or -1 where it makes no sense. */
CALLED int skip_extensions(struct __sk_buff *skb, struct packet *p, __u8 next)
{
    for (int i = 0; i < MOST_HEADERS; i++) {
        __u8 head[8];
        __u32 size;
        if (next != 0 && next != 43 && next != 60 && next != 135 && next != FRAGMENT && next != AUTHENTICATION) {
            p->proto = next;
            return 0;
        }
        if (p->length < 8 || load_bytes(skb, p->at, head, 8))
            return -1;
        if (next == FRAGMENT) {
            __u16 where = (__u16)(head[2] << 8 | head[3]);
            p->more = where & 1;
            p->fragment_at = where & 0xfff8;
            p->fragmented = p->more || p->fragment_at;
            p->id = (__u32)head[4] << 24 | (__u32)head[5] << 16 | (__u32)head[6] << 8 | head[7];
            size = 8;
        } else if (next == AUTHENTICATION) {
            size = ((__u32)head[1] + 2) * 4;
        } else {
            if (next == 43 && head[2] == 0) /* type 0 lets the sender choose the way: RFC 5095 */
                return -1;
            size = ((__u32)head[1] + 1) * 8;
        }
        if (size > p->length)
            return -1;
        p->at += size;
        p->length -= size;
        next = head[0];
        if (p->fragment_at) { /* what follows is the middle of something */
            p->proto = next;
            return 0;
        }
    }
    return -1;
}

INLINE int parse_v4(struct __sk_buff *skb, struct packet *p)
{
    struct v4 ip;
    if (peek(skb, ETHERNET, &ip, sizeof ip) || ip.version_length != 0x45) /* no options: they choose ways */
        return -1;
    __u32 there = skb->len - ETHERNET, length = n16(ip.length);
    if (!length) /* larger than a length can say: segments that the sender's card is to cut */
        length = there;
    if (length < V4 || length > there)
        return -1;
    __u16 where = n16(ip.fragment);
    p->family = 4;
    p->proto = ip.proto;
    p->hops = ip.ttl;
    p->ip_bytes = length;
    p->at = ETHERNET + V4;
    p->length = length - V4;
    p->more = (where & 0x2000) != 0;
    p->fragment_at = (where & 0x1fff) * 8;
    p->fragmented = p->more || p->fragment_at;
    p->id = ip.id;
    mapped(&p->source, ip.source);
    mapped(&p->target, ip.target);
    return 0;
}

INLINE int parse_v6(struct __sk_buff *skb, struct packet *p)
{
    struct v6 ip;
    if (peek(skb, ETHERNET, &ip, sizeof ip) || (n32(ip.version_flow) >> 28) != 6)
        return -1;
    __u32 there = skb->len - ETHERNET, length = n16(ip.length);
    length = length ? length + V6 : there;
    if (length > there)
        return -1;
    p->family = 6;
    p->hops = ip.hops;
    p->ip_bytes = length;
    p->at = ETHERNET + V6;
    p->length = length - V6;
    p->source = ip.source;
    p->target = ip.target;
    if (ip.next == TCP || ip.next == UDP || ip.next == ICMP6) {
        p->proto = ip.next;
        return 0;
    }
    return skip_extensions(skb, p, ip.next);
}

/* The transport's header, where this packet has one. */
INLINE int parse_transport(struct __sk_buff *skb, struct packet *p)
{
    if (p->fragment_at)
        return 0;
    if (p->proto == TCP) {
        struct tcp head;
        if (p->length < sizeof head || peek_transport(skb, p, &head, sizeof head))
            return -1;
        p->source_port = head.source;
        p->target_port = head.target;
        p->seq = n32(head.seq);
        p->ack = n32(head.ack);
        p->window = n16(head.window);
        p->flags = head.flags & 0x3f;
        p->header = (head.offset >> 4) * 4;
        if (p->header < sizeof head || p->header > p->length)
            return -1;
        p->payload = p->length - p->header;
    } else if (p->proto == UDP) {
        __be16 head[4];
        if (p->length < sizeof head || peek_transport(skb, p, head, sizeof head))
            return -1;
        p->source_port = head[0];
        p->target_port = head[1];
        p->header = 8;
    } else if (p->proto == (p->family == 4 ? ICMP : ICMP6)) {
        __u8 head[8];
        if (p->length < sizeof head || peek_transport(skb, p, head, sizeof head))
            return -1;
        p->type = head[0];
        p->code = head[1];
        p->source_port = *(__be16 *)(head + 4);
        p->header = 8;
    }
    return 0;
}

INLINE int after(__u32 a, __u32 b)
{
    return (__s32)(a - b) > 0;
}

INLINE int before(__u32 a, __u32 b)
{
    return (__s32)(a - b) < 0;
}
#endif
