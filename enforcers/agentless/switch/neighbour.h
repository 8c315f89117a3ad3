/* ARP and neighbour discovery: who may say which address is at which machine. A host speaks for itself alone. */
#ifndef LABCTL_SWITCH_NEIGHBOUR_H
#define LABCTL_SWITCH_NEIGHBOUR_H
#include "packet.h"

enum { SOLICIT_ROUTER = 133, ADVERTISE_ROUTER, SOLICIT, ADVERTISE, REDIRECT };

struct arp {
    __be16 hardware, protocol;
    __u8 hardware_size, protocol_size;
    __be16 operation;
    __u8 source_mac[6], source[4], target_mac[6], target[4];
} __attribute__((packed));

INLINE int same_mac(const __u8 *a, const __u8 *b)
{
    return *(__u32 *)a == *(__u32 *)b && *(__u16 *)(a + 4) == *(__u16 *)(b + 4);
}

CALLED int arp_is_honest(struct __sk_buff *skb, const struct port *port)
{
    struct arp arp;
    if (load_bytes(skb, ETHERNET, &arp, sizeof arp) || arp.hardware != n16(1) || arp.protocol != n16(ETH_V4) ||
        arp.hardware_size != 6 || arp.protocol_size != 4)
        return 0;
    __u32 says;
    __u8 mac[6];
    __builtin_memcpy(&says, arp.source, 4);
    __builtin_memcpy(mac, arp.source_mac, 6);
    return !CHECK_ARP || (same_mac(mac, port->mac) && (says == port->v4.w[3] || !says)); /* 0: a probe, RFC 5227 */
}

/* Each link-layer address among the options is the port's own. */
INLINE int options_are_honest(struct __sk_buff *skb, const struct packet *p, const struct port *port, __u32 skipped)
{
    __u32 at = p->at + skipped, end = p->at + p->length;
    for (int i = 0; i < 6; i++) {
        __u8 option[8];
        if (at >= end)
            return 1;
        if (at + 8 > end || load_bytes(skb, at, option, 8) || !option[1])
            return 0;
        if (option[0] == 1 || option[0] == 2) {
            __u8 mac[6];
            __builtin_memcpy(mac, option + 2, 6);
            if (!same_mac(mac, port->mac))
                return 0;
        }
        at += (__u32)option[1] * 8;
    }
    return 0;
}

/* Neighbour discovery from (d 0) or to (d 1) the host. RFC 4861 7.1, RFC 6980. */
CALLED int discovery_is_honest(struct __sk_buff *skb, const struct packet *p, const struct port *port, int d)
{
    struct address about;
    if (p->hops != 255 || p->code || p->fragmented)
        return 0;
    if (d)
        return p->type != REDIRECT;
    if (!CHECK_ND)
        return 1;
    if (p->type == SOLICIT_ROUTER)
        return options_are_honest(skb, p, port, 8);
    if (p->type != SOLICIT && p->type != ADVERTISE)
        return 0;
    if (p->length < 24 || load_bytes(skb, p->at + 8, &about, sizeof about))
        return 0;
    if (p->type == ADVERTISE && !same(&about, &port->v6) && !same(&about, &port->link_local))
        return 0;
    return options_are_honest(skb, p, port, 24);
}
#endif
