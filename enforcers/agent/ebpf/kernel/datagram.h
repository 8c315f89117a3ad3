/* UDP, ICMP and raw sockets, datagram by datagram. A flow's table entry is its state (answers pass), its verdict as of
 * an epoch, and its telemetry. */
#ifndef DATAGRAM_H
#define DATAGRAM_H
#include "packet.h"
#include "socket.h"

#define ANSWERS_WITHIN_NS 120000000000ULL /* as conntrack's nf_conntrack_udp_timeout_stream */

INLINE void fill_datagram(struct flow_record *record, const struct datagram_key *key, const struct datagram *flow)
{
    *record = (struct flow_record){.kind = FLOW, .size = sizeof *record, .proto = key->proto, .dir = flow->dir,
                                   .verdict = flow->verdict, .opened = flow->opened, .sent = flow->sent,
                                   .received = flow->received, .packets_sent = flow->packets_sent,
                                   .packets_received = flow->packets_received, .local_port = key->local_port,
                                   .remote_port = key->remote_port, .rule = flow->rule,
                                   .peer_exe_id = flow->peer_exe_id, .peer_uid = flow->peer_uid, .netns = key->netns};
    __builtin_memcpy(record->local, &flow->local, sizeof record->local);
    __builtin_memcpy(record->remote, &key->remote, sizeof record->remote);
    fill_owner(record, &flow->owner);
    record->state = FLOW_LIVE;
}

static const struct datagram no_datagram;

/* The flow with that key, made if there is none. */
INLINE struct datagram *flow_of(const struct datagram_key *key)
{
    struct datagram *flow = map_lookup(&datagrams, key);
    if (flow)
        return flow;
    map_update(&datagrams, key, &no_datagram, BPF_NOEXIST);
    return map_lookup(&datagrams, key);
}

INLINE int is_over(const struct datagram *flow, __u64 now)
{
    __u64 last = flow->last_sent > flow->last_received ? flow->last_sent : flow->last_received;
    return !flow->opened || now - last > ANSWERS_WITHIN_NS;
}

/* Tell of a flow: as it begins (so that none is lost when the table forgets it), and as it is when its key is reused. */
NOINLINE void tell_datagram(const struct host_config *host, const struct datagram_key *key,
                            const struct datagram *flow, __u8 state, __u8 is_first)
{
    struct flow_record record_of;
    fill_datagram(&record_of, key, flow);
    record_of.state = state;
    if (state != FLOW_LIVE)
        record_of.closed = flow->last_sent > flow->last_received ? flow->last_sent : flow->last_received;
    if (is_first)
        tell_first_seen(host, &record_of);
    record(host, &record_of);
}

INLINE void begin(const struct host_config *host, const struct datagram_key *key, struct datagram *flow,
                  const struct owner *owner, const union address *local, __u8 dir)
{
    if (flow->opened)
        tell_datagram(host, key, flow, FLOW_CLOSED, 0);
    __builtin_memset(flow, 0, sizeof *flow);
    flow->owner = *owner;
    flow->local = *local;
    flow->opened = clock_ns();
    flow->dir = dir;
    flow->peer_uid = ANY_UID;
}


INLINE int settle_datagram(const struct host_config *host, const struct datagram_key *key, struct datagram *flow,
                           struct question *asked, __u64 epoch, __u8 is_new)
{
    struct answer answer;
    judge(host, asked, &answer);
    flow->rule = answer.rule;
    flow->verdict = answer.verdict;
    flow->passes = answer.passes;
    flow->epoch = epoch;
    count_verdict(host, &answer);
    if (is_new || answer.verdict != ALLOW)
        tell_datagram(host, key, flow, answer.passes ? FLOW_LIVE : FLOW_REFUSED, answer.is_first);
    return answer.passes;
}

INLINE void count_datagram(struct datagram *flow, __u8 is_out, __u32 payload, __u64 now)
{
    if (is_out) {
        __sync_fetch_and_add(&flow->sent, payload);
        __sync_fetch_and_add(&flow->packets_sent, 1);
        flow->last_sent = now;
    } else {
        __sync_fetch_and_add(&flow->received, payload);
        __sync_fetch_and_add(&flow->packets_received, 1);
        flow->last_received = now;
    }
}

/* What a build without the guard answers, the compiler cannot know: the program keeps its shape, and fits the stack. */
#define NEVER(host) ((host)->mode == 255)
#ifdef WITHOUT_PORT_OWNER
#define GUARDS_PORT_OWNER(host) NEVER(host)
#else
#define GUARDS_PORT_OWNER(host) 1
#endif
#ifdef WITHOUT_EPOCH
#define GUARDS_EPOCH(host) NEVER(host)
#else
#define GUARDS_EPOCH(host) 1
#endif

/* One datagram of a socket whose owner is known, or is nobody's. */
NOINLINE int datagram(struct __sk_buff *skb, const struct host_config *host, const struct owner *owner,
                      const struct packet *packet, __u8 is_out)
{
    struct datagram_key key = {.netns = netns_cookie(skb), .proto = packet->proto,
                               .remote = is_out ? packet->to : packet->from,
                               .local_port = is_out ? packet->from_port : packet->to_port,
                               .remote_port = is_out ? packet->to_port : packet->from_port};
    __u64 now = coarse_clock_ns(), epoch = epoch_now();
    struct datagram *flow = flow_of(&key);
    if (!flow) {
        COUNT(host->index, out_of_memory);
        return host->mode != MODE_ENFORCE;
    }
    const union address *local = is_out ? &packet->from : &packet->to;
    int is_new = is_over(flow, now);
    if (!is_new && !same_identity(&flow->owner, owner) && GUARDS_PORT_OWNER(host)) {
        is_new = 1; /* the port's next user; or a server that gave up root */
#ifndef WITHOUT_USER_CHANGE
        if (flow->dir == DIR_IN) {
            flow->owner = *owner;
            flow->epoch = 0;
            is_new = 0;
        }
#endif
    }
    if (is_new)
        begin(host, &key, flow, owner, local, is_out ? DIR_OUT : DIR_IN);
    int passes = flow->passes;
    if (is_new || (flow->epoch != epoch && GUARDS_EPOCH(host))) {
        struct question asked = {.remote = key.remote, .proto = key.proto, .dir = flow->dir,
                                 .port = flow->dir == DIR_OUT ? key.remote_port : key.local_port,
                                 .owner = owner_class(host, owner->exe_id, owner->uid)};
        int is_own = meet(host, &asked);
        if (key.proto == ICMP || key.proto == ICMP6)
            asked.peer_owner = OWNER_KERNEL;
        else if (key.proto == UDP && is_own)
            asked.peer_owner = local_peer_owner(skb, host, &asked, local, key.local_port, key.remote_port,
                                                &flow->peer_exe_id, &flow->peer_uid);
        passes = settle_datagram(host, &key, flow, &asked, epoch, is_new);
    }
    count_datagram(flow, is_out, packet->payload, now);
    return passes;
}

/* Sending is a system call of the sender's, so that `current` is who sends: also over a socket that another made. */
INLINE int datagram_out(struct __sk_buff *skb, struct bpf_sock *sk)
{
    struct packet packet;
#ifdef WITHOUT_RAW
    if (sk->type == TYPE_RAW)
        return PASS;
#endif
    struct host_config *host = host_of(netns_cookie(skb));
    if (!host)
        return PASS;
    if (parse(skb, 0, &packet))
        return host->mode != MODE_ENFORCE;
    if (skipped(host, &packet.to))
        return PASS;
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag) {
        COUNT(host->index, out_of_memory);
        return host->mode != MODE_ENFORCE;
    }
    if (!is_me(&tag->owner))
        take(tag);
    return datagram(skb, host, &tag->owner, &packet, 1);
}

static const struct owner nobody = {.uid = ANY_UID};

/* The kernel gives a ping socket nothing but the answers to what it sent. */
NOINLINE int count_answer(struct __sk_buff *skb, const struct packet *packet)
{
    struct datagram_key key = {.netns = netns_cookie(skb), .proto = packet->proto, .remote = packet->from,
                               .local_port = packet->from_port};
    struct datagram *flow = map_lookup(&datagrams, &key);
    if (flow)
        count_datagram(flow, 0, packet->payload, coarse_clock_ns());
    return PASS;
}

INLINE int datagram_in(struct __sk_buff *skb, struct bpf_sock *sk)
{
    struct packet packet;
    if (sk->type == TYPE_RAW) /* it listens in; what it sends is judged */
        return PASS;
    struct host_config *host = host_of(netns_cookie(skb));
    if (!host)
        return PASS;
    if (parse(skb, 0, &packet))
        return host->mode != MODE_ENFORCE;
    if (skipped(host, &packet.from))
        return PASS;
#ifdef WITHOUT_UDP_IN
    return PASS;
#endif
    if (packet.proto == ICMP || packet.proto == ICMP6)
        return count_answer(skb, &packet);
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, 0);
    if (!tag)
        COUNT(host->index, untagged);
    return datagram(skb, host, tag ? &tag->owner : &nobody, &packet, 0);
}
#endif
