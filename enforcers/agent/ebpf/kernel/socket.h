/* System calls on sockets: who connects, sends, binds, opens a raw socket. Here `current` is who acts. */
#ifndef SOCKET_H
#define SOCKET_H
#include "record.h"

/* The socket at `remote`:`port` on this very host as seen from `local`, to be released; NULL: none, or no tag on it. */
INLINE struct bpf_sock *local_peer(void *ctx, const union address *remote, __u16 port, const union address *local,
                                   __u16 local_port, __u8 proto)
{
    struct bpf_sock_tuple tuple = {};
    __u32 size;
    if (is_mapped(remote)) {
        tuple.ipv4.saddr = local->words[3];
        tuple.ipv4.daddr = remote->words[3];
        tuple.ipv4.sport = big16(local_port);
        tuple.ipv4.dport = big16(port);
        size = sizeof tuple.ipv4;
    } else {
        __builtin_memcpy(tuple.ipv6.saddr, local, sizeof tuple.ipv6.saddr);
        __builtin_memcpy(tuple.ipv6.daddr, remote, sizeof tuple.ipv6.daddr);
        tuple.ipv6.sport = big16(local_port);
        tuple.ipv6.dport = big16(port);
        size = sizeof tuple.ipv6;
    }
    return proto == TCP ? lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0)
                        : lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
}

/* On one host both ends are known: who owns the socket at the other end. OWNER_UNKNOWN where nobody does. */
INLINE __u16 local_peer_owner(void *ctx, const struct host_config *host, const struct question *asked,
                              const union address *local, __u16 local_port, __u16 remote_port, __u32 *exe_id, __u32 *uid)
{
    __u16 owner = OWNER_UNKNOWN;
#ifndef WITHOUT_SAME_HOST
    struct bpf_sock *peer = local_peer(ctx, &asked->remote, remote_port, local, local_port, asked->proto);
    if (!peer)
        return owner;
    struct sock_tag *tag = sk_storage(&socks, peer, NULL, 0);
    if (tag) {
        *exe_id = tag->owner.exe_id;
        *uid = tag->owner.uid;
        owner = owner_class(host, *exe_id, *uid);
    }
    release(peer);
#endif
    return owner;
}

INLINE void apply(struct sock_tag *tag, const struct answer *answer, __u64 epoch)
{
    tag->rule = answer->rule;
    tag->verdict = answer->verdict;
    tag->passes = answer->passes;
    tag->epoch = epoch;
}

/* Judge what `current` asks for with connect() or sendto(), before anything is sent. */
NOINLINE int ask_out(struct bpf_sock_addr *ctx, const struct host_config *host, struct sock_tag *tag, __u8 proto)
{
    struct question asked = {.remote = tag->remote, .port = tag->remote_port, .proto = proto, .dir = DIR_OUT};
    struct answer answer;
    __u64 epoch = epoch_now();
    asked.owner = my_class(host, tag);
    tag->peer_exe_id = 0;
    tag->peer_uid = ANY_UID;
    int is_own = meet(host, &asked);
    if (proto != TCP && proto != UDP) {
        asked.peer_owner = OWNER_KERNEL;
    } else if (is_own) {
        asked.peer_owner = local_peer_owner(ctx, host, &asked, &asked.remote, 0, asked.port, &tag->peer_exe_id,
                                            &tag->peer_uid);
    }
    judge(host, &asked, &answer);
    apply(tag, &answer, epoch);
    tag->wants_claim = answer.wants_claim;
    count_verdict(host, &answer);
    return answer.is_first;
}

INLINE void refused(struct bpf_sock_addr *ctx, const struct host_config *host, const struct sock_tag *tag, __u8 proto,
                    __u64 netns, int is_first)
{
    struct flow_record flow;
    struct bpf_sock *sk = ctx->sk;
    fill_flow(&flow, tag, proto, netns);
    flow.state = FLOW_REFUSED;
    if (sk) {
        flow.local_port = sk->src_port;
        if (sk->src_ip4)
            map_v4((union address *)flow.local, sk->src_ip4);
    }
    flow.closed = flow.opened;
    if (is_first) {
        tell_first_seen(host, &flow);
    }
    if (tag->verdict == DENY)
        record(host, &flow);
}

INLINE int asking(struct bpf_sock_addr *ctx, const union address *to, __u8 is_connect)
{
    __u64 netns = netns_cookie(ctx);
    struct host_config *host = host_of(netns);
    struct bpf_sock *sk = ctx->sk;
    __u8 proto = ctx->protocol;
    if (!host || !sk)
        return PASS;
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag) {
        COUNT(host->index, out_of_memory);
        return host->mode != MODE_ENFORCE;
    }
    take(tag);
    tag->remote = *to;
    tag->remote_port = big16((__u16)ctx->user_port);
    tag->dir = DIR_OUT;
    tag->opened = clock_ns();
    if (skipped(host, to)) {
        tag->verdict = UNJUDGED;
        tag->passes = 1;
        tag->epoch = epoch_now();
        return PASS;
    }
    int is_first = ask_out(ctx, host, tag, proto);
    if (tag->verdict == DENY || is_first)
        refused(ctx, host, tag, proto, netns, is_first);
    if (tag->passes)
        return PASS;
    if (is_connect)
        set_retval(-EACCES);
    return DROP;
}

INLINE int asking_v4(struct bpf_sock_addr *ctx, __u8 is_connect)
{
    union address to;
    map_v4(&to, ctx->user_ip4);
    return bit(asking(ctx, &to, is_connect));
}

INLINE int asking_v6(struct bpf_sock_addr *ctx, __u8 is_connect)
{
    union address to; /* ::ffff:a.b.c.d is IPv4 in this form already */
    to.words[0] = ctx->user_ip6[0];
    to.words[1] = ctx->user_ip6[1];
    to.words[2] = ctx->user_ip6[2];
    to.words[3] = ctx->user_ip6[3];
    return bit(asking(ctx, &to, is_connect));
}

#ifndef WITHOUT_CONNECT4
SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) { return asking_v4(ctx, 1); }
#endif
#ifndef WITHOUT_CONNECT6
SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx) { return asking_v6(ctx, 1); }
#endif

/* UDP is tagged by who binds; TCP by who listens (on_state), since anybody may bind for another. */
INLINE int bound(struct bpf_sock *sk)
{
    if (sk->protocol != UDP || !host_of(netns_cookie(sk)))
        return PASS;
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (tag)
        take(tag);
    return PASS;
}

SEC("cgroup/post_bind4") int post_bind4(struct bpf_sock *sk) { return bit(bound(sk)); }
SEC("cgroup/post_bind6") int post_bind6(struct bpf_sock *sk) { return bit(bound(sk)); }

/* Raw sockets: may be refused to an owner altogether; what they send is judged packet by packet in any case. */
INLINE int created(struct bpf_sock *sk)
{
    if (sk->protocol == TCP || sk->protocol == UDP)
        return PASS;
    struct host_config *host = host_of(netns_cookie(sk));
    if (!host)
        return PASS;
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag)
        return host->mode != MODE_ENFORCE;
    take(tag);
#ifndef WITHOUT_RAW
    if (sk->type == TYPE_RAW && host->flags & REFUSES_RAW) {
        struct question asked = {.owner = class_of(host, tag), .peer = host->peer_other, .dir = DIR_OUT};
        struct answer answer;
        judge_service(host, &asked, host->raw_service, AS_HOST, &answer);
        if (!answer.passes) {
            COUNT(host->index, raw_refused);
            return DROP;
        }
    }
#endif
    return PASS;
}

SEC("cgroup/sock_create") int sock_create(struct bpf_sock *sk) { return bit(created(sk)); }
#endif
