/* Who asks, told by the asking host in its SYN: TCP option 253 (RFC 3692: for experiments). Nobody vouches for it, so it
 * can only restrict: what the policy lets through without a claim has to pass with it too. */
#ifndef CLAIM_H
#define CLAIM_H
#include "packet.h"
#include "record.h"

enum { OPTION = 253, OPTION_BYTES = 12, MAGIC = 0x4c43, END = 0, NO_OPERATION = 1, MOST_OPTIONS = 12 };

struct claim_option { __u8 kind, length; __be16 magic; __be32 exe_id, uid; } __attribute__((packed));

INLINE int read_claim(struct __sk_buff *skb, __u32 at, __u8 words, struct claim *claim)
{
    __u32 next = at + 20, end = at + words * 4;
    for (int i = 0; i < MOST_OPTIONS; i++) {
        struct { __u8 kind, length; } head;
        struct claim_option option;
        if (next + 2 > end || load_bytes(skb, next, &head, sizeof head) || head.kind == END)
            return 0;
        if (head.kind == NO_OPERATION) {
            next++;
            continue;
        }
        if (head.length < 2)
            return 0;
        if (head.kind == OPTION && head.length == OPTION_BYTES && next + OPTION_BYTES <= end &&
            !load_bytes(skb, next, &option, sizeof option) && option.magic == big16(MAGIC)) {
            claim->exe_id = big32(option.exe_id);
            claim->uid = big32(option.uid);
            return 1;
        }
        next += head.length;
    }
    return 0;
}

INLINE struct claim_key claim_key(__u64 netns, const struct packet *packet)
{
    return (struct claim_key){.netns = netns, .remote = packet->from, .local_port = packet->to_port,
                              .remote_port = packet->from_port};
}

INLINE void keep_claim(__u64 netns, const struct packet *packet, const struct claim *claim)
{
    struct claim_key key = claim_key(netns, packet);
    map_update(&claimed, &key, claim, BPF_ANY);
}

/* From the SYN to the connection that it became. */
INLINE void take_claim(__u64 netns, const struct packet *packet, struct sock_tag *tag)
{
    struct claim_key key = claim_key(netns, packet);
    struct claim *claim = map_lookup(&claimed, &key);
    if (claim) {
        tag->peer_exe_id = claim->exe_id;
        tag->peer_uid = claim->uid;
        map_delete(&claimed, &key);
    }
}

/* Attached only where a host sends claims: it runs at many points of a connection's life. */
SEC("sockops") int claims(struct bpf_sock_ops *ctx)
{
    __u32 what = ctx->op, flags = ctx->bpf_sock_ops_cb_flags, tcp_flags = 0;
    struct bpf_sock *sk = ctx->sk;
    if (!sk)
        return 1;
    if (what == BPF_SOCK_OPS_TCP_CONNECT_CB) {
        struct host_config *host = host_of(netns_cookie(ctx));
        struct sock_tag *tag = sk_storage(&socks, sk, NULL, 0);
        if (host && host->flags & SENDS_CLAIM && tag && tag->wants_claim)
            sock_ops_flags(ctx, flags | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
    } else if (what == BPF_SOCK_OPS_HDR_OPT_LEN_CB) {
        tcp_flags = ctx->skb_tcp_flags;
        if ((tcp_flags & (SYN | ACK)) == SYN)
            reserve_option(ctx, OPTION_BYTES, 0);
    } else if (what == BPF_SOCK_OPS_WRITE_HDR_OPT_CB) {
        tcp_flags = ctx->skb_tcp_flags;
        struct sock_tag *tag = sk_storage(&socks, sk, NULL, 0);
        if ((tcp_flags & (SYN | ACK)) == SYN && tag) {
            struct claim_option option = {OPTION, OPTION_BYTES, big16(MAGIC), big32(settled(tag->owner.exe_id)),
                                          big32(tag->owner.uid)};
            store_option(ctx, &option, sizeof option, 0);
        }
    } else if (what == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
        sock_ops_flags(ctx, flags & ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
    }
    return 1;
}
#endif
