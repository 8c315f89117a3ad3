/* `labhost hosts`: every host of a lab, made and wired in parallel from one plan (plan.h).
 *
 * It prints `host NAME PID` for each host (PID as it sees it) and `ready` once all take commands and are wired, stays
 * as their parent and ends when the last of them has. If one cannot be made it says why on standard error, prints
 * `failed NAME` and ends, and so do all others. What a host takes on its socket is told in init.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"
#include "netlink.h"
#include "plan.h"

#define SOMEONE_ENDED UINT32_MAX

static struct plan plan;
static int ready[2], alive[2]; /* hosts write their number to `ready` */
static pid_t *pids;

static void sync_or_die(struct netlink *n)
{
    int error = netlink_sync(n);
    if (error)
        die("%s: %s", n->what, strerror(error));
}

/* --- in the host --- */

static void wire_up(const struct host *h, struct netlink *outside, struct netlink *inside)
{
    int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    for (size_t i = 0; i < h->wires_len; i++) {
        const struct wire *w = &h->wires[i];
        netlink_pair(outside, w->port, plan.segments[w->segment].index, w->device, w->mac, here);
        sync_or_die(outside);
        netlink_up(inside, netlink_index(inside, w->device));
    }
    close(here);
}

/* Everyone else in the segment. Dynamic neighbours would not do: the kernel's table of them, 1,024 entries, is one for
 * all namespaces; permanent ones do not count. */
static void know_neighbours(const struct wire *w, struct netlink *inside)
{
    const struct segment *s = &plan.segments[w->segment];
    unsigned device = netlink_index(inside, w->device);
    for (size_t i = 0; i < s->members_len; i++) {
        const struct member *m = &s->members[i];
        if (!memcmp(m->mac, w->mac, sizeof m->mac))
            continue;
        netlink_neighbour(inside, device, &m->v4, m->mac);
        netlink_neighbour(inside, device, &m->v6, m->mac);
    }
}

static void configure(const struct host *h, struct netlink *inside)
{
    for (size_t i = 0; i < h->addresses_len; i++) {
        const struct address *a = &h->addresses[i];
        unsigned device = netlink_index(inside, a->device);
        if (a->prefix < 0)
            netlink_default(inside, device, &a->address);
        else
            netlink_address(inside, device, &a->address, a->prefix);
    }
    for (size_t i = 0; i < h->wires_len; i++)
        know_neighbours(&h->wires[i], inside);
    sync_or_die(inside);
}

static void be_host(uint32_t number)
{
    const struct host *h = &plan.hosts[number];
    struct netlink outside, inside;
    close(ready[0]);
    close(alive[1]);
    init_end_with_parent(alive[0]);
    int listener = init_listen(h->socket);
    netlink_open(&outside);
    if (unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC))
        die("unshare: %s; it needs root", strerror(errno));
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        die("mounts cannot be made private: %s", strerror(errno));
    host_enter(NULL);
    for (size_t i = 0; i < plan.sysctls_len; i++)
        host_sysctl(plan.sysctls[i].key, plan.sysctls[i].value);
    for (size_t i = 0; i < h->sysctls_len; i++)
        host_sysctl(h->sysctls[i].key, h->sysctls[i].value);
    netlink_open(&inside);
    wire_up(h, &outside, &inside);
    configure(h, &inside);
    netlink_close(&outside);
    netlink_close(&inside);
    init_serve(listener, ready[1], &number, sizeof number);
}

/* --- their parent --- */

static void make_bridges(void)
{
    struct netlink n;
    netlink_open(&n);
    for (size_t i = 0; i < plan.segments_len; i++)
        if (!plan.segments[i].standing)
            netlink_bridge(&n, plan.segments[i].bridge);
    sync_or_die(&n);
    for (size_t i = 0; i < plan.segments_len; i++)
        plan.segments[i].index = netlink_index(&n, plan.segments[i].bridge);
    netlink_close(&n);
}

static void start_host(uint32_t number)
{
    struct clone_args args = {.flags = CLONE_NEWPID, .exit_signal = SIGCHLD};
    pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        be_host(number);
    if (pid < 0)
        die("host %s: fork: %s; raise the limits of processes (ulimit -u, kernel.pid_max) or take fewer hosts",
            plan.hosts[number].name, strerror(errno));
    pids[number] = pid;
}

static void fail_if_one_ended(void)
{
    pid_t pid = waitpid(-1, NULL, WNOHANG);
    if (pid <= 0)
        return;
    for (size_t i = 0; i < plan.hosts_len; i++)
        if (pids[i] == pid)
            printf("failed %s\n", plan.hosts[i].name);
    exit(1); /* the others end with us */
}

/* A few at a time: enough for every processor, too few to crowd at the kernel's locks. */
static void make_hosts(void)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    size_t started = 0, made = 0, width = (size_t)(processors < 1 ? 2 : 2 * processors);
    while (made < plan.hosts_len) {
        while (started < plan.hosts_len && started - made < width)
            start_host((uint32_t)started++);
        uint32_t number;
        ssize_t n = read(ready[0], &number, sizeof number);
        if (n < 0 && errno == EINTR)
            continue;
        if (n != (ssize_t)sizeof number)
            die("hosts: pipe: %s", strerror(errno));
        if (number == SOMEONE_ENDED)
            fail_if_one_ended();
        else
            made++;
    }
}

static void on_child(int signum)
{
    static const uint32_t number = SOMEONE_ENDED;
    int error = errno;
    (void)signum;
    if (write(ready[1], &number, sizeof number) < 0) {
        /* Nothing can be said then; the pipe is full of hosts that are ready. */
    }
    errno = error;
}

int hosts_main(int argc, char **argv)
{
    (void)argv;
    if (argc != 1)
        die("hosts takes its plan on standard input, and no arguments");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGINT, SIG_IGN); /* a terminal's Ctrl-C is for labctl, which ends its hosts in order */
    signal(SIGPIPE, SIG_IGN);
    plan_read(&plan, STDIN_FILENO);
    pids = need_zero((plan.hosts_len + 1) * sizeof *pids);
    if (pipe2(ready, O_CLOEXEC) || pipe2(alive, O_CLOEXEC))
        die("pipe: %s", strerror(errno));
    make_bridges();
    struct sigaction child = {.sa_handler = on_child, .sa_flags = SA_NOCLDSTOP};
    sigaction(SIGCHLD, &child, NULL);
    make_hosts();
    signal(SIGCHLD, SIG_DFL);
    for (size_t i = 0; i < plan.hosts_len; i++)
        printf("host %s %d\n", plan.hosts[i].name, pids[i]);
    printf("ready\n");
    fflush(stdout);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
    return 0;
}
