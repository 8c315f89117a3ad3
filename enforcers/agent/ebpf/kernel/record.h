/* Telemetry: one record a flow at its end, in bulk; what cannot wait wakes the agent. Nothing is lost silently. */
#ifndef RECORD_H
#define RECORD_H
#include "judge.h"

/* Waking costs microseconds: once as the mark is passed, not for each record beyond it. */
enum { MILLISECOND = 1000000, WAKE_AT = RECORDS_BYTES / 4, MARK_BYTES = 4 * (sizeof(struct flow_record) + BPF_RINGBUF_HDR_SZ) };

INLINE __u64 how_to_wake(void *ring)
{
    __u64 waiting = ring_query(ring, BPF_RB_AVAIL_DATA);
    return waiting >= WAKE_AT && waiting < WAKE_AT + MARK_BYTES ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

static const struct totals_value no_total;

INLINE void count_total(const struct flow_record *flow, __u32 index)
{
    struct totals_key key = {.exe_id = flow->exe_id, .uid = flow->uid, .proto = flow->proto, .dir = flow->dir,
                             .port = flow->dir == DIR_OUT ? flow->remote_port : flow->local_port,
                             .verdict = flow->verdict, .rule = flow->rule, .index = index};
    __builtin_memcpy(key.remote, flow->remote, sizeof key.remote);
    struct totals_value *total = map_lookup(&totals, &key);
    if (!total) {
        map_update(&totals, &key, &no_total, BPF_NOEXIST);
        total = map_lookup(&totals, &key);
        if (!total)
            return;
    }
    __sync_fetch_and_add(&total->flows, 1);
    __sync_fetch_and_add(&total->sent, flow->sent);
    __sync_fetch_and_add(&total->received, flow->received);
    __sync_fetch_and_add(&total->packets, flow->packets_sent + flow->packets_received);
    total->last = flow->closed;
}

/* A denial is told at once; a flood of them once each millisecond. */
INLINE __u64 how_to_wake_for_denial(__u32 index)
{
    __u64 now = clock_ns(), *last = map_lookup(&woken, &index);
    if (last && now - *last < MILLISECOND)
        return BPF_RB_NO_WAKEUP;
    if (last)
        *last = now;
    return BPF_RB_FORCE_WAKEUP;
}

/* Hand a flow to user space, or to `totals` where its ring is full. */
NOINLINE void record(const struct host_config *host, const struct flow_record *flow)
{
    __u32 index = host->index;
    __u8 plain = flow->verdict == ALLOW || flow->verdict == UNJUDGED;
    void *ring = plain && host->flags & NO_RECORDS ? NULL : map_lookup(&records, &index);
    struct flow_record *copy = ring ? ring_reserve(ring, sizeof *copy, 0) : NULL;
    if (copy) {
        *copy = *flow;
        ring_submit(copy, plain ? how_to_wake(ring) : how_to_wake_for_denial(index));
    } else if (ring) {
        COUNT(index, records_lost);
    }
    if (!copy || host->flags & KEEPS_TOTALS)
        count_total(flow, index);
}

INLINE void count_verdict(const struct host_config *host, const struct answer *answer)
{
    if (answer->verdict == DENY)
        COUNT(host->index, denied);
    else if (answer->verdict == WOULD_DENY)
        COUNT(host->index, would_denied);
}

INLINE void fill_owner(struct flow_record *flow, const struct owner *owner)
{
    flow->exe_id = owner->exe_id;
    flow->uid = owner->uid;
    flow->tgid = owner->tgid;
    flow->cgroup = owner->cgroup;
}

/* A record of what the tag says; the caller adds local end and bytes. */
INLINE void fill_flow(struct flow_record *flow, const struct sock_tag *tag, __u8 proto, __u64 netns)
{
    *flow = (struct flow_record){.kind = FLOW, .size = sizeof *flow, .proto = proto, .dir = tag->dir,
                                 .verdict = tag->verdict, .opened = tag->opened, .rule = tag->rule,
                                 .remote_port = tag->remote_port, .peer_exe_id = tag->peer_exe_id,
                                 .peer_uid = tag->peer_uid, .netns = netns};
    __builtin_memcpy(flow->remote, &tag->remote, sizeof flow->remote);
    fill_owner(flow, &tag->owner);
}

/* An event that the agent wants at once: the first flow of a kind that it has not seen under this policy. */
NOINLINE void tell_first_seen(const struct host_config *host, const struct flow_record *flow)
{
    __u32 index = host->index;
    void *ring = map_lookup(&events, &index);
    struct flow_record *copy = ring ? ring_reserve(ring, sizeof *copy, 0) : NULL;
    COUNT(index, first_seen);
    if (!copy) {
        COUNT(index, events_lost);
        return;
    }
    *copy = *flow;
    copy->kind = FIRST_SEEN;
    ring_submit(copy, 0);
}
#endif
