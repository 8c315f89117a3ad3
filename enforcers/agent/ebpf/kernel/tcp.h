/* TCP: a SYN is judged by the listener's owner before the handshake; a connection again when a policy changed.
 *
 * An established packet costs one look at the socket's tag, inbound only. */
#ifndef TCP_H
#define TCP_H
#include "claim.h"
#include "packet.h"
#include "socket.h"

enum { STATE_ESTABLISHED = 1, STATE_SYN_SENT = 2, STATE_CLOSE = 7, STATE_LISTEN = 10 };

/* By whom a flow may be received: the listener's owner, or another who holds the listener and may be who accepts. */
INLINE void judge_in(const struct host_config *host, struct question *asked, struct sock_tag *tag, struct answer *answer)
{
    asked->owner = class_of(host, tag);
    judge(host, asked, answer);
    if (answer->verdict == ALLOW || !tag->has_heir)
        return;
    struct answer second;
    asked->owner = owner_class(host, tag->heir_exe_id, tag->heir_uid);
    judge(host, asked, &second);
    if (second.verdict == ALLOW)
        *answer = second;
}

/* Who executed another program while holding this listener left a note (on_exec); accepted sockets begin with it. */
INLINE void read_note(struct __sk_buff *skb, struct sock_tag *tag)
{
#ifndef WITHOUT_HEIR
    __u64 cookie = socket_cookie(skb);
    struct owner_key *heir = map_lookup(&inherited, &cookie);
    if (!heir)
        return;
    tag->heir_exe_id = heir->exe_id;
    tag->heir_uid = heir->uid;
    tag->has_heir = 1;
    map_delete(&inherited, &cookie);
#endif
}

struct syn {
    struct packet packet;
    struct question asked;
    struct answer answer;
    __u32 peer_exe_id, peer_uid;
    __u64 netns;
};

NOINLINE void tell_syn(const struct host_config *host, const struct sock_tag *tag, const struct syn *syn)
{
    struct flow_record flow;
    fill_flow(&flow, tag, TCP, syn->netns);
    flow.dir = DIR_IN;
    flow.verdict = syn->answer.verdict;
    flow.rule = syn->answer.rule;
    flow.state = FLOW_REFUSED;
    flow.opened = flow.closed = clock_ns();
    __builtin_memcpy(flow.local, &syn->packet.to, sizeof flow.local);
    __builtin_memcpy(flow.remote, &syn->packet.from, sizeof flow.remote);
    flow.local_port = syn->packet.to_port;
    flow.remote_port = syn->packet.from_port;
    flow.peer_exe_id = syn->peer_exe_id;
    flow.peer_uid = syn->peer_uid;
    if (syn->answer.is_first)
        tell_first_seen(host, &flow);
    if (syn->answer.verdict == DENY)
        record(host, &flow);
}

/* What passes without a claim has to pass with it too. */
NOINLINE void heed_claim(struct __sk_buff *skb, const struct host_config *host, struct sock_tag *tag, struct syn *syn,
                       __u8 words)
{
    struct claim claim;
    if (!read_claim(skb, syn->packet.at, words, &claim))
        return;
    keep_claim(syn->netns, &syn->packet, &claim);
    syn->peer_exe_id = claim.exe_id;
    syn->peer_uid = claim.uid;
    syn->asked.peer_owner = owner_class(host, claim.exe_id, claim.uid);
    judge_in(host, &syn->asked, tag, &syn->answer);
}

/* A packet for a listener. What is no SYN belongs to a handshake whose SYN was judged. */
NOINLINE int to_listener(struct __sk_buff *skb, struct sock_tag *tag)
{
    struct syn syn = {.netns = netns_cookie(skb), .peer_uid = ANY_UID};
    struct { __u8 words, flags; } head;
    struct host_config *host = host_of(syn.netns);
    if (!host)
        return PASS;
    if (parse(skb, 0, &syn.packet) || load_bytes(skb, syn.packet.at + 12, &head, sizeof head))
        return DROP;
    if ((head.flags & (SYN | ACK)) != SYN || skipped(host, &syn.packet.from))
        return PASS;
    if (!tag) {
        COUNT(host->index, untagged);
        return host->mode != MODE_ENFORCE;
    }
    syn.asked.remote = syn.packet.from;
    syn.asked.port = syn.packet.to_port;
    syn.asked.proto = TCP;
    read_note(skb, tag);
    int is_own = meet(host, &syn.asked);
    if (is_own)
        syn.asked.peer_owner = local_peer_owner(skb, host, &syn.asked, &syn.packet.to, syn.packet.to_port,
                                                syn.packet.from_port, &syn.peer_exe_id, &syn.peer_uid);
    judge_in(host, &syn.asked, tag, &syn.answer);
#ifndef WITHOUT_CLAIMS
    if (!is_own && host->flags & READS_CLAIM && syn.answer.verdict == ALLOW)
        heed_claim(skb, host, tag, &syn, head.words >> 4);
#endif
    count_verdict(host, &syn.answer);
    if (syn.answer.verdict == DENY || syn.answer.is_first)
        tell_syn(host, tag, &syn);
    return syn.answer.passes;
}

/* The ends of a connection as its socket has them. */
INLINE void ends_of(struct bpf_sock *sk, union address *remote, union address *local)
{
    __be32 remote4 = sk->dst_ip4, local4 = sk->src_ip4; /* hidden: the verifier takes no computed address of a socket */
    HIDDEN_FROM_COMPILER(remote4);
    HIDDEN_FROM_COMPILER(local4);
    if (sk->family == FAMILY_V4) {
        map_v4(remote, remote4);
        map_v4(local, local4);
        return;
    }
    remote->words[0] = sk->dst_ip6[0];
    remote->words[1] = sk->dst_ip6[1];
    remote->words[2] = sk->dst_ip6[2];
    remote->words[3] = sk->dst_ip6[3];
    local->words[0] = sk->src_ip6[0];
    local->words[1] = sk->src_ip6[1];
    local->words[2] = sk->src_ip6[2];
    local->words[3] = sk->src_ip6[3];
}

/* Judge a connection anew: the first packet after its handshake, or after a policy changed. */
NOINLINE int again(struct __sk_buff *skb, struct bpf_sock *sk, struct sock_tag *tag)
{
    struct packet ends = {};
    __u64 netns = netns_cookie(skb), epoch = epoch_now();
    struct host_config *host = host_of(netns);
    struct answer answer;
    if (!host)
        return PASS;
    ends_of(sk, &ends.from, &ends.to);
    ends.from_port = big16(sk->dst_port);
    ends.to_port = sk->src_port;
    if (!tag->remote_port) { /* accepted: the tag is its listener's, the flow its own */
        tag->dir = DIR_IN;
        tag->peer_exe_id = 0;
        tag->peer_uid = ANY_UID;
        tag->remote = ends.from;
        tag->remote_port = ends.from_port;
        tag->opened = clock_ns();
    }
    struct question asked = {.remote = tag->remote, .proto = TCP, .dir = tag->dir,
                             .port = tag->dir == DIR_OUT ? ends.from_port : ends.to_port};
    if (skipped(host, &asked.remote)) {
        tag->verdict = UNJUDGED;
        tag->passes = 1;
        tag->epoch = epoch;
        return PASS;
    }
    if (meet(host, &asked)) {
        asked.peer_owner = local_peer_owner(skb, host, &asked, &ends.to, ends.to_port, ends.from_port,
                                            &tag->peer_exe_id, &tag->peer_uid);
    } else if (tag->dir == DIR_IN && host->flags & READS_CLAIM) {
        take_claim(netns, &ends, tag);
        if (tag->peer_exe_id)
            asked.peer_owner = owner_class(host, tag->peer_exe_id, tag->peer_uid);
    }
    judge_in(host, &asked, tag, &answer);
    apply(tag, &answer, epoch);
    if (answer.verdict != ALLOW)
        count_verdict(host, &answer);
    return answer.passes;
}

INLINE int tcp_in(struct __sk_buff *skb, struct bpf_sock *sk)
{
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, 0);
    if (sk->state == STATE_LISTEN)
        return to_listener(skb, tag);
    if (!tag) {
        struct host_config *host = host_of(netns_cookie(skb));
        if (!host)
            return PASS;
        COUNT(host->index, untagged);
#ifdef WITHOUT_UNTAGGED
        return PASS;
#endif
        return host->mode != MODE_ENFORCE;
    }
#ifndef WITHOUT_EPOCH
    if (tag->epoch != epoch_now())
        return again(skb, sk, tag);
#endif
    return tag->passes;
}

/* Out: every connect() was judged in its system call; a SYN of a socket without a tag came around it. */
INLINE int tcp_out(struct __sk_buff *skb, struct bpf_sock *sk)
{
#ifndef WITHOUT_UNTAGGED
    if (sk->state == STATE_SYN_SENT && !sk_storage(&socks, sk, NULL, 0)) {
        struct host_config *host = host_of(netns_cookie(skb));
        if (host) {
            COUNT(host->index, untagged);
            return host->mode != MODE_ENFORCE;
        }
    }
#endif
    return PASS;
}
#endif
