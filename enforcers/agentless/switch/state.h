/* What the program keeps, and what the daemon (daemon/layout.py) writes and reads: ports, policies, flows, records. */
#ifndef LABCTL_SWITCH_STATE_H
#define LABCTL_SWITCH_STATE_H
#include "kernel.h"

#define FLOWS 65536
#define OPENINGS FLOWS /* remembered in the order they came: where room is sought for a new flow */
#define CLOSED_KEPT 256 /* closed flows that stay, for what is still under way: few, so that their memory stays near */
#define FRAGMENTED 4096
#define RING_BYTES (4 << 20)
#define PORTS 65536
#define TENANTS 1024
#define SLOTS 256 /* the lower bits of a generation say in which slot its policy lies */
#define PORTS_OF_PROTO 65536
#define MARK 0x6c616273 /* on a reset of ours; links between namespaces take marks away, so nobody can bring one */

struct address {
    __u32 w[4]; /* network order; IPv4 mapped into IPv6 */
};

struct port {
    __u32 tenant; /* 0: nobody's, all passes */
    __u8 mac[6];
    __u8 pad[2];
    struct address v4, v6, link_local;
};

enum { FIRST = 0, OPENING, ESTABLISHED, CLOSING_TIME, CLOSED, UDP_SINGLE, UDP_MULTIPLE, ICMP_ECHO, OTHER, TIMEOUTS };
enum { PICK_UP = 1, RESET_REFUSED = 2, RESET_CUT = 4, ALLOW = 8 };

struct tenant {
    __u32 generation; /* alone decides which policy holds: one aligned word, so that a change is whole at any packet */
    __u32 options;
    __u64 timeout_ns[TIMEOUTS];
};

struct key {
    __u32 port; /* the interface: each port keeps its own state, as hosts on different machines would */
    __u8 proto, family;
    __be16 pad;
    struct address own, peer;
    __be16 own_port, peer_port; /* icmp: identifier, and which side asks */
};

enum { NOTHING = 0, SYN_SENT, OPEN, FIN_SENT, FIN_ACKED };

struct side {
    __u32 first, end; /* first sequence number sent; the highest sent, one past */
    __u32 limit;      /* the highest that the other side has given room for, one past */
    __u32 acked;      /* the highest that this side has acknowledged */
    __u32 window;     /* the largest that this side has offered */
    __u8 scale, has_scale, state, pad;
};

struct flow {
    __u64 start_ns, expires_ns;
    __u64 bytes[2];
    __u32 packets[2];
    __u32 generation, rule;
    __u8 allowed, opener, closed, told; /* opener: 0 the port's own host, 1 the peer */
    __u8 loose, pad[3];
    struct side side[2]; /* 0: the port's own host, 1: the peer */
};

enum { TOLD_BYTES = __builtin_offsetof(struct flow, side) };

struct record {
    struct key key;
    __u32 pad;
    __u8 flow[TOLD_BYTES]; /* a flow without its sides */
};

enum { OPENED = 0, RECLAIMED, CLOSED_FLOWS, TURNS };

struct fragment_key {
    __u32 port, id;
    struct address source, target;
    __u8 proto, family, pad[2];
};

struct fragmented {
    __u64 expires_ns;
    __u32 next; /* the first byte that no fragment has brought yet */
    __u32 seq;  /* of byte 0, for TCP */
    __be16 source_port, target_port;
    __u8 spoilt, type, proto, pad;
};

struct verdict_key {
    __u32 source, target, service;
};

struct verdict {
    __u32 allow, rule;
};

struct prefix {
    __u32 length;
    struct address address;
};

struct services {
    __u16 of[2][PORTS_OF_PROTO]; /* tcp, udp: the class of each port */
};
enum { CLASS_OTHER = 0, CLASS_ICMP = 1, CLASS_WIDE = 0xffff };

enum {
    SEEN = 0, DENIED, SPOOFED, MALFORMED, OUT_OF_STATE, OUT_OF_WINDOW, BAD_FRAGMENT, UNRELATED, NEIGHBOUR, FOREIGN,
    RING_FULL, NO_ROOM, COUNTERS
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, PORTS);
    __type(key, __u32);
    __type(value, struct port);
} ports SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, TENANTS);
    __type(key, __u32);
    __type(value, struct tenant);
} tenants SEC(".maps");

/* Not of the kernel's LRU kind: that one forgets connections that stand idle for the sake of a flood (room.h). */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, FLOWS);
    __type(key, struct key);
    __type(value, struct flow);
} flows SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, OPENINGS);
    __type(key, __u32);
    __type(value, struct key);
} openings SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, CLOSED_KEPT);
    __type(key, __u32);
    __type(value, struct key);
} closings SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, TURNS);
    __type(key, __u32);
    __type(value, __u32);
} turns SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, FRAGMENTED);
    __type(key, struct fragment_key);
    __type(value, struct fragmented);
} fragments SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, RING_BYTES);
} records SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, COUNTERS);
    __type(key, __u32);
    __type(value, __u64);
} counters SEC(".maps");

/* Sizes, not types: of what lies behind a pointer in a pointer, clang keeps no more than the name. */
#define INNER(name, kind, flags, key, value) \
    struct name {                            \
        __uint(type, kind);                  \
        __uint(max_entries, 1);              \
        __uint(map_flags, flags);            \
        __uint(key_size, key);               \
        __uint(value_size, value);           \
    }
INNER(address_map, BPF_MAP_TYPE_HASH, 0, sizeof(struct address), sizeof(__u32));
INNER(prefix_map, BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC, sizeof(struct prefix), sizeof(__u32));
INNER(service_map, BPF_MAP_TYPE_ARRAY, 0, sizeof(__u32), sizeof(struct services));
INNER(verdict_map, BPF_MAP_TYPE_HASH, 0, sizeof(struct verdict_key), sizeof(struct verdict));
#define OUTER(name, inner)                  \
    struct {                                \
        __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); \
        __uint(max_entries, SLOTS);         \
        __type(key, __u32);                 \
        __array(values, struct inner);      \
    } name SEC(".maps")
OUTER(addresses, address_map);
OUTER(prefixes, prefix_map);
OUTER(service_classes, service_map);
OUTER(verdicts, verdict_map);

INLINE void count(__u32 what)
{
    __u64 *n = map_lookup(&counters, &what);
    if (n)
        *n += 1;
}

INLINE int same(const struct address *a, const struct address *b)
{
    return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}
#endif
