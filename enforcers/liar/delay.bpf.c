/* A planted delay: whoever sends the packet that is asked for waits, busily, for so many nanoseconds.
 *
 * netem may be missing from a kernel, and its queue hands packets on by a timer; a wait in the sender's own context
 * costs CPU like an enforcer does and ends to the microsecond. What was really waited is counted here. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define big_endian_16(x) __builtin_bswap16(x)

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*const clock_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*const load_bytes)(const void *skb, __u32 at, void *to, __u32 size) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const loop)(__u32 most, void *step, void *context, __u64 flags) = (void *)BPF_FUNC_loop;

enum { SYN = 0, REQUEST = 1 }; /* one wait a new connection, or one a segment with a payload pushed */
enum { BUCKETS = 16384, BUCKET_NS = 100, STEPS = 1 << 20 }; /* a step takes some 20 ns */

struct plan {
    __u64 wait_ns;
    __u64 ramp_ns; /* added to the wait for every second since `since_ns`: a machine that becomes slower */
    __u64 since_ns;
    __u32 port;    /* TCP destination port */
    __u32 what;
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct plan);
} plans SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, BUCKETS);
    __type(key, __u32);
    __type(value, __u64);
} waited SEC(".maps"); /* how often, by tenths of a microsecond; the last bucket is "or more" */

static long step(__u32 index, void *context)
{
    (void)index;
    return clock_ns() >= *(__u64 *)context;
}

static int asked_for(struct __sk_buff *skb, const struct plan *plan)
{
    struct iphdr ip;
    struct tcphdr tcp;
    if (skb->protocol != big_endian_16(ETH_P_IP) || load_bytes(skb, ETH_HLEN, &ip, sizeof ip) ||
        ip.protocol != IPPROTO_TCP || load_bytes(skb, ETH_HLEN + ip.ihl * 4, &tcp, sizeof tcp) ||
        tcp.dest != big_endian_16((__u16)plan->port))
        return 0;
    return plan->what == SYN ? tcp.syn && !tcp.ack : tcp.psh;
}

SEC("tc")
int delay(struct __sk_buff *skb)
{
    __u32 key = 0;
    struct plan *plan = map_lookup(&plans, &key);
    if (!plan || !plan->port || !asked_for(skb, plan))
        return 0;
    __u64 begin = clock_ns();
    __u64 end = begin + plan->wait_ns + (begin - plan->since_ns) / 1000 * plan->ramp_ns / 1000000;
    loop(STEPS, step, &end, 0);
    key = (__u32)((clock_ns() - begin) / BUCKET_NS);
    if (key >= BUCKETS)
        key = BUCKETS - 1;
    __u64 *count = map_lookup(&waited, &key);
    if (count)
        __sync_fetch_and_add(count, 1);
    return 0;
}

char _license[] SEC("license") = "GPL";
