/* What was there before the agent: tasks, listeners, connections. Run once by user space as iterators, in that order;
 * later again for listeners that were handed on. */
#ifndef ADOPT_H
#define ADOPT_H
#include "life.h"

#ifdef WITHOUT_ADOPTION
enum { ADOPTS = 0 };
#else
enum { ADOPTS = 1 };
#endif

SEC("iter/task") int adopt_tasks(struct bpf_iter__task *ctx)
{
    struct task_struct *task = ctx->task;
    if (task)
        tag_of_task(task);
    return 0;
}

INLINE struct sock *inet_sock_of(struct file *file)
{
    struct socket *socket = file ? socket_of_file(file) : NULL;
    struct sock *sk = socket ? socket->sk : NULL;
    if (!sk || (sk->__sk_common.skc_family != FAMILY_V4 && sk->__sk_common.skc_family != FAMILY_V6))
        return NULL;
    return sk;
}

INLINE void holder(struct task_struct *task, struct owner *owner)
{
    struct task_tag *tag = task_storage(&tasks, task, NULL, 0);
    owner->exe_id = tag ? tag->exe_id : 0;
    owner->uid = task->cred->uid.val;
    owner->tgid = task->tgid;
    owner->exec_id = (__u32)task->self_exec_id;
    owner->cgroup = task->cgroups->dfl_cgrp->kn->id;
}

INLINE int listens(struct sock *sk) { return sk->sk_protocol == TCP && sk->__sk_common.skc_state == STATE_LISTEN; }

/* Listeners: untagged ones get their holder; of others a second holder may be who accepts. */
SEC("iter/task_file") int adopt_listeners(struct bpf_iter__task_file *ctx)
{
    struct task_struct *task = ctx->task;
    struct sock *sk = inet_sock_of(ctx->file);
    if (!ADOPTS || !sk || !task || task->pid != task->tgid || !listens(sk))
        return 0;
    struct port_key port = {.netns = sk->__sk_common.skc_net.net->net_cookie, .port = sk->__sk_common.skc_num};
    __u32 one = 1;
    struct owner owner;
    map_update(&listening, &port, &one, BPF_ANY);
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag)
        return 0;
    holder(task, &owner);
    if (!tag->owner.tgid) {
        tag->owner = owner;
        tag->passes = 1;
        socket_cookie(sk);
    } else if (!same_identity(&tag->owner, &owner)) {
        tag->heir_exe_id = owner.exe_id;
        tag->heir_uid = owner.uid;
        tag->has_heir = 1;
    }
    return 0;
}

/* All other sockets. A connection whose own port is listened on came in; any other went out. */
SEC("iter/task_file") int adopt_sockets(struct bpf_iter__task_file *ctx)
{
    struct task_struct *task = ctx->task;
    struct sock *sk = inet_sock_of(ctx->file);
    if (!ADOPTS || !sk || !task || task->pid != task->tgid || listens(sk))
        return 0;
    struct sock_tag *tag = sk_storage(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag || tag->owner.tgid)
        return 0;
    holder(task, &tag->owner);
    tag->passes = 1;
    struct port_key port = {.netns = sk->__sk_common.skc_net.net->net_cookie, .port = sk->__sk_common.skc_num};
    tag->dir = map_lookup(&listening, &port) ? DIR_IN : DIR_OUT;
    address_of(&tag->remote, &sk->__sk_common, 1);
    tag->remote_port = big16(sk->__sk_common.skc_dport);
    tag->opened = clock_ns();
    struct host_config *host = host_of(port.netns);
    if (host)
        COUNT(host->index, adopted);
    return 0;
}

struct file_key { __u32 fd, unused; struct exe_key key; };

/* The keys of the regular files that a process has open: it is the kernel's own view that identity is compared with. */
SEC("iter/task_file") int exe_keys(struct bpf_iter__task_file *ctx)
{
    struct task_struct *task = ctx->task;
    struct file *file = ctx->file;
    struct file_key found = {.fd = ctx->fd};
    if (!task || !file || task->pid != task->tgid || (file->f_inode->i_mode & 0170000) != 0100000)
        return 0;
    key_of_file(file, &found.key);
    seq_write(ctx->meta->seq, &found, sizeof found);
    return 0;
}
#endif
