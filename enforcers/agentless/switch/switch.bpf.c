/* A stateful firewall at a switch port, in the place of the port's own: what the host sends and what it is sent.
 *
 * Order: whose port; is the sender who it says (MAC, ARP, neighbour discovery, IP); fragments get the ports of their
 * first; errors must be about a flow that is known; then the flow's own state, or, for a new one, the policy. */
#include "bounce.h"
#include "neighbour.h"
#include "room.h"

enum { FRAGMENT_NS = 1000000000 * 2 };

INLINE int drop(__u32 why)
{
    count(why);
    return TC_SHOT;
}

INLINE void account(struct flow *f, const struct packet *p, int d, __u64 now, const struct tenant *tenant)
{
    __u32 which = OTHER;
    if (d) { /* not by index: the compiler makes arithmetic of it that the verifier refuses */
        f->bytes[1] += p->ip_bytes;
        f->packets[1] += 1;
    } else {
        f->bytes[0] += p->ip_bytes;
        f->packets[0] += 1;
    }
    if (p->proto == TCP)
        which = tcp_timeout(f);
    else if (p->proto == UDP)
        which = f->packets[0] && f->packets[1] ? UDP_MULTIPLE : UDP_SINGLE;
    else if (p->proto == ICMP || p->proto == ICMP6)
        which = ICMP_ECHO;
    f->expires_ns = now + tenant->timeout_ns[which];
}

/* Whether the policy as it is now lets the flow go on; it is asked once for each change. */
INLINE int still_allowed(const struct key *key, struct flow *f, const struct packet *p, int d,
                         const struct tenant *tenant)
{
    __u32 generation = *(volatile __u32 *)&tenant->generation;
    if (CHECK_REJUDGE && f->generation != generation) {
        __u64 now = judge(tenant, generation, p, f->opener != d);
        if (f->allowed != (now & 1))
            f->told = 0;
        f->allowed = now & 1;
        f->rule = (__u32)(now >> 1);
        f->generation = generation;
        if (!f->allowed)
            tell(key, f);
    }
    return f->allowed;
}

INLINE void make_key(struct key *key, const struct packet *p, __u32 ifindex, int d)
{
    key->port = ifindex;
    key->proto = p->proto;
    key->family = p->family;
    key->pad = 0;
    key->own = d ? p->target : p->source;
    key->peer = d ? p->source : p->target;
    key->own_port = d ? p->target_port : p->source_port;
    key->peer_port = d ? p->source_port : p->target_port;
}

/* --- errors about a flow ----------------------------------------------------------------------- */

INLINE int is_error(const struct packet *p)
{
    return p->family == 4 ? p->type == 3 || p->type == 11 || p->type == 12 : p->type >= 1 && p->type <= 4;
}

/* An ICMP error is about a packet of the one whom it is sent to, and that packet's flow is one that we let be. */
CALLED int related(struct __sk_buff *skb, const struct packet *p, const struct tenant *tenant, int d)
{
    struct packet about = {};
    struct key key = {};
    __be16 ports[4];
    __u32 at = p->at + 8;
    if (p->family == 4) {
        struct v4 ip;
        if (load_bytes(skb, at, &ip, sizeof ip) || (ip.version_length & 0xf0) != 0x40 || ip.fragment & n16(0x1fff))
            return 0;
        mapped(&about.source, ip.source);
        mapped(&about.target, ip.target);
        about.proto = ip.proto;
        at += (ip.version_length & 15) * 4;
    } else {
        struct v6 ip;
        if (load_bytes(skb, at, &ip, sizeof ip))
            return 0;
        about.source = ip.source;
        about.target = ip.target;
        about.at = at + V6;
        about.length = 64; /* as far as an error quotes */
        if (skip_extensions(skb, &about, ip.next) || about.fragment_at)
            return 0;
        at = about.at;
    }
    about.family = p->family;
    if (load_bytes(skb, at, ports, sizeof ports) || !same(&about.source, &p->target))
        return 0;
    about.source_port = ports[0];
    about.target_port = ports[1];
    if (about.proto == (p->family == 4 ? ICMP : ICMP6)) {
        __u8 type = *(__u8 *)ports;
        if (type != (p->family == 4 ? 8 : 128)) /* an error about an answer tells nobody anything */
            return 0;
        about.source_port = ports[2];
        about.target_port = ports[2];
    }
    make_key(&key, &about, skb->ifindex, !d);
    if (about.proto == ICMP || about.proto == ICMP6)
        key.peer_port = (__be16)!d;
    struct flow *f = map_lookup(&flows, &key);
    if (!f || coarse_ns() > f->expires_ns || !still_allowed(&key, f, &about, !d, tenant))
        return 0;
    if (about.proto == TCP && !f->loose) {
        struct side *sender = &f->side[!d];
        __u32 seq = n32(*(__u32 *)(ports + 2));
        if (after(seq, sender->end) || before(seq, sender->end - (1u << 30)))
            return 0;
    }
    return 1;
}

/* --- fragments --------------------------------------------------------------------------------- */

INLINE void fragment_key(struct fragment_key *key, const struct packet *p, __u32 ifindex)
{
    key->port = ifindex;
    key->id = p->id;
    key->source = p->source;
    key->target = p->target;
    key->proto = p->family == 4 ? p->proto : 0; /* IPv6 lets a later fragment say another: RFC 8200 4.5 */
    key->family = p->family;
    key->pad[0] = key->pad[1] = 0;
}

/* A fragment is let through in its turn, with the ports of the first; one that comes over another spoils all. */
CALLED int fragment(struct packet *p, __u32 ifindex, __u64 now)
{
    struct fragment_key key;
    fragment_key(&key, p, ifindex);
    struct fragmented *known = map_lookup(&fragments, &key);
    if (p->fragment_at + p->length > 65535)
        return -1;
    if (!p->fragment_at) {
        if (CHECK_OVERLAP && known && now <= known->expires_ns) { /* a second first */
            known->spoilt = 1;
            return -1;
        }
        struct fragmented fresh = {.expires_ns = now + FRAGMENT_NS, .next = p->length, .seq = p->seq - p->header,
                                   .source_port = p->source_port, .target_port = p->target_port, .type = p->type,
                                   .proto = p->proto};
        return (int)map_update(&fragments, &key, &fresh, 0);
    }
    if (!CHECK_FRAGMENTS)
        return 0;
    if (!known)
        return -1;
    if (now > known->expires_ns || known->spoilt)
        return -1;
    if (CHECK_OVERLAP && p->fragment_at < known->next) {
        known->spoilt = 1;
        return -1;
    }
    known->next = p->fragment_at + p->length;
    p->source_port = known->source_port;
    p->target_port = known->target_port;
    p->type = known->type;
    p->proto = known->proto;
    p->seq = known->seq + p->fragment_at;
    p->payload = p->length;
    return 0;
}

/* --- flows ------------------------------------------------------------------------------------- */

INLINE int refused(struct __sk_buff *skb, const struct packet *p, int d, const struct tenant *tenant, __u32 when)
{
    count(DENIED);
    return p->proto == TCP && !d && !p->fragmented && tenant->options & when ? bounce(skb, p) : TC_SHOT;
}

CALLED int new_flow(struct __sk_buff *skb, const struct packet *p, const struct key *key, const struct tenant *tenant,
                    int d)
{
    __u64 now = coarse_ns();
    struct flow fresh = {.start_ns = now, .opener = (__u8)d};
    if (p->fragment_at)
        return drop(BAD_FRAGMENT);
    if (p->proto == TCP && (p->flags & (SYN | ACK | RST)) != SYN) {
        if (CHECK_STATE && (!(tenant->options & PICK_UP) || p->flags & (SYN | RST))) {
            count(OUT_OF_STATE);
            return !d && !p->fragmented && tenant->options & RESET_CUT ? bounce(skb, p) : TC_SHOT;
        }
        begin_midway(p, &fresh, d);
    }
    fresh.generation = *(volatile __u32 *)&tenant->generation;
    __u64 verdict = judge(tenant, fresh.generation, p, 0);
    fresh.rule = (__u32)(verdict >> 1);
    fresh.allowed = verdict & 1;
    if (p->proto == TCP && p->flags & SYN)
        begin(skb, p, d ? &fresh.side[1] : &fresh.side[0], d ? &fresh.side[0] : &fresh.side[1]);
    account(&fresh, p, d, now, tenant);
    if (!fresh.allowed) {
        tell(key, &fresh);
        return refused(skb, p, d, tenant, RESET_REFUSED);
    }
    return keep(key, &fresh, now) ? drop(NO_ROOM) : TC_OK;
}

/* A port may be used again once both sides were done with it, or where nobody ever answered. */
INLINE int anew(const struct flow *f, const struct packet *p, int d)
{
    if ((p->flags & (SYN | ACK | RST | FIN)) != SYN)
        return 0;
    const struct side *me = &f->side[d & 1], *him = &f->side[!d];
    return f->closed || (me->state >= FIN_SENT && him->state >= FIN_SENT) ||
           (me->state == SYN_SENT && him->state == NOTHING && p->seq != me->first);
}

INLINE int through(struct __sk_buff *skb, struct packet *p, const struct tenant *tenant, int d)
{
    struct key key;
    __u64 now = coarse_ns();
    if (p->fragmented && fragment(p, skb->ifindex, now))
        return drop(BAD_FRAGMENT);
    make_key(&key, p, skb->ifindex, d);
    if (p->proto == (p->family == 4 ? ICMP : ICMP6)) {
        int asks = p->type == (p->family == 4 ? 8 : 128);
        if (!asks && p->type != (p->family == 4 ? 0 : 129))
            return drop(UNRELATED);
        key.own_port = p->source_port;
        key.peer_port = (__be16)(asks ? d : !d);
    }
    if (p->proto == TCP && !p->fragment_at && senseless(p))
        return drop(MALFORMED);
    struct flow *f = map_lookup(&flows, &key);
    if (f && (now > f->expires_ns || (p->proto == TCP && !p->fragment_at && anew(f, p, d)))) {
        tell(&key, f);
        f = 0;
    }
    if (!f) {
        if (key.proto == ICMP || key.proto == ICMP6) {
            if (key.peer_port != (__be16)d)
                return drop(UNRELATED); /* an answer that nobody asked for */
        }
        return new_flow(skb, p, &key, tenant, d);
    }
    if (!still_allowed(&key, f, p, d, tenant))
        return refused(skb, p, d, tenant, RESET_CUT);
    if (p->proto == TCP) {
        struct side *me = &f->side[d & 1];
        if (p->fragment_at) {
            if (after(p->seq + p->payload, me->end))
                me->end = p->seq + p->payload;
        } else {
            int why = follow(skb, p, f, d);
            if (why)
                return drop((__u32)why);
        }
    }
    account(f, p, d, now, tenant);
    if (f->closed && !f->told) {
        tell(&key, f);
        note_closing(&key);
    }
    return TC_OK;
}

/* --- the port ---------------------------------------------------------------------------------- */

INLINE int is_own(const struct packet *p, const struct port *port)
{
    if (!CHECK_ADDRESS)
        return 1;
    if (p->family == 4)
        return same(&p->source, &port->v4);
    if (same(&p->source, &port->v6) || same(&p->source, &port->link_local))
        return 1;
    int nobody = !(p->source.w[0] | p->source.w[1] | p->source.w[2] | p->source.w[3]);
    return nobody && p->proto == ICMP6; /* before an address is known to be free: RFC 4862 */
}

INLINE int guard(struct __sk_buff *skb, int d)
{
    struct packet p = {};
    struct ethernet eth;
    __u32 index = skb->ifindex;
    struct port *port = map_lookup(&ports, &index);
    if (!port || !port->tenant)
        return TC_OK;
    if (d && skb->mark == MARK)
        return TC_OK;
    index = port->tenant;
    struct tenant *tenant = map_lookup(&tenants, &index);
    if (!tenant)
        return TC_SHOT;
    count(SEEN);
    if (peek(skb, 0, &eth, sizeof eth) || skb->vlan_present)
        return drop(FOREIGN);
    __u8 mac[6];
    __builtin_memcpy(mac, d ? eth.target : eth.source, 6);
    if (CHECK_MAC && !same_mac(mac, port->mac) && (!d || !(mac[0] & 1)))
        return drop(d ? FOREIGN : SPOOFED);
    if (eth.type == n16(ETH_ARP))
        return d || arp_is_honest(skb, port) ? TC_OK : drop(NEIGHBOUR);
    if (eth.type == n16(ETH_V4)) {
        if (parse_v4(skb, &p))
            return drop(MALFORMED);
    } else if (eth.type == n16(ETH_V6)) {
        if (parse_v6(skb, &p))
            return drop(MALFORMED);
    } else {
        return drop(FOREIGN);
    }
    if (!d && !is_own(&p, port))
        return drop(SPOOFED);
    if (parse_transport(skb, &p))
        return drop(MALFORMED);
    if (p.proto == (p.family == 4 ? ICMP : ICMP6) && !p.fragment_at) {
        if (p.family == 6 && p.type >= SOLICIT_ROUTER && p.type <= REDIRECT)
            return discovery_is_honest(skb, &p, port, d) ? TC_OK : drop(NEIGHBOUR);
        if (p.family == 6 && ((p.type >= 130 && p.type <= 132) || p.type == 143))
            return p.hops == 1 ? TC_OK : drop(NEIGHBOUR); /* who listens to which group: stays on the link */
        if (is_error(&p)) {
            if (!CHECK_RELATED || (!p.fragmented && related(skb, &p, tenant, d)))
                return TC_OK;
            return drop(UNRELATED);
        }
    }
    return through(skb, &p, tenant, d);
}

SEC("tc")
int from_host(struct __sk_buff *skb)
{
    return guard(skb, 0);
}

SEC("tc")
int to_host(struct __sk_buff *skb)
{
    return guard(skb, 1);
}

char _license[] SEC("license") = "GPL";
