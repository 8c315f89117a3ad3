/* A TCP socket's life as tracepoints tell it: who listens, who really receives, what it came to in the end. */
#ifndef LIFE_H
#define LIFE_H
#include "exec.h"
#include "tcp.h"

enum { FIN_CAME = 1 << 1 }; /* SOCK_DONE: the peer's FIN, which bytes_received counts as a byte */

INLINE void address_of(union address *to, const struct sock_common *sk, int is_remote)
{
    if (sk->skc_family == FAMILY_V4) {
        map_v4(to, is_remote ? sk->skc_daddr : sk->skc_rcv_saddr);
        return;
    }
    const struct in6_addr *from = is_remote ? &sk->skc_v6_daddr : &sk->skc_v6_rcv_saddr;
    to->words[0] = from->in6_u.u6_addr32[0];
    to->words[1] = from->in6_u.u6_addr32[1];
    to->words[2] = from->in6_u.u6_addr32[2];
    to->words[3] = from->in6_u.u6_addr32[3];
}

INLINE void fill_tcp(struct flow_record *flow, const struct sock_tag *tag, struct sock *sk, struct tcp_sock *tcp,
                     __u64 netns)
{
    union address local;
    fill_flow(flow, tag, TCP, netns);
    address_of(&local, &sk->__sk_common, 0);
    __builtin_memcpy(flow->local, &local, sizeof flow->local);
    flow->local_port = big16(tcp->inet_conn.icsk_inet.inet_sport);
    flow->sent = tcp->bytes_sent - tcp->bytes_retrans;
    flow->received = tcp->bytes_received;
    if (flow->received && sk->__sk_common.skc_flags & FIN_CAME)
        flow->received--;
    flow->packets_sent = tcp->segs_out;
    flow->packets_received = tcp->segs_in;
}

INLINE void listening_begins(struct sock *sk)
{
    if (!host_of(sk->__sk_common.skc_net.net->net_cookie))
        return;
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag)
        return;
    socket_cookie(sk); /* gives it one, by which on_exec can point to it */
    *tag = (struct sock_tag){.passes = 1};
    take(tag);
}

NOINLINE void connection_ends(struct sock *sk, int before)
{
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, 0);
    struct tcp_sock *tcp = tag ? to_tcp_sock(sk) : NULL;
    if (!tcp || before == STATE_LISTEN || before == STATE_CLOSE)
        return;
    __u64 netns = sk->__sk_common.skc_net.net->net_cookie;
    struct host_config *host = host_of(netns);
    struct flow_record flow;
    if (!host || (tag->verdict == UNJUDGED && tag->passes))
        return;
    if (!tag->remote_port) { /* it ended before its first packet after the handshake */
        address_of(&tag->remote, &sk->__sk_common, 1);
        tag->remote_port = big16(sk->__sk_common.skc_dport);
        tag->dir = DIR_IN;
        tag->verdict = UNJUDGED;
    }
    fill_tcp(&flow, tag, sk, tcp, netns);
    flow.closed = clock_ns();
    if (!flow.opened)
        flow.opened = flow.closed;
    flow.state = !tag->passes ? FLOW_REVOKED : before == STATE_SYN_SENT ? FLOW_UNANSWERED : FLOW_CLOSED;
    record(host, &flow);
}

SEC("tp_btf/inet_sock_set_state") int on_state(__u64 *ctx)
{
    struct sock *sk = (void *)ctx[0];
    int before = (int)ctx[1], after = (int)ctx[2];
    if ((after != STATE_CLOSE && after != STATE_LISTEN) || sk->sk_protocol != TCP)
        return 0;
    if (after == STATE_LISTEN)
        listening_begins(sk);
    else
        connection_ends(sk, before);
    return 0;
}

INLINE void tell_handed_on(struct sock *sk, const struct sock_tag *tag, const struct owner *former)
{
    __u64 netns = sk->__sk_common.skc_net.net->net_cookie;
    struct host_config *host = host_of(netns);
    if (!host)
        return;
    __u32 index = host->index;
    void *ring = map_lookup(&events, &index);
    struct handed_on *event = ring ? ring_reserve(ring, sizeof *event, 0) : NULL;
    if (!event) {
        COUNT(index, events_lost);
        return;
    }
    *event = (struct handed_on){.kind = HANDED_ON, .size = sizeof *event, .port = sk->__sk_common.skc_num,
                                .exe_id = tag->owner.exe_id, .tgid = tag->owner.tgid,
                                .former_exe_id = former->exe_id, .former_tgid = former->tgid, .at = clock_ns(),
                                .netns = netns};
    ring_submit(event, 0);
}

/* Who receives on an accepted connection, or on a UDP socket, is its owner, whoever bound it: after fork, exec, a change
 * of user, or when the socket was passed on. */
SEC("tp_btf/sock_recv_length") int on_receive(__u64 *ctx)
{
    struct sock *sk = (void *)ctx[0];
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, 0);
    if (!tag)
        return 0;
#ifndef WITHOUT_ACCEPTOR
    int is_tcp = sk->sk_protocol == TCP;
    if ((is_tcp && tag->dir == DIR_OUT) || is_me(&tag->owner))
        return 0;
    struct owner former = tag->owner;
    take(tag);
    tag->has_heir = 0;
    if (same_identity(&former, &tag->owner))
        return 0;
    tag->epoch = 0;
    if (is_tcp)
        tell_handed_on(sk, tag, &former);
#endif
    return 0;
}
#endif
