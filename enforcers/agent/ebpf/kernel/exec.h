/* Executing a program, and starting a task: where identity is made. Anything later (/proc) is too late for a process
 * that lives a millisecond, and sees a file that may have been replaced under it. */
#ifndef EXEC_H
#define EXEC_H
#include "record.h"

#define FNV64 0xcbf29ce484222325ULL
#define FNV64_PRIME 0x100000001b3ULL
enum { TEXT = 256, INHERITED_FDS = 64 };

INLINE __u64 netns_of(struct task_struct *task)
{
    struct nsproxy *proxy = task->nsproxy;
    return proxy ? proxy->net_ns->net_cookie : 0;
}

/* The names of a path within its file system, leaf first. Returns how many bytes of `to` they take. */
NOINLINE __u32 write_path(struct dentry *dentry, char *to)
{
    __u32 at = 0;
    for (int depth = 0; depth < DEPTH; depth++) {
        struct dentry *parent = NULL;
        const unsigned char *text = NULL;
        read_kernel(&parent, sizeof parent, __builtin_preserve_access_index(&dentry->d_parent));
        if (parent == dentry || !parent || at > TEXT - NAME_BYTES)
            break;
        read_kernel(&text, sizeof text, __builtin_preserve_access_index(&dentry->d_name.name));
        long size = read_kernel_text(to + at, NAME_BYTES, text);
        if (size <= 0 || size > NAME_BYTES)
            break;
        at += size;
        dentry = parent;
    }
    return at;
}

struct words {
    const char *arguments;
    __u64 hash, one, two;
    __u32 word;
};

static long next_byte(__u32 at, struct words *words)
{
    __u8 byte = words->arguments[at & (TEXT - 1)];
    if (words->word)
        words->hash = (words->hash ^ byte) * FNV64_PRIME;
    if (byte)
        return 0;
    if (words->word == 1)
        words->one = words->hash;
    if (words->word == 2)
        words->two = words->hash;
    if (words->word > 1)
        return 1;
    words->word++;
    return 0;
}

/* What script it is, by the one or two words after argv[0]: told by text, so that `-c CODE SCRIPT` is not the script. */
NOINLINE __u32 script_of(__u32 interpreter, __u32 bytes)
{
    __u32 zero = 0;
    struct exec_record *text = map_lookup(&scratch, &zero);
    if (!text)
        return 0;
    struct words words = {.arguments = text->arguments, .hash = FNV64};
    repeat(bytes, next_byte, &words, 0);
    struct script_key key = {.interpreter = interpreter, .words = 2, .arguments = words.two};
    __u32 *found = words.two ? map_lookup(&scripts, &key) : NULL;
    if (!found && words.one) {
        key.words = 1;
        key.arguments = words.one;
        found = map_lookup(&scripts, &key);
    }
    return found ? *found : 0;
}

INLINE void tell_exec(const struct host_config *host, struct task_struct *task, const struct task_tag *tag,
                      struct exec_record *text, struct file *file, __u64 netns)
{
    __u32 index = host->index;
    void *ring = map_lookup(&events, &index);
    text->path_bytes = write_path(file->f_path.dentry, text->path);
    text->kind = EXEC;
    text->size = sizeof *text;
    text->exe_id = tag->exe_id;
    text->at = clock_ns();
    text->exe = tag->exe;
    text->tgid = task->tgid;
    text->uid = (__u32)current_uid_gid();
    struct pid *pid = task->thread_pid;
    __u32 level = pid->level;
    struct upid number = {};
    read_kernel(&number, sizeof number, (void *)__builtin_preserve_access_index(&pid->numbers[0]) + level * 16);
    text->pid_in_ns = number.nr;
    text->cgroup = current_cgroup();
    text->netns = netns;
    struct exec_record *copy = ring ? ring_reserve(ring, sizeof *copy, 0) : NULL;
    if (!copy) {
        COUNT(index, events_lost);
        return;
    }
    *copy = *text;
    ring_submit(copy, 0);
}

/* Listeners that a process still holds as it executes another program (socket activation): it may be who accepts. */
INLINE void note_inherited(struct task_struct *task, const struct task_tag *tag)
{
#ifndef WITHOUT_HEIR
    struct owner_key heir = {tag->exe_id, (__u32)current_uid_gid()};
    struct fdtable *table = task->files->fdt;
    struct file **files = table->fd;
    __u32 count = table->max_fds;
    for (__u32 i = 0; i < INHERITED_FDS && i < count; i++) {
        struct file *file = NULL;
        read_kernel(&file, sizeof file, files + i);
        if (!file)
            continue;
        struct inode *inode = NULL;
        struct socket *socket = NULL;
        unsigned short mode = 0;
        read_kernel(&inode, sizeof inode, __builtin_preserve_access_index(&file->f_inode));
        read_kernel(&mode, sizeof mode, __builtin_preserve_access_index(&inode->i_mode));
        if ((mode & 0170000) != 0140000)
            continue;
        read_kernel(&socket, sizeof socket, __builtin_preserve_access_index(&file->private_data));
        if (!socket)
            continue;
        struct sock *sk = NULL;
        __u16 family = 0;
        __u8 state = 0;
        __u64 cookie = 0;
        read_kernel(&sk, sizeof sk, __builtin_preserve_access_index(&socket->sk));
        read_kernel(&family, sizeof family, __builtin_preserve_access_index(&sk->__sk_common.skc_family));
        read_kernel(&state, sizeof state, (void *)__builtin_preserve_access_index(&sk->__sk_common.skc_state));
        read_kernel(&cookie, sizeof cookie, __builtin_preserve_access_index(&sk->__sk_common.skc_cookie.counter));
        if (cookie && state == 10 && (family == FAMILY_V4 || family == FAMILY_V6))
            map_update(&inherited, &cookie, &heir, BPF_ANY);
    }
#endif
}

SEC("tp_btf/sched_process_exec") int on_exec(__u64 *ctx)
{
    struct task_struct *task = (void *)ctx[0];
    struct linux_binprm *program = (void *)ctx[2];
    struct task_tag *tag = task_storage(&tasks, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
    struct file *file = program->file;
    struct mm_struct *mm = task->mm;
    __u32 zero = 0;
    struct exec_record *text = map_lookup(&scratch, &zero);
    if (!tag || !file || !mm || !text)
        return 0;
    __u64 netns = netns_of(task);
    struct host_config *host = host_of(netns);
    __u8 is_new;
    key_of_file(file, &tag->exe);
    tag->exe_id = name_of(&tag->exe, host ? host->index : 0, &is_new);
    tag->script_of = 0;
    tag->epoch = 0; /* the class that is remembered was another program's */
    __u32 exe = settled(tag->exe_id);
    int is_interpreter = map_lookup(&interpreters, &exe) != NULL;
    text->argument_bytes = 0;
    if (is_new || is_interpreter) {
        unsigned long start = mm->arg_start, end = mm->arg_end;
        __u32 bytes = end - start < TEXT ? end - start : TEXT;
        __builtin_memset(text->arguments, 0, sizeof text->arguments);
        if (bytes && bytes <= TEXT && !read_user(text->arguments, bytes, (void *)start))
            text->argument_bytes = bytes;
    }
#ifndef WITHOUT_SCRIPTS
    if (is_interpreter) {
        __u32 script = script_of(exe, text->argument_bytes);
        if (script) {
            tag->script_of = tag->exe_id;
            tag->exe_id = script;
        } else {
            is_new = 1;
        }
    }
#endif
    if (!host)
        return 0;
    note_inherited(task, tag);
    if (is_new)
        tell_exec(host, task, tag, text, file, netns);
    return 0;
}

/* A child, or a thread, is who its parent is until it executes something. */
SEC("tp_btf/sched_process_fork") int on_fork(__u64 *ctx)
{
    struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
    struct task_tag *tag = task_storage(&tasks, parent, NULL, 0);
    if (tag)
        task_storage(&tasks, child, tag, BPF_LOCAL_STORAGE_GET_F_CREATE);
    return 0;
}
#endif
