/* Who acts: the executable as it was when it was executed, the script behind an interpreter, the user. */
#ifndef IDENTITY_H
#define IDENTITY_H
#include "kernel.h"
#include "maps.h"

enum { FNV32 = 0x811c9dc5, FNV32_PRIME = 0x01000193, DEPTH = 16, NAME_BYTES = 64, CTIME_NS = 0x7fffffff };

/* FNV-1a over the names of a path, leaf first, each with its NUL. A hash salted by the kernel would not do: user space
 * computes none of it, but two hard links must differ whoever looks. */
NOINLINE __u32 path_hash(struct dentry *dentry)
{
    __u32 hash = FNV32;
    for (int depth = 0; depth < DEPTH; depth++) {
        struct dentry *parent = NULL;
        const unsigned char *text = NULL;
        char name[NAME_BYTES] = {};
        read_kernel(&parent, sizeof parent, __builtin_preserve_access_index(&dentry->d_parent));
        if (parent == dentry || !parent)
            break;
        read_kernel(&text, sizeof text, __builtin_preserve_access_index(&dentry->d_name.name));
        read_kernel_text(name, sizeof name, text);
        for (int i = 0; i < NAME_BYTES; i++) {
            hash = (hash ^ (__u8)name[i]) * FNV32_PRIME;
            if (!name[i])
                break;
        }
        dentry = parent;
    }
    return hash;
}

INLINE void key_of_file(struct file *file, struct exe_key *key)
{
    struct inode *inode = file->f_inode;
    __builtin_memset(key, 0, sizeof *key);
    key->inode = inode->i_ino;
#ifndef WITHOUT_CTIME
    /* The top bit of the nanoseconds says that somebody asked (I_CTIME_QUERIED). */
    key->changed = (__u64)inode->i_ctime_sec * 1000000000ULL + (inode->i_ctime_nsec & CTIME_NS);
#endif
    key->device = inode->i_sb->s_dev;
#ifndef WITHOUT_PATH
    key->path = path_hash(file->f_path.dentry);
#endif
}

/* The exe_id of a file; `is_new` where the kernel had to make one up, for user space to replace. */
INLINE __u32 name_of(const struct exe_key *key, __u32 index, __u8 *is_new)
{
    __u32 *known = map_lookup(&exes, key), zero = 0;
    *is_new = 0;
    if (known)
        return *known;
    __u32 *next = map_lookup(&serial, &zero);
    if (!next)
        return 0;
    __u32 made = PROVISIONAL | __sync_fetch_and_add(next, 1);
    COUNT(index, unnamed);
    if (map_update(&exes, key, &made, BPF_NOEXIST)) {
        known = map_lookup(&exes, key); /* another CPU was first, or there is no room */
        return known ? *known : 0;
    }
    *is_new = 1;
    return made;
}

/* What user space has called a provisional exe_id since. */
INLINE __u32 settled(__u32 exe_id)
{
    if (exe_id & PROVISIONAL) {
        __u32 *name = map_lookup(&named, &exe_id);
        if (name)
            return *name;
    }
    return exe_id;
}

INLINE struct task_tag *tag_of_task(struct task_struct *task)
{
    struct task_tag *tag = task_storage(&tasks, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (tag && !tag->exe.inode) { /* older than these programs, and not adopted */
        struct mm_struct *mm = task->mm;
        struct file *file = mm ? mm->exe_file : NULL;
        __u8 is_new;
        if (!file)
            return tag;
        key_of_file(file, &tag->exe);
        tag->exe_id = name_of(&tag->exe, 0, &is_new);
    }
    return tag;
}

/* The owner class of {exe_id, uid} under a host's policy: the most specific entry there is. */
NOINLINE __u16 owner_class(const struct host_config *host, __u32 exe_id, __u32 uid)
{
    __u32 slot = host->slot;
    struct owner_key key = {settled(exe_id), uid};
    void *table = map_lookup(&owners, &slot);
    __u16 *found = NULL;
    if (!table)
        return host->owner_other;
    if (key.exe_id && !(key.exe_id & PROVISIONAL)) {
        found = map_lookup(table, &key);
        if (!found) {
            key.uid = ANY_UID;
            found = map_lookup(table, &key);
        }
    }
    if (!found) {
        key.exe_id = ANY_EXE;
        key.uid = uid;
        found = map_lookup(table, &key);
    }
    return found ? *found : host->owner_other;
}

/* Take down who runs now. Only where `current` is who acts: in system calls, never in a softirq. */
INLINE void whoami(struct owner *owner)
{
    struct task_struct *task = current_task();
    struct task_tag *tag = tag_of_task(task);
    owner->exe_id = tag ? tag->exe_id : 0;
    owner->uid = (__u32)current_uid_gid();
    owner->tgid = current_pid_tgid() >> 32;
    owner->exec_id = (__u32)task->self_exec_id;
    owner->cgroup = current_cgroup();
}

/* Make a socket that of who runs now. */
INLINE void take(struct sock_tag *tag)
{
    whoami(&tag->owner);
    tag->class_epoch = 0;
}

/* The class of a socket's owner, looked up once for each switch of its host. */
INLINE __u16 class_of(const struct host_config *host, struct sock_tag *tag)
{
    if (tag->class_epoch == host->epoch)
        return tag->class;
    __u16 class = owner_class(host, tag->owner.exe_id, tag->owner.uid);
    if (!(tag->owner.exe_id & PROVISIONAL)) { /* one that gets its name between switches has to be looked up again */
        tag->class = class;
        tag->class_epoch = host->epoch;
    }
    return class;
}

/* The same, of a new socket of who runs now: the task remembers. */
INLINE __u16 my_class(const struct host_config *host, struct sock_tag *tag)
{
    struct task_tag *task = task_storage(&tasks, current_task(), NULL, 0);
    if (task && task->epoch == host->epoch && task->uid == tag->owner.uid && task->exe_id == tag->owner.exe_id) {
        tag->class = task->owner;
        tag->class_epoch = host->epoch;
        return tag->class;
    }
    __u16 class = class_of(host, tag);
    if (task && task->exe_id == tag->owner.exe_id && tag->class_epoch == host->epoch) {
        task->owner = class;
        task->uid = tag->owner.uid;
        task->epoch = host->epoch;
    }
    return class;
}

INLINE int is_me(const struct owner *owner)
{
    return owner->tgid == (__u32)(current_pid_tgid() >> 32) && owner->exec_id == (__u32)current_task()->self_exec_id &&
           owner->uid == (__u32)current_uid_gid();
}

INLINE int same_identity(const struct owner *one, const struct owner *other)
{
    return one->exe_id == other->exe_id && one->uid == other->uid;
}
#endif
