/* Over all connections of a namespace: which there are, and the end of those that a new policy forbids, idle or not. */
#ifndef REVOKE_H
#define REVOKE_H
#include "adopt.h"
#include "datagram.h"

/* A connection without its packets: all of judging that needs no packet. */
INLINE int still_passes(const struct host_config *host, struct sock_tag *tag, __u16 local_port)
{
    struct question asked = {.remote = tag->remote, .proto = TCP, .dir = tag->dir,
                             .port = tag->dir == DIR_OUT ? tag->remote_port : local_port};
    struct answer answer;
    if (skipped(host, &asked.remote))
        return 1;
    __u64 epoch = epoch_now();
    meet(host, &asked);
    if (tag->peer_exe_id)
        asked.peer_owner = owner_class(host, tag->peer_exe_id, tag->peer_uid);
    judge_in(host, &asked, tag, &answer);
    apply(tag, &answer, epoch);
    return answer.passes;
}

INLINE int is_connection(struct sock_common *sk)
{
    __u8 state = sk->skc_state;
    return state != STATE_LISTEN && state != STATE_CLOSE && state != 6 /* TIME_WAIT */ && state != 12 /* NEW_SYN_RECV */;
}

INLINE void fill_remote(struct sock_tag *tag, struct sock *sk)
{
    if (tag->remote_port)
        return;
    address_of(&tag->remote, &sk->__sk_common, 1);
    tag->remote_port = big16(sk->__sk_common.skc_dport);
    tag->dir = DIR_IN;
    tag->opened = clock_ns();
}

SEC("iter/tcp") int tcp_revoke(struct bpf_iter__tcp *ctx)
{
    struct sock_common *common = ctx->sk_common;
    if (!common || !is_connection(common))
        return 0;
    struct tcp_sock *tcp = to_tcp_sock(common);
    if (!tcp)
        return 0;
    struct sock *sk = (struct sock *)tcp;
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, 0);
    __u64 netns = common->skc_net.net->net_cookie;
    struct host_config *host = host_of(netns);
    struct flow_record flow;
    if (!tag || !host)
        return 0;
    fill_remote(tag, sk);
    if (still_passes(host, tag, common->skc_num))
        return 0;
    fill_tcp(&flow, tag, sk, tcp, netns);
    flow.state = FLOW_REVOKED;
    flow.closed = clock_ns();
    /* Told before it is done: where the buffer is full, the kernel comes back to this very socket. */
    if (!seq_write(ctx->meta->seq, &flow, sizeof flow) && !bpf_sock_destroy(common))
        COUNT(host->index, revoked);
    return 0;
}

SEC("iter/tcp") int tcp_flows(struct bpf_iter__tcp *ctx)
{
    struct sock_common *common = ctx->sk_common;
    if (!common || !is_connection(common))
        return 0;
    struct tcp_sock *tcp = to_tcp_sock(common);
    if (!tcp)
        return 0;
    struct sock *sk = (struct sock *)tcp;
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, 0);
    struct flow_record flow;
    if (!tag || (tag->verdict == UNJUDGED && tag->passes && tag->remote_port))
        return 0;
    fill_remote(tag, sk);
    fill_tcp(&flow, tag, sk, tcp, common->skc_net.net->net_cookie);
    flow.state = FLOW_LIVE;
    seq_write(ctx->meta->seq, &flow, sizeof flow);
    return 0;
}

SEC("iter/bpf_map_elem") int datagram_flows(struct bpf_iter__bpf_map_elem *ctx)
{
    struct datagram_key *key = ctx->key;
    struct datagram *found = ctx->value;
    struct datagram flow;
    struct flow_record record_of;
    if (!key || !found || !found->opened)
        return 0;
    flow = *found;
    fill_datagram(&record_of, key, &flow);
    seq_write(ctx->meta->seq, &record_of, sizeof record_of);
    return 0;
}
#endif
