/* What every program here needs of bpf(2): sections, maps, helpers by number (include/uapi/linux/bpf.h). */
#ifndef LABCTL_SWITCH_KERNEL_H
#define LABCTL_SWITCH_KERNEL_H
#include "checks.h"
#include <linux/bpf.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) __typeof__(value) *name
#define __array(name, value) __typeof__(value) *name[]
#define INLINE static __attribute__((always_inline))
#define CALLED static __attribute__((noinline))

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*map_update)(void *map, const void *key, const void *value, __u64 flags) =
    (void *)BPF_FUNC_map_update_elem;
static long (*map_delete)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static long (*repeat)(__u32 times, void *step, void *context, __u64 flags) = (void *)BPF_FUNC_loop;
static long (*load_bytes)(const void *skb, __u32 offset, void *to, __u32 length) = (void *)BPF_FUNC_skb_load_bytes;
static long (*store_bytes)(void *skb, __u32 offset, const void *from, __u32 length, __u64 flags) =
    (void *)BPF_FUNC_skb_store_bytes;
static long (*change_tail)(void *skb, __u32 length, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*pull_data)(void *skb, __u32 length) = (void *)BPF_FUNC_skb_pull_data;
static long (*redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static __u64 (*coarse_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static long (*ring_output)(void *ring, void *data, __u64 size, __u64 flags) = (void *)BPF_FUNC_ringbuf_output;
static void *(*ring_reserve)(void *ring, __u64 size, __u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*ring_submit)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_submit;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define n16(x) ((__u16)__builtin_bswap16(x))
#define n32(x) ((__u32)__builtin_bswap32(x))
#else
#define n16(x) ((__u16)(x))
#define n32(x) ((__u32)(x))
#endif
#endif
