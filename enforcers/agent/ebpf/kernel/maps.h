/* Every map. All are pinned, and shared by all hosts of a lab: keys or outer maps tell the hosts apart. */
#ifndef MAPS_H
#define MAPS_H
#include "abi.h"
#include "bpf.h"
#include "state.h"

enum { NAMES = 65536, RECORDS_BYTES = 1 << 18 };

#define MAP(name, kind, entries, key_type, value_type, flags) \
    struct { \
        __uint(type, BPF_MAP_TYPE_##kind); \
        __uint(max_entries, entries); \
        __uint(map_flags, flags); \
        __type(key, key_type); \
        __type(value, value_type); \
    } name SEC(".maps")

/* One inner map a slot. Its entries may differ from the template's, its key, value and flags may not. */
#define TABLE(name, kind, key_type, value_type) \
    struct name##_table { \
        __uint(type, BPF_MAP_TYPE_##kind); \
        __uint(max_entries, 1); \
        __uint(map_flags, BPF_F_NO_PREALLOC); \
        __uint(key_size, sizeof(key_type)); \
        __uint(value_size, sizeof(value_type)); \
    }; \
    struct { \
        __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); \
        __uint(max_entries, SLOTS); \
        __type(key, __u32); \
        __array(values, struct name##_table); \
    } name SEC(".maps")

#define RING(name) \
    struct { \
        __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); \
        __uint(max_entries, MAX_HOSTS); \
        __type(key, __u32); \
        __array(values, struct ring); \
    } name SEC(".maps")

MAP(hosts, HASH, MAX_HOSTS, __u64, struct host_config, 0);
MAP(epoch, ARRAY, 1, __u32, __u64, 0);
TABLE(owners, HASH, struct owner_key, __u16);
TABLE(peers, HASH, struct peer_key, struct peer_value);
TABLE(peer_prefixes, LPM_TRIE, struct prefix_key, struct peer_value);
TABLE(services, HASH, struct service_key, struct service_value);
TABLE(service_ranges, LPM_TRIE, struct range_key, struct service_value);
TABLE(verdicts, HASH, struct verdict_key, struct verdict_value);

MAP(exes, HASH, NAMES, struct exe_key, __u32, BPF_F_NO_PREALLOC);
MAP(named, HASH, NAMES, __u32, __u32, BPF_F_NO_PREALLOC);
MAP(interpreters, HASH, 256, __u32, __u32, BPF_F_NO_PREALLOC);
MAP(scripts, HASH, 4096, struct script_key, __u32, BPF_F_NO_PREALLOC);
MAP(serial, ARRAY, 1, __u32, __u32, 0);
MAP(beats, ARRAY, MAX_HOSTS, __u32, __u64, 0);
MAP(woken, ARRAY, MAX_HOSTS, __u32, __u64, 0);
MAP(counters, ARRAY, MAX_HOSTS, __u32, struct counters, 0);
MAP(totals, LRU_HASH, 65536, struct totals_key, struct totals_value, 0);
MAP(datagrams, LRU_HASH, 65536, struct datagram_key, struct datagram, 0);
MAP(claimed, LRU_HASH, 16384, struct claim_key, struct claim, 0);
MAP(inherited, LRU_HASH, 4096, __u64, struct owner_key, 0);
MAP(listening, HASH, 16384, struct port_key, __u32, BPF_F_NO_PREALLOC);
MAP(scratch, PERCPU_ARRAY, 1, __u32, struct exec_record, 0);

struct ring { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, RECORDS_BYTES); };
RING(events);
RING(records);

struct {
    __uint(type, BPF_MAP_TYPE_SK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE); /* an accepted socket begins with its listener's tag */
    __type(key, int);
    __type(value, struct sock_tag);
} socks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct task_tag);
} tasks SEC(".maps");

INLINE __u64 epoch_now(void)
{
    __u32 zero = 0;
    __u64 *now = map_lookup(&epoch, &zero);
    return now ? *(volatile __u64 *)now : 0;
}

INLINE struct counters *counters_of(__u32 index) { return map_lookup(&counters, &index); }

#define COUNT(index, field) \
    do { \
        struct counters *of_host = counters_of(index); \
        if (of_host) \
            __sync_fetch_and_add(&of_host->field, 1); \
    } while (0)
#endif
