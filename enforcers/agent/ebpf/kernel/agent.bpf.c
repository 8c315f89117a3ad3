/* The host agent's kernel side: one set of programs for all hosts, each host's policy under its network namespace.
 *
 * abi.h says what user space writes and reads; docs/agent-ebpf.md what each hook is for and costs. */
#include "interface.h"
#include "revoke.h"

/* Only what is no TCP is judged on its way out: connect() was, in the system call. */
SEC("cgroup_skb/ingress") int ingress(struct __sk_buff *skb)
{
    struct bpf_sock *sk = skb->sk;
    sk = sk ? full_sock(sk) : NULL;
    if (!sk)
        return PASS;
    return bit(sk->protocol == TCP ? tcp_in(skb, sk) : datagram_in(skb, sk));
}

SEC("cgroup_skb/egress") int egress(struct __sk_buff *skb)
{
    struct bpf_sock *sk = skb->sk;
    sk = sk ? full_sock(sk) : NULL;
    if (!sk)
        return PASS;
    return bit(sk->protocol == TCP && sk->type != TYPE_RAW ? tcp_out(skb, sk) : datagram_out(skb, sk));
}

char _license[] SEC("license") = "GPL";
