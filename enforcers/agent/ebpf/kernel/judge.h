/* The verdict: deny over allow over default was resolved by the policy compiler; here it is one lookup of four classes. */
#ifndef JUDGE_H
#define JUDGE_H
#include "identity.h"

enum { RULE_SILENCE = 0xffffffff }; /* the agent missed its deadline, and the host is to be closed then */

struct question {
    union address remote;
    __u16 peer, owner, peer_owner; /* classes; peer by `meet` */
    __u16 port;              /* of the service: the target's */
    __u8 proto, dir;
};

struct answer {
    __u32 rule;
    __u8 verdict, passes, wants_claim, is_first;
};

INLINE struct host_config *host_of(__u64 cookie)
{
    struct host_config *host = map_lookup(&hosts, &cookie);
    return host && host->mode != MODE_OFF ? host : NULL;
}

INLINE int skipped(const struct host_config *host, const union address *remote)
{
    return is_loopback(remote) && !(host->flags & JUDGES_LOOPBACK);
}

NOINLINE struct peer_value *peer_of(const struct host_config *host, const union address *remote)
{
    __u32 slot = host->slot;
    void *table = map_lookup(&peers, &slot);
    struct peer_value *found = table ? map_lookup(table, remote) : NULL;
    if (found || !(host->flags & HAS_PREFIXES))
        return found;
    struct prefix_key key = {.length = 128};
    __builtin_memcpy(key.address, remote, sizeof key.address);
    table = map_lookup(&peer_prefixes, &slot);
    return table ? map_lookup(table, &key) : NULL;
}

/* Find the class of the address that is asked about; whether it is the host's own. */
INLINE int meet(const struct host_config *host, struct question *asked)
{
    struct peer_value *peer = peer_of(host, &asked->remote);
    asked->peer = peer ? peer->peer : host->peer_other;
    return peer && peer->flags & PEER_IS_SELF;
}

INLINE struct service_value service_of(const struct host_config *host, __u8 proto, __u16 port)
{
    struct service_value other = {.service = host->other_service};
    if (proto == ICMP || proto == ICMP6) {
        other.service = host->icmp_service;
        return other;
    }
    if (proto != TCP && proto != UDP)
        return other;
    __u32 slot = host->slot;
    struct service_key key = {.port = port, .proto = proto};
    void *table = map_lookup(&services, &slot);
    struct service_value *found = table ? map_lookup(table, &key) : NULL;
    if (!found && host->flags & HAS_RANGES) {
        struct range_key range = {.length = 24, .proto = proto, .port = {port >> 8, port & 0xff}};
        table = map_lookup(&service_ranges, &slot);
        found = table ? map_lookup(table, &range) : NULL;
    }
    if (found)
        return *found;
    other.service = proto == TCP ? host->tcp_other : host->udp_other;
    return other;
}

/* Whether the agent kept its deadline. Of established flows nobody asks. */
INLINE int is_silent(const struct host_config *host)
{
    __u32 index = host->index;
    __u64 *deadline = map_lookup(&beats, &index);
    return deadline && *deadline < clock_ns();
}

INLINE void settle(const struct host_config *host, __u8 allow, __u8 monitored, struct answer *answer)
{
    answer->passes = allow || monitored;
#ifndef WITHOUT_HEARTBEAT
    if (host->on_silence && is_silent(host)) {
        answer->passes = host->on_silence == SILENCE_OPENS;
        if (!answer->passes && allow) {
            allow = 0;
            answer->rule = RULE_SILENCE;
        }
    }
#endif
    answer->verdict = allow ? ALLOW : answer->passes ? WOULD_DENY : DENY;
}

NOINLINE void judge_service(const struct host_config *host, const struct question *asked, __u16 service, __u8 mode,
                            struct answer *answer)
{
    struct verdict_key key = {.peer = asked->peer, .local_owner = asked->owner,
                              .peer_owner = asked->peer_owner,
                              .service = service | (asked->dir == DIR_OUT ? DIR_BIT : 0)};
    __u32 slot = host->slot;
    void *table = map_lookup(&verdicts, &slot);
    struct verdict_value *found = table ? map_lookup(table, &key) : NULL;
    __u8 monitored = mode == AS_HOST ? host->mode == MODE_MONITOR : mode == ONLY_MONITOR;
    __u8 allow = asked->dir == DIR_OUT ? host->default_out : host->default_in;
    *answer = (struct answer){};
    if (found) {
        allow = found->allow;
        answer->rule = found->rule;
        answer->wants_claim = (found->flags & WANTS_CLAIM) != 0;
        monitored |= found->flags & MONITORED;
        if (!(found->flags & SEEN)) {
            answer->is_first = 1;
            found->flags |= SEEN;
        }
    }
    settle(host, allow, monitored, answer);
}

INLINE void judge(const struct host_config *host, const struct question *asked, struct answer *answer)
{
    struct service_value service = service_of(host, asked->proto, asked->port);
    judge_service(host, asked, service.service, service.mode, answer);
}
#endif
