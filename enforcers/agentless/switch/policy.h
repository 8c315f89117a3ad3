/* Who may ask whom for what: addresses to groups, ports to classes, then one verdict for each triple. */
#ifndef LABCTL_SWITCH_POLICY_H
#define LABCTL_SWITCH_POLICY_H
#include "packet.h"

INLINE __u32 group_of(__u32 slot, const struct address *a)
{
    void *exact = map_lookup(&addresses, &slot), *wide = map_lookup(&prefixes, &slot);
    __u32 *group;
    if (exact) {
        group = map_lookup(exact, a);
        if (group)
            return *group;
    }
    struct prefix key = {.length = 128, .address = *a};
    group = wide ? map_lookup(wide, &key) : 0;
    return group ? *group : 0;
}

INLINE __u32 class_of(__u32 slot, const struct packet *p, __be16 port)
{
    if (p->proto == (p->family == 4 ? ICMP : ICMP6))
        return CLASS_ICMP;
    if (p->proto != TCP && p->proto != UDP)
        return CLASS_OTHER;
    void *inner = map_lookup(&service_classes, &slot);
    __u32 zero = 0;
    struct services *all = inner ? map_lookup(inner, &zero) : 0;
    return all ? all->of[p->proto == UDP][n16(port)] : CLASS_OTHER;
}

/* What the tenant's policy of this generation says of the flow that the packet belongs to; `backwards`: it answers.
 * Bit 0: allowed; above it the rule's number, 0 for the default. */
CALLED __u64 judge(const struct tenant *tenant, __u32 generation, const struct packet *p, int backwards)
{
    __u32 slot = generation % SLOTS;
    struct verdict_key key = {
        .source = group_of(slot, backwards ? &p->target : &p->source),
        .target = group_of(slot, backwards ? &p->source : &p->target),
        .service = class_of(slot, p, backwards ? p->source_port : p->target_port),
    };
    struct verdict *found = 0;
    void *inner = map_lookup(&verdicts, &slot);
    if (inner) {
        found = map_lookup(inner, &key);
        if (!found) {
            key.service = CLASS_WIDE;
            found = map_lookup(inner, &key);
        }
    }
    if (!found)
        return (tenant->options & ALLOW) != 0;
    return (__u64)found->rule << 1 | (found->allow != 0);
}
#endif
