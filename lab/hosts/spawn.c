#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"
#include "util.h"

static const char *parse_option(struct command *c, char *field, size_t *envs)
{
    if (!strncmp(field, "uid=", 4))
        return parse_long(field + 4, 0, 0xfffffffe, &c->uid) ? NULL : "uid is no number";
    if (!strncmp(field, "gid=", 4))
        return parse_long(field + 4, 0, 0xfffffffe, &c->gid) ? NULL : "gid is no number";
    if (!strncmp(field, "cgroup=", 7))
        c->cgroup = field + 7;
    else if (!strncmp(field, "cwd=", 4))
        c->cwd = field + 4;
    else if (!strcmp(field, "detach=1"))
        c->detach = true;
    else if (!strncmp(field, "env=", 4) && strchr(field + 4, '='))
        c->env[(*envs)++] = field + 4;
    else
        return "a field before -- is not understood";
    return NULL;
}

const char *command_parse(struct command *c, char *payload, size_t n)
{
    *c = (struct command){.uid = -1, .gid = -1};
    if (!n || payload[n - 1])
        return "the last field does not end in NUL";
    size_t fields = 0, envs = 1, args = 0;
    for (size_t i = 0; i < n; i++)
        fields += !payload[i];
    c->env = need_zero((fields + 2) * sizeof *c->env);
    c->argv = need_zero((fields + 1) * sizeof *c->argv);
    c->env[0] = DEFAULT_PATH;
    bool in_argv = false;
    for (char *field = payload; field < payload + n; field += strlen(field) + 1) {
        const char *wrong = NULL;
        if (in_argv)
            c->argv[args++] = field;
        else if (!strcmp(field, "--"))
            in_argv = true;
        else
            wrong = parse_option(c, field, &envs);
        if (wrong)
            return wrong;
    }
    /* A group left as root's would be a surprise to whoever asked for an ordinary user. */
    if (c->gid < 0)
        c->gid = c->uid;
    return args ? NULL : "there is no command after --";
}

void command_free(struct command *c)
{
    free(c->env);
    free(c->argv);
}

static void fail(struct failure *why, int error, const char *what)
{
    why->error = error;
    snprintf(why->what, sizeof why->what, "%s", what);
}

/* The child's last steps. Returns only if one failed: what it was, errno saying why. */
static const char *become(const struct command *c, const int stdio[3])
{
    int high[3];
    setsid();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* By the kernel's own call: the library refuses its internal signals 32 and 33, which a caller may have ignored. */
    const struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } by_default = { 0 };
    for (int s = 1; s < NSIG; s++)
        syscall(SYS_rt_sigaction, s, &by_default, NULL, sizeof by_default.mask);
    /* First out of the way of 0, 1 and 2, since the client's descriptors may have come as those. */
    for (int i = 0; i < 3; i++)
        if ((high[i] = fcntl(stdio[i], F_DUPFD_CLOEXEC, 3)) < 0)
            return "standard input, output or error";
    for (int i = 0; i < 3; i++)
        if (dup2(high[i], i) < 0)
            return "standard input, output or error";
    if (c->cwd && chdir(c->cwd))
        return "cwd";
    if (c->gid >= 0 && (drop_groups() || setresgid((gid_t)c->gid, (gid_t)c->gid, (gid_t)c->gid)))
        return "gid";
    if (c->uid >= 0 && setresuid((uid_t)c->uid, (uid_t)c->uid, (uid_t)c->uid))
        return "uid";
    /* execvpe looks along the PATH of the calling environment, so that must be the command's own. */
    clearenv();
    for (char **e = c->env; *e; e++)
        putenv(*e);
    execvpe(c->argv[0], c->argv, environ);
    return c->argv[0];
}

/* fork, and go there before anything else. A container's filter of system calls knows no clone3 (ENOSYS). */
static pid_t fork_and_move(int cgroup_fd)
{
    pid_t pid = fork();
    if (pid)
        return pid;
    int procs = openat(cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
    if (procs < 0 || write(procs, "0", 1) != 1)
        _exit(126);
    close(procs);
    return 0;
}

/* fork, straight into a cgroup: moving a process afterwards takes a lock that stalls every fork of the machine. */
static pid_t fork_into(int cgroup_fd)
{
    if (cgroup_fd < 0)
        return fork();
    struct clone_args args = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)cgroup_fd};
    pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    return pid < 0 && errno == ENOSYS ? fork_and_move(cgroup_fd) : pid;
}

pid_t command_start(const struct command *c, const int stdio[3], int *status, struct failure *why)
{
    int ends[2], cgroup_fd = -1;
    if (pipe2(ends, O_CLOEXEC)) {
        fail(why, errno, "pipe");
        return -1;
    }
    if (c->cgroup && (cgroup_fd = open(c->cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) {
        fail(why, errno, c->cgroup);
        goto failed;
    }
    pid_t pid = fork_into(cgroup_fd);
    if (pid == 0) {
        struct failure mine;
        const char *what = become(c, stdio);
        fail(&mine, errno, what);
        if (write(ends[1], &mine, sizeof mine) < 0)
            _exit(126);
        _exit(127);
    }
    if (pid < 0) {
        fail(why, errno, c->cgroup ? c->cgroup : "fork");
        goto failed;
    }
    close(ends[1]);
    if (cgroup_fd >= 0)
        close(cgroup_fd);
    *status = ends[0];
    return pid;
failed:
    close(ends[0]);
    close(ends[1]);
    if (cgroup_fd >= 0)
        close(cgroup_fd);
    return -1;
}
