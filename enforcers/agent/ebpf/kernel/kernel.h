/* The little of the kernel's own structures that is read here; offsets are those of the running kernel (CO-RE). */
#ifndef KERNEL_H
#define KERNEL_H
#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct { __u32 val; } kuid_t;
struct net { __u64 net_cookie; };
typedef struct { struct net *net; } possible_net_t;
struct net_device { possible_net_t nd_net; };
struct sk_buff { struct net_device *dev; };
struct in6_addr { union { __be32 u6_addr32[4]; } in6_u; };
typedef struct { __s64 counter; } atomic64_t;

struct sock_common {
    __be32 skc_daddr, skc_rcv_saddr;
    __be16 skc_dport;
    __u16 skc_num;
    unsigned short skc_family;
    volatile unsigned char skc_state;
    possible_net_t skc_net;
    struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
    atomic64_t skc_cookie;
    unsigned long skc_flags;
};
struct sock {
    struct sock_common __sk_common;
    __u16 sk_type, sk_protocol;
};
struct inet_sock { struct sock sk; __be16 inet_sport; };
struct inet_connection_sock { struct inet_sock icsk_inet; };
struct tcp_sock {
    struct inet_connection_sock inet_conn;
    __u64 bytes_received, bytes_sent, bytes_retrans;
    __u32 segs_in, segs_out;
};
struct socket { struct sock *sk; };

struct qstr { const unsigned char *name; };
struct super_block { __u32 s_dev; };
struct inode {
    unsigned short i_mode;
    struct super_block *i_sb;
    unsigned long i_ino;
    __s64 i_ctime_sec;
    __u32 i_ctime_nsec;
};
struct dentry { struct dentry *d_parent; struct qstr d_name; };
struct path { struct dentry *dentry; };
struct file { struct inode *f_inode; struct path f_path; const void *f_op; void *private_data; };
struct fdtable { unsigned int max_fds; struct file **fd; };
struct files_struct { struct fdtable *fdt; };

struct upid { int nr; };
struct pid { unsigned int level; struct upid numbers[1]; };
struct kernfs_node { __u64 id; };
struct cgroup { struct kernfs_node *kn; };
struct css_set { struct cgroup *dfl_cgrp; };
struct cred { kuid_t uid; };
struct nsproxy { struct net *net_ns; };
struct mm_struct { struct file *exe_file; unsigned long arg_start, arg_end; };
struct task_struct {
    int pid, tgid;
    __u64 self_exec_id;
    struct task_struct *group_leader;
    struct mm_struct *mm;
    const struct cred *cred;
    struct nsproxy *nsproxy;
    struct pid *thread_pid;
    struct files_struct *files;
    struct css_set *cgroups;
};
struct linux_binprm { struct file *file; };

struct seq_file;
struct bpf_iter_meta { struct seq_file *seq; };
struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; };
struct bpf_iter__task_file { struct bpf_iter_meta *meta; struct task_struct *task; __u32 fd; struct file *file; };
struct bpf_iter__tcp { struct bpf_iter_meta *meta; struct sock_common *sk_common; };
struct bpf_iter__bpf_map_elem { struct bpf_iter_meta *meta; void *map, *key, *value; };

#pragma clang attribute pop
#endif
