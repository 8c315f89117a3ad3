/* The kernel's helper functions that are called here, under short names. See bpf-helpers(7). */
#ifndef BPF_H
#define BPF_H
#include <linux/bpf.h>
#include <linux/types.h>
#include "kernel.h"

#define SEC(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline)) inline
#define NOINLINE static __attribute__((noinline))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define __array(name, value) typeof(value) *name[]
#define HIDDEN_FROM_COMPILER(x) asm volatile("" : "+r"(x))
#define big16(x) __builtin_bswap16(x)
#define big32(x) __builtin_bswap32(x)
#define NULL ((void *)0)

#define HELPER(result, name, id, ...) static result (*const name)(__VA_ARGS__) = (void *)BPF_FUNC_##id
HELPER(void *, map_lookup, map_lookup_elem, void *map, const void *key);
HELPER(long, map_update, map_update_elem, void *map, const void *key, const void *value, __u64 flags);
HELPER(long, map_delete, map_delete_elem, void *map, const void *key);
HELPER(__u64, clock_ns, ktime_get_ns, void);
HELPER(__u64, coarse_clock_ns, ktime_get_coarse_ns, void);
HELPER(__u64, current_pid_tgid, get_current_pid_tgid, void);
HELPER(__u64, current_uid_gid, get_current_uid_gid, void);
HELPER(__u64, current_cgroup, get_current_cgroup_id, void);
HELPER(struct task_struct *, current_task, get_current_task_btf, void);
HELPER(void *, task_storage, task_storage_get, void *map, struct task_struct *task, void *value, __u64 flags);
HELPER(void *, sk_storage, sk_storage_get, void *map, void *sk, void *value, __u64 flags);
HELPER(struct bpf_sock *, full_sock, sk_fullsock, struct bpf_sock *sk);
HELPER(__u64, netns_cookie, get_netns_cookie, void *ctx);
HELPER(__u64, socket_cookie, get_socket_cookie, void *ctx);
HELPER(long, load_bytes, skb_load_bytes, const void *skb, __u32 at, void *to, __u32 size);
HELPER(struct bpf_sock *, lookup_tcp, sk_lookup_tcp, void *ctx, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns, __u64 flags);
HELPER(struct bpf_sock *, lookup_udp, sk_lookup_udp, void *ctx, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns, __u64 flags);
HELPER(long, release, sk_release, void *sk);
HELPER(long, set_retval, set_retval, int value);
HELPER(void *, ring_reserve, ringbuf_reserve, void *ring, __u64 size, __u64 flags);
HELPER(void, ring_submit, ringbuf_submit, void *record, __u64 flags);
HELPER(__u64, ring_query, ringbuf_query, void *ring, __u64 what);
HELPER(long, read_kernel, probe_read_kernel, void *to, __u32 size, const void *from);
HELPER(long, read_kernel_text, probe_read_kernel_str, void *to, __u32 size, const void *from);
HELPER(long, read_user, probe_read_user, void *to, __u32 size, const void *from);
HELPER(struct tcp_sock *, to_tcp_sock, skc_to_tcp_sock, void *sk);
HELPER(struct socket *, socket_of_file, sock_from_file, struct file *file);
HELPER(long, repeat, loop, __u32 most, void *step, void *context, __u64 flags);
HELPER(long, seq_write, seq_write, struct seq_file *seq, const void *data, __u32 size);
HELPER(long, sock_ops_flags, sock_ops_cb_flags_set, struct bpf_sock_ops *ctx, int flags);
HELPER(long, reserve_option, reserve_hdr_opt, struct bpf_sock_ops *ctx, __u32 size, __u64 flags);
HELPER(long, store_option, store_hdr_opt, struct bpf_sock_ops *ctx, const void *from, __u32 size, __u64 flags);

extern void *bpf_cast_to_kern_ctx(void *ctx) __attribute__((section(".ksyms")));
extern int bpf_sock_destroy(struct sock_common *sk) __attribute__((section(".ksyms")));

enum { FAMILY_V4 = 2, FAMILY_V6 = 10, FAMILY_PACKET = 17, TYPE_RAW = 3 };
enum { TCP = 6, UDP = 17, ICMP = 1, ICMP6 = 58 };
enum { EACCES = 13, PASS = 1, DROP = 0 };

/* The verifier wants to see 0 or 1, not a byte that the compiler knows to be one. */
INLINE int bit(__u64 value)
{
    HIDDEN_FROM_COMPILER(value);
    if (value)
        return 1;
    return 0;
}
#endif
