#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "loop.h"
#include "util.h"

enum { LARGEST = 4 << 20, BACKLOG = 256 };

/* One connection and the command that it is. It lasts until both the connection and the command are done with. */
struct job {
    struct watch conn;
    struct watch status; /* the child's pipe, until it executes or fails */
    int stdio[3];
    uint8_t head[4];
    size_t head_len, want, got;
    char *payload;
    pid_t pid;   /* 0: not started, or reaped */
    bool running; /* it executed */
    bool detach;
    int exit_status; /* of a child reaped before its pipe was read; -1: not yet */
    struct job *next;
};
static struct job *jobs;

static void job_release(struct job *j)
{
    for (struct job **at = &jobs; *at; at = &(*at)->next) {
        if (*at == j) {
            *at = j->next;
            break;
        }
    }
    for (int i = 0; i < 3; i++)
        if (j->stdio[i] >= 0)
            close(j->stdio[i]);
    loop_close(&j->conn);
    loop_close(&j->status);
    free(j->payload);
    loop_free(j);
}

static void job_say(struct job *j, const char *text)
{
    if (j->conn.fd >= 0)
        send(j->conn.fd, text, strlen(text), MSG_NOSIGNAL); /* short: there is room; a client that left is seen later */
}

static void job_refuse(struct job *j, int error, const char *what)
{
    char line[256];
    snprintf(line, sizeof line, "error %d %s: %s\n", error, what, strerror(error));
    job_say(j, line);
    job_release(j);
}

static void job_ended(struct job *j, int wait_status)
{
    char line[32];
    int status = WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
    snprintf(line, sizeof line, "exit %d\n", status);
    job_say(j, line);
    job_release(j);
}

/* The pipe ends when the command executes, and carries the reason when it does not. */
static void status_ready(struct watch *w, uint32_t events)
{
    (void)events;
    struct job *j = container_of(w, struct job, status);
    struct failure why;
    ssize_t n = read(w->fd, &why, sizeof why);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    loop_close(w);
    if (n == (ssize_t)sizeof why) {
        j->pid = 0;
        job_refuse(j, why.error, why.what);
        return;
    }
    char line[32];
    snprintf(line, sizeof line, "pid %d\n", j->pid);
    job_say(j, line);
    j->running = true;
    if (j->exit_status >= 0)
        job_ended(j, j->exit_status);
}

static void job_start(struct job *j)
{
    struct command command;
    struct failure why;
    const char *wrong = j->stdio[2] < 0 ? "three descriptors must come with the request"
                                        : command_parse(&command, j->payload, j->want);
    if (wrong) {
        if (j->stdio[2] >= 0)
            command_free(&command);
        job_refuse(j, EINVAL, wrong);
        return;
    }
    j->detach = command.detach;
    j->pid = command_start(&command, j->stdio, &j->status.fd, &why);
    command_free(&command);
    if (j->pid < 0) {
        j->pid = 0;
        job_refuse(j, why.error, why.what);
        return;
    }
    for (int i = 0; i < 3; i++) {
        close(j->stdio[i]); /* or the reader of a pipe would wait for us */
        j->stdio[i] = -1;
    }
    loop_add(&j->status, EPOLLIN);
}

static void take_descriptors(struct job *j, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        int fds[8];
        memcpy(fds, CMSG_DATA(c), (n < 8 ? n : 8) * sizeof(int));
        for (size_t i = 0; i < n && i < 8; i++) {
            if (n == 3 && j->stdio[i] < 0)
                j->stdio[i] = fds[i];
            else
                close(fds[i]);
        }
    }
}

/* Receive up to n bytes, and descriptors that come with them. Returns what recvmsg does. */
static ssize_t receive(struct job *j, void *into, size_t n)
{
    char control[CMSG_SPACE(8 * sizeof(int))];
    struct iovec iov = {into, n};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(j->conn.fd, &msg, MSG_CMSG_CLOEXEC);
    if (got > 0)
        take_descriptors(j, &msg);
    return got;
}

static void conn_closed(struct job *j)
{
    if (!j->pid) {
        job_release(j);
        return;
    }
    loop_close(&j->conn);
    if (j->detach || j->exit_status >= 0)
        return;
    kill(-j->pid, SIGKILL);
    kill(j->pid, SIGKILL); /* it may not have its group yet */
}

static void conn_ready(struct watch *w, uint32_t events)
{
    (void)events;
    struct job *j = container_of(w, struct job, conn);
    char surplus[64];
    bool in_head = j->head_len < sizeof j->head, in_body = !in_head && j->got < j->want;
    ssize_t n = in_head   ? receive(j, j->head + j->head_len, sizeof j->head - j->head_len)
                : in_body ? receive(j, j->payload + j->got, j->want - j->got)
                          : receive(j, surplus, sizeof surplus);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        conn_closed(j);
        return;
    }
    if (in_head) {
        j->head_len += (size_t)n;
        if (j->head_len < sizeof j->head)
            return;
        j->want = (size_t)j->head[0] | (size_t)j->head[1] << 8 | (size_t)j->head[2] << 16 | (size_t)j->head[3] << 24;
        if (!j->want || j->want > LARGEST)
            job_refuse(j, E2BIG, "request");
        else
            j->payload = need(j->want);
    } else if (in_body) {
        j->got += (size_t)n;
        if (j->got == j->want)
            job_start(j);
    }
}

static void accept_ready(struct watch *w, uint32_t events)
{
    (void)events;
    struct ucred peer;
    socklen_t len = sizeof peer;
    int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) || peer.uid != geteuid()) {
        close(fd);
        return;
    }
    struct job *j = need_zero(sizeof *j);
    j->conn = (struct watch){conn_ready, fd};
    j->status = (struct watch){status_ready, -1};
    j->stdio[0] = j->stdio[1] = j->stdio[2] = -1;
    j->exit_status = -1;
    j->next = jobs;
    jobs = j;
    if (loop_add(&j->conn, EPOLLIN))
        job_release(j);
}

/* Reap all that has ended: commands, and whatever was orphaned in the host. */
static void child_ready(struct watch *w, uint32_t events)
{
    (void)events;
    struct signalfd_siginfo info[8];
    if (read(w->fd, info, sizeof info) < 0)
        return;
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        struct job *j = jobs;
        while (j && j->pid != pid)
            j = j->next;
        if (!j)
            continue;
        j->exit_status = status;
        if (j->running) {
            j->pid = 0;
            job_ended(j, status);
        }
    }
}

int init_listen(const char *path)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof at.sun_path)
        die("--socket %s: the path is longer than %zu bytes", path, sizeof at.sun_path - 1);
    memcpy(at.sun_path, path, strlen(path) + 1);
    unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    mode_t old = umask(0177);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, BACKLOG))
        die("--socket %s: %s", path, strerror(errno));
    umask(old);
    return fd;
}

void init_end_with_parent(int alive)
{
    struct pollfd parent = {.fd = alive};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (poll(&parent, 1, 0) > 0) /* it died before the line above */
        exit(1);
    setsid();
}

static struct watch *watched;

void init_watch(struct watch *more)
{
    watched = more;
}

void init_serve(int listener, int ready, const void *word, size_t n)
{
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);
    static struct watch accepts, reaps;
    accepts = (struct watch){accept_ready, listener};
    reaps = (struct watch){child_ready, signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK)};
    loop_init();
    if (loop_add(&accepts, EPOLLIN) || loop_add(&reaps, EPOLLIN) || (watched && loop_add(watched, EPOLLIN)))
        die("epoll: %s", strerror(errno));
    if (write(ready, word, n) != (ssize_t)n)
        exit(1);
    close(ready);
    for (;;)
        loop_pass(false);
}

static int hold(const char *hostname, const char *path)
{
    enum { NAMESPACES = CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC };
    int ready[2], alive[2];
    char byte;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGINT, SIG_IGN); /* a terminal's Ctrl-C is for labctl, which ends its hosts in order */
    signal(SIGPIPE, SIG_IGN);
    int listener = init_listen(path);
    if (unshare(NAMESPACES))
        die("unshare: %s; it needs root", strerror(errno));
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        die("mounts cannot be made private: %s", strerror(errno));
    if (pipe2(ready, O_CLOEXEC) || pipe2(alive, O_CLOEXEC))
        die("pipe: %s", strerror(errno));
    pid_t pid = fork();
    if (pid < 0)
        die("fork: %s", strerror(errno));
    if (pid == 0) {
        close(ready[0]);
        close(alive[1]);
        init_end_with_parent(alive[0]);
        host_enter(hostname);
        init_serve(listener, ready[1], "1", 1);
    }
    close(listener);
    close(ready[1]);
    close(alive[0]);
    if (read(ready[0], &byte, 1) == 1) {
        printf("ready %d\n", pid);
        fflush(stdout);
    }
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int init_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'}, {"hostname", required_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    const char *path = NULL, *hostname = NULL;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 's')
            path = optarg;
        else if (o == 'h')
            hostname = optarg;
        else
            path = "";
    }
    if (!path || !*path || optind != argc)
        die("init --socket PATH [--hostname NAME]");
    return hold(hostname, path);
}
