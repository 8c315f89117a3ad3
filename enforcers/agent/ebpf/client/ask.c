/* `ask VERB HOST DIRECTORY COMMAND...`: what COMMAND (the agent's own, in Python) would do, in a hundredth of its time.
 *
 * For hosts of a lab whose agent runs already, and for `start` and `ready` alone: those are what every host waits for
 * when an arm is put in place. Whatever is not as expected here is left to COMMAND, which takes this process's place:
 * it knows all cases, and says what is wrong. All that is done before is repeated there without harm. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define SHARED "/run/labctl/agent-ebpf/sock"
#define PINS "/run/labctl/bpf/agent-ebpf/"
enum { SAID = 4096, HANDLES = 3, MINE = 1 << 16 };
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

static char **command;

static void leave_it(void)
{
    execv(command[0], command);
    fprintf(stderr, "ask: %s: %s\n", command[0], strerror(errno));
    exit(1);
}

static void need(int good)
{
    if (!good)
        leave_it();
}

/* --- the agent, over its socket (daemon/sockets.py) --- */

static uint64_t netns_cookie(void)
{
    uint64_t cookie = 0;
    socklen_t size = sizeof cookie;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    need(fd >= 0 && !getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size));
    close(fd);
    return cookie;
}

static int connected(void)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = SHARED};
    struct ucred peer;
    struct timeval patience = {60, 0};
    socklen_t size = sizeof peer;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(fd >= 0 && !connect(fd, (struct sockaddr *)&to, sizeof to));
    need(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) && peer.uid == geteuid());
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
}

static void send_with_handles(int fd, char *line, size_t length)
{
    int handles[HANDLES] = {open("/", O_PATH | O_CLOEXEC), open("/proc", O_RDONLY | O_CLOEXEC),
                            open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof handles)];
    } with = {.head = {CMSG_LEN(sizeof handles), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&with.head), handles, sizeof handles);
    struct iovec text = {line, length};
    struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = &with, .msg_controllen = sizeof with};
    need(sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)length);
    for (int i = 0; i < HANDLES; i++)
        close(handles[i]);
}

/* Give one command; all that must come back is "ok". What comes behind it is more than we can carry out. */
static void ask(const char *verb, const char *host, const char *directory, const char *words)
{
    char line[SAID], said[SAID];
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%lu%s\n", verb, host, directory, netns_cookie(), words);
    need(length > 0 && (size_t)length < sizeof line);
    int fd = connected();
    send_with_handles(fd, line, (size_t)length);
    size_t got = 0;
    for (ssize_t n; got < sizeof said && (n = recv(fd, said + got, sizeof said - got, 0)) != 0; got += (size_t)n)
        need(n > 0);
    close(fd);
    need(got == 3 && !memcmp(said, "ok\n", 3));
}

/* --- what is open and who runs already: the kernel walks the tasks that the reader can see --- */

static void walk(const char *path)
{
    char chunk[4096];
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    need(fd >= 0);
    while ((n = read(fd, chunk, sizeof chunk)) > 0)
        ;
    need(n == 0);
    close(fd);
}

/* --- programs at interfaces (lab/bpf/clsact.py) --- */

struct request {
    struct nlmsghdr head;
    struct tcmsg body;
    char attributes[256];
};

static struct rtattr *append(struct request *r, unsigned short kind, const void *content, size_t size)
{
    struct rtattr *at = (struct rtattr *)((char *)r + NLMSG_ALIGN(r->head.nlmsg_len));
    at->rta_type = kind;
    at->rta_len = (unsigned short)RTA_LENGTH(size);
    if (size)
        memcpy(RTA_DATA(at), content, size);
    r->head.nlmsg_len = NLMSG_ALIGN(r->head.nlmsg_len) + RTA_ALIGN(at->rta_len);
    return at;
}

static void send_request(int fd, struct request *r, int fine)
{
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char more[1024];
    } answer;
    need(send(fd, r, r->head.nlmsg_len, 0) == (ssize_t)r->head.nlmsg_len);
    need(recv(fd, &answer, sizeof answer, 0) >= (ssize_t)NLMSG_LENGTH(sizeof answer.error));
    need(answer.head.nlmsg_type == NLMSG_ERROR && (!answer.error.error || -answer.error.error == fine));
}

static struct request request(unsigned short kind, unsigned short flags, int index, const char *type)
{
    struct request r = {.head = {NLMSG_LENGTH(sizeof r.body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0},
                        .body = {.tcm_ifindex = index}};
    append(&r, TCA_KIND, type, strlen(type) + 1);
    return r;
}

static void attach(int fd, int index, uint32_t where, int program, const char *name)
{
    uint32_t number = (uint32_t)program, flags = TCA_BPF_FLAG_ACT_DIRECT;
    struct request qdisc = request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, index, "clsact");
    qdisc.body.tcm_handle = TC_H_MAKE(TC_H_CLSACT, 0);
    qdisc.body.tcm_parent = TC_H_CLSACT;
    send_request(fd, &qdisc, EEXIST);
    struct request filter = request(RTM_NEWTFILTER, NLM_F_CREATE, index, "bpf");
    filter.body.tcm_handle = 1;
    filter.body.tcm_parent = where;
    filter.body.tcm_info = MINE | htons(ETH_P_ALL);
    struct rtattr *options = append(&filter, TCA_OPTIONS, NULL, 0);
    append(&filter, TCA_BPF_FD, &number, sizeof number);
    append(&filter, TCA_BPF_NAME, name, strlen(name) + 1);
    append(&filter, TCA_BPF_FLAGS, &flags, sizeof flags);
    options->rta_len = (unsigned short)((char *)&filter + filter.head.nlmsg_len - (char *)options);
    send_request(fd, &filter, 0);
}

static int pinned(const char *path)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.pathname = (uint64_t)(uintptr_t)path;
    int fd = (int)syscall(SYS_bpf, BPF_OBJ_GET, &attributes, sizeof attributes);
    need(fd >= 0);
    return fd;
}

/* Judge at every interface but lo what no socket sees. Their names and ways, as the agent is told them. */
static void guard(char *words, size_t room)
{
    static const struct {
        const char *way, *path, *name;
        uint32_t where;
    } both[] = {{"in", PINS "prog_interface_in", "labctl-in", TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)},
                {"out", PINS "prog_interface_out", "labctl-out", TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)}};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct if_nameindex *all = if_nameindex();
    need(fd >= 0 && all);
    size_t used = 0;
    for (size_t i = 0; i < sizeof both / sizeof *both; i++) {
        int program = pinned(both[i].path);
        for (struct if_nameindex *one = all; one->if_index; one++) {
            if (!strcmp(one->if_name, "lo"))
                continue;
            attach(fd, (int)one->if_index, both[i].where, program, both[i].name);
            used += (size_t)snprintf(words + used, room - used, "\t%s %s", one->if_name, both[i].way);
            need(used < room);
        }
        close(program);
    }
    if_freenameindex(all);
    close(fd);
}

static void start(const char *host, const char *directory)
{
    char words[SAID / 2] = "";
    ask("prepare", host, directory, ""); /* more than "ok": tags of scripts to set, which is not ours to do */
    walk(PINS "iter_adopt_tasks");
    walk(PINS "iter_adopt_listeners");
    walk(PINS "iter_adopt_sockets");
    guard(words, sizeof words);
    ask("join", host, directory, words);
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fputs("usage: ask start|ready HOST DIRECTORY COMMAND...\n", stderr);
        return 2;
    }
    command = argv + 4;
    if (!strcmp(argv[1], "start"))
        start(argv[2], argv[3]);
    else if (!strcmp(argv[1], "ready"))
        ask("ready", argv[2], argv[3], "");
    else
        leave_it();
    return 0;
}
