/* `labhost contain`: the first process of a host that somebody else has made, a container.
 *
 * It brings the interfaces into the planned order, takes the planned addresses, gateways and neighbours, gives up every
 * capability but those in `--keep` (bits, by number) for good, and serves as `labhost init` does (init.h). The plan is
 * as for `labhost hosts` (plan.h), of one host; what wires and sysctls say of the outside is not looked at. It connects
 * to the unix socket `--lifeline`, says its name there once it takes commands, and ends when the other end does. A plan
 * without a host leaves the network as it is.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <ifaddrs.h>
#include <linux/capability.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"
#include "loop.h"
#include "netlink.h"
#include "plan.h"

static struct plan plan;

/* --- interfaces --- */

/* The name of the interface that has this address; dies if there is none. */
static void device_of(const union addr *wanted, char name[IFNAMSIZ])
{
    struct ifaddrs *all;
    bool found = false;
    if (getifaddrs(&all))
        die("addresses: %s", strerror(errno));
    for (struct ifaddrs *one = all; one; one = one->ifa_next) {
        const union addr *is = (const union addr *)one->ifa_addr;
        if (!is || is->sa.sa_family != AF_INET || wanted->in.sin_addr.s_addr != is->in.sin_addr.s_addr)
            continue;
        snprintf(name, IFNAMSIZ, "%s", one->ifa_name);
        found = true;
    }
    freeifaddrs(all);
    if (!found)
        die("no interface has the address %s", addr_text(wanted));
}

static void ioctl_or_die(unsigned long request, struct ifreq *with, const char *what)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, request, with))
        die("%s: %s: %s", with->ifr_name, what, strerror(errno));
    close(fd);
}

static void set_up(const char *name, bool up)
{
    struct ifreq request = {.ifr_flags = up ? IFF_UP : 0};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    ioctl_or_die(SIOCSIFFLAGS, &request, up ? "up" : "down");
}

static void rename_to(const char *from, const char *to)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", from);
    snprintf(request.ifr_newname, IFNAMSIZ, "%s", to);
    ioctl_or_die(SIOCSIFNAME, &request, "another name");
}

static const struct address *address_on(const struct host *h, const char *device, int family)
{
    for (size_t i = 0; i < h->addresses_len; i++) {
        const struct address *a = &h->addresses[i];
        if (a->prefix >= 0 && addr_family(&a->address) == family && !strcmp(a->device, device))
            return a;
    }
    die("the plan gives %s no IPv%d address", device, family);
}

static void set_mac(const struct wire *w)
{
    struct ifreq request = {.ifr_hwaddr = {.sa_family = 1}}; /* ARPHRD_ETHER */
    snprintf(request.ifr_name, IFNAMSIZ, "%s", w->device);
    memcpy(request.ifr_hwaddr.sa_data, w->mac, sizeof w->mac);
    ioctl_or_die(SIOCSIFHWADDR, &request, "MAC");
}

/* The engine numbers interfaces as it likes. All go out of the way before the first gets its name. */
static void name_devices(const struct host *h)
{
    for (size_t i = 0; i < h->wires_len; i++) {
        char now[IFNAMSIZ], aside[IFNAMSIZ];
        device_of(&address_on(h, h->wires[i].device, 4)->address, now);
        set_up(now, false);
        snprintf(aside, sizeof aside, "aside%u", (uint8_t)i);
        rename_to(now, aside);
    }
    for (size_t i = 0; i < h->wires_len; i++) {
        char aside[IFNAMSIZ];
        snprintf(aside, sizeof aside, "aside%u", (uint8_t)i);
        rename_to(aside, h->wires[i].device);
        set_mac(&h->wires[i]);
        set_up(h->wires[i].device, true);
    }
}

/* Being down has cost the IPv6 addresses, and the routes of both families. */
static void configure(const struct host *h)
{
    struct netlink n;
    netlink_open(&n);
    name_devices(h);
    for (size_t i = 0; i < h->addresses_len; i++) {
        const struct address *a = &h->addresses[i];
        if (a->prefix >= 0)
            netlink_readdress(&n, netlink_index(&n, a->device), &a->address, a->prefix);
    }
    for (size_t i = 0; i < h->addresses_len; i++) {
        const struct address *a = &h->addresses[i];
        if (a->prefix < 0)
            netlink_default(&n, netlink_index(&n, a->device), &a->address);
    }
    for (size_t i = 0; i < h->wires_len; i++) {
        const struct wire *w = &h->wires[i];
        const struct segment *s = &plan.segments[w->segment];
        for (size_t j = 0; j < s->members_len; j++) {
            const struct member *m = &s->members[j];
            if (!memcmp(m->mac, w->mac, sizeof m->mac))
                continue;
            netlink_neighbour(&n, netlink_index(&n, w->device), &m->v4, m->mac);
            netlink_neighbour(&n, netlink_index(&n, w->device), &m->v6, m->mac);
        }
    }
    int error = netlink_sync(&n);
    if (error)
        die("%s: %s", n.what, strerror(error));
    netlink_close(&n);
}

/* --- capabilities --- */

static void keep_only(uint64_t keep)
{
    for (unsigned long c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
        if (!(keep >> c & 1) && prctl(PR_CAPBSET_READ, c, 0, 0, 0) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0))
            die("capability %lu cannot be given up: %s", c, strerror(errno));
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &head, data))
        die("capabilities: %s", strerror(errno));
    for (int i = 0; i < 2; i++) {
        uint32_t part = (uint32_t)(keep >> (32 * i)) & data[i].permitted;
        data[i] = (struct __user_cap_data_struct){.effective = part, .permitted = part};
    }
    if (syscall(SYS_capset, &head, data))
        die("capabilities: %s", strerror(errno));
}

/* --- the lifeline --- */

static void lifeline_ready(struct watch *w, uint32_t events)
{
    (void)w;
    (void)events;
    exit(0); /* nothing is ever said to us: labctl has gone */
}

int contain_main(int argc, char **argv)
{
    static const struct option known[] = {
        {"socket", required_argument, NULL, 's'}, {"lifeline", required_argument, NULL, 'l'},
        {"name", required_argument, NULL, 'n'},   {"plan", required_argument, NULL, 'p'},
        {"keep", required_argument, NULL, 'k'},   {NULL, 0, NULL, 0}};
    const char *socket_path = NULL, *lifeline = NULL, *name = NULL, *plan_path = NULL;
    uint64_t keep = 0;
    bool good = true;
    for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (o) {
        case 's': socket_path = optarg; break;
        case 'l': lifeline = optarg; break;
        case 'n': name = optarg; break;
        case 'p': plan_path = optarg; break;
        case 'k': good = good && parse_u64(optarg, &keep); break;
        default: good = false;
        }
    }
    if (!good || !socket_path || !lifeline || !name || !plan_path || optind != argc)
        die("contain --socket PATH --lifeline PATH --name NAME --plan FILE --keep CAPABILITIES");
    int fd = open(plan_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        die("%s: %s", plan_path, strerror(errno));
    plan_read(&plan, fd);
    close(fd);
    signal(SIGPIPE, SIG_IGN);
    if (plan.hosts_len == 1)
        configure(&plan.hosts[0]);
    keep_only(keep);
    int listener = init_listen(socket_path);
    static struct watch line;
    line = (struct watch){lifeline_ready, connect_unix("lifeline", lifeline)};
    init_watch(&line);
    char greeting[128];
    int n = snprintf(greeting, sizeof greeting, "%s\n", name);
    init_serve(listener, dup(line.fd), greeting, (size_t)n);
}
