/* What the kernel side keeps for itself: who owns a socket, what a datagram flow was judged to be. */
#ifndef STATE_H
#define STATE_H
#include "abi.h"
#include "bpf.h"

union address { __u8 bytes[16]; __be32 words[4]; __u64 halves[2]; };

INLINE int is_mapped(const union address *address) { return !address->halves[0] && address->words[2] == big32(0xffff); }

INLINE int is_loopback(const union address *address)
{
    if (is_mapped(address))
        return address->bytes[12] == 127;
    return !address->halves[0] && !address->words[2] && address->words[3] == big32(1);
}

INLINE void map_v4(union address *to, __be32 address)
{
    to->halves[0] = 0;
    to->words[2] = big32(0xffff);
    to->words[3] = address;
}

struct owner {
    __u32 exe_id, uid;
    __u32 tgid, exec_id; /* exec_id: the kernel's count of execs, so that a pid is not mistaken for what it was before */
    __u64 cgroup;
};

struct sock_tag {
    struct owner owner;
    __u64 epoch;     /* of which switch of any host `passes` is; 0: not judged */
    __u64 opened;
    __u64 class_epoch; /* of which switch of its host `class` is the owner's class */
    union address remote;
    __u32 rule;
    __u32 peer_exe_id, peer_uid;
    __u32 heir_exe_id, heir_uid; /* of a listener: somebody else who holds it, and may be who accepts */
    __u16 remote_port;
    __u8 dir, verdict, passes, has_heir;
    __u16 class, wants_claim;
};

struct datagram_key {
    __u64 netns;
    union address remote;
    __u16 local_port, remote_port;
    __u8 proto, unused[3];
};

struct datagram {
    struct owner owner;
    __u64 epoch, opened, last_sent, last_received;
    __u64 sent, received;
    union address local;
    __u32 packets_sent, packets_received;
    __u32 rule;
    __u32 peer_exe_id, peer_uid;
    __u8 dir, verdict, passes, unused;
};

struct claim_key { __u64 netns; union address remote; __u16 local_port, remote_port, unused[2]; };
struct claim { __u32 exe_id, uid; };
struct port_key { __u64 netns; __u16 port, unused[3]; };
#endif
