/* What a packet says, from its network header on. Whole datagrams: ingress comes after reassembly, egress before
 * fragmentation; a part without ports can only come from a raw socket. */
#ifndef PACKET_H
#define PACKET_H
#include "bpf.h"
#include "state.h"

enum { IPV4 = 0x0800, IPV6 = 0x86dd, EXTENSIONS = 6, SYN = 2, ACK = 16, RST = 4 };
enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, DESTINATION = 60, NOTHING = 59, AUTHENTICATION = 51 };

struct packet {
    union address from, to;
    __u32 at;      /* of the transport header */
    __u32 payload; /* bytes after UDP's or ICMP's header; of other protocols after IP's */
    __u16 from_port, to_port; /* ICMP echo: from_port is the identifier */
    __u8 proto, icmp_type, is_part, unused;
};

INLINE int parse_v4(struct __sk_buff *skb, __u32 base, struct packet *packet)
{
    struct { __u8 version, tos; __be16 length, id, part; __u8 ttl, proto; __u16 sum; __be32 from, to; } ip;
    if (load_bytes(skb, base, &ip, sizeof ip))
        return -1;
    __u32 header = (ip.version & 15) * 4;
    packet->at = base + header;
    packet->proto = ip.proto;
    packet->is_part = (ip.part & big16(0x1fff)) != 0;
    packet->payload = big16(ip.length) - header;
    map_v4(&packet->from, ip.from);
    map_v4(&packet->to, ip.to);
    return 0;
}

INLINE int parse_v6(struct __sk_buff *skb, __u32 base, struct packet *packet)
{
    struct { __be32 flow; __be16 length; __u8 next, hops; union address from, to; } ip;
    if (load_bytes(skb, base, &ip, sizeof ip))
        return -1;
    packet->from = ip.from;
    packet->to = ip.to;
    packet->proto = ip.next;
    __u32 at = base + sizeof ip;
    for (int i = 0; i < EXTENSIONS; i++) {
        struct { __u8 next, length; __be16 part; } extension;
        __u8 proto = packet->proto;
        if (proto != HOP_BY_HOP && proto != ROUTING && proto != FRAGMENT && proto != DESTINATION &&
            proto != AUTHENTICATION)
            break;
        if (load_bytes(skb, at, &extension, sizeof extension))
            return -1;
        if (proto == FRAGMENT && extension.part & big16(0xfff8))
            packet->is_part = 1;
        packet->proto = extension.next;
        at += proto == FRAGMENT ? 8 : proto == AUTHENTICATION ? (extension.length + 2) * 4 : (extension.length + 1) * 8;
        if (packet->is_part)
            break;
    }
    packet->at = at;
    packet->payload = base + sizeof ip + big16(ip.length) - at;
    return 0;
}

/* 0, or -1 where the packet cannot be read. `base`: where its network header is. */
NOINLINE int parse(struct __sk_buff *skb, __u32 base, struct packet *packet)
{
    struct { __be16 first, second; __be16 third, fourth; } head;
    __builtin_memset(packet, 0, sizeof *packet);
    if (skb->protocol == big16(IPV4) ? parse_v4(skb, base, packet)
                                     : skb->protocol == big16(IPV6) ? parse_v6(skb, base, packet) : -1)
        return -1;
    if (packet->is_part || load_bytes(skb, packet->at, &head, sizeof head))
        return 0;
    if (packet->proto == TCP || packet->proto == UDP) {
        packet->from_port = big16(head.first);
        packet->to_port = big16(head.second);
        packet->payload -= packet->proto == UDP ? 8 : 20;
    } else if (packet->proto == ICMP || packet->proto == ICMP6) {
        packet->icmp_type = head.first & 0xff;
        packet->from_port = big16(head.third);
        packet->payload -= 8;
    }
    return 0;
}
#endif
