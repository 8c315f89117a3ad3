/* At the interface: what no socket of the host's control group sees. Echo requests are answered by the kernel itself;
 * packet sockets send around every hook of the control group. */
#ifndef INTERFACE_H
#define INTERFACE_H
#include "datagram.h"

enum { ECHO_REQUEST = 8, ECHO_REQUEST6 = 128, ETHERNET_BYTES = 14, TC_PASS = 0, TC_DROP = 2, TC_NEXT = -1 };

/* Most packets are not ICMP, and leave after one look. */
INLINE int is_icmp(struct __sk_buff *skb)
{
    __u32 at = ETHERNET_BYTES + (skb->protocol == big16(IPV4) ? 9 : 6);
    __u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end, proto = 0;
    if (skb->protocol != big16(IPV4) && skb->protocol != big16(IPV6))
        return 0;
    if (data + ETHERNET_BYTES + 10 <= end)
        proto = skb->protocol == big16(IPV4) ? data[ETHERNET_BYTES + 9] : data[ETHERNET_BYTES + 6];
    else if (load_bytes(skb, at, &proto, 1))
        return 0;
    return proto == ICMP || proto == ICMP6 || proto == HOP_BY_HOP || proto == DESTINATION || proto == ROUTING ||
           proto == FRAGMENT;
}

/* netns_cookie() asks the packet's socket, and would say the first namespace's where a packet has none yet. */
INLINE __u64 netns_of_device(struct __sk_buff *skb)
{
    struct sk_buff *packet = bpf_cast_to_kern_ctx(skb);
    return packet->dev->nd_net.net->net_cookie;
}

NOINLINE int echo_request(struct __sk_buff *skb)
{
    struct packet packet;
    __u64 netns = netns_of_device(skb);
    struct host_config *host = host_of(netns);
    if (!host || parse(skb, ETHERNET_BYTES, &packet) || packet.is_part ||
        !((packet.proto == ICMP && packet.icmp_type == ECHO_REQUEST) ||
          (packet.proto == ICMP6 && packet.icmp_type == ECHO_REQUEST6)) ||
        skipped(host, &packet.from))
        return PASS;
    struct datagram_key key = {.netns = netns, .proto = packet.proto, .remote = packet.from,
                               .remote_port = packet.from_port};
    struct datagram *flow = flow_of(&key);
    if (!flow)
        return host->mode != MODE_ENFORCE;
    __u64 now = coarse_clock_ns(), epoch = epoch_now();
    int is_new = is_over(flow, now), passes = flow->passes;
    struct owner kernel = {.uid = ANY_UID};
    if (is_new)
        begin(host, &key, flow, &kernel, &packet.to, DIR_IN);
    if (is_new || flow->epoch != epoch) {
        struct question asked = {.remote = key.remote, .proto = key.proto, .dir = DIR_IN, .owner = OWNER_KERNEL};
        struct datagram_key back = {.netns = key.netns, .proto = key.proto, .remote = packet.to,
                                    .local_port = packet.from_port};
        struct datagram *asking = meet(host, &asked) ? map_lookup(&datagrams, &back) : NULL;
        if (asking) { /* of this very host: it is known who asks */
            flow->peer_exe_id = asking->owner.exe_id;
            flow->peer_uid = asking->owner.uid;
            asked.peer_owner = owner_class(host, flow->peer_exe_id, flow->peer_uid);
        }
        passes = settle_datagram(host, &key, flow, &asked, epoch, is_new);
    }
    count_datagram(flow, 0, packet.payload, now);
    return passes;
}

SEC("tc") int interface_in(struct __sk_buff *skb)
{
    if (!is_icmp(skb))
        return TC_NEXT;
    return echo_request(skb) ? TC_NEXT : TC_DROP;
}

SEC("tc") int interface_out(struct __sk_buff *skb)
{
    struct bpf_sock *sk = skb->sk;
    if (!sk || sk->family != FAMILY_PACKET)
        return TC_NEXT;
    struct host_config *host = host_of(netns_of_device(skb));
    if (!host || !(host->flags & REFUSES_RAW))
        return TC_NEXT;
    COUNT(host->index, packet_sockets);
    return host->mode == MODE_ENFORCE ? TC_DROP : TC_NEXT;
}
#endif
