#define _GNU_SOURCE
#include "serve.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "http.h"

enum { MAX_FIELDS = 8, MOST_CAPTURED = 256, OUT_LIMIT = 64 << 20, SYNC_PASSES = 2, FILES = 65536, MOST_WAIT_NS = 1000000000 };

struct identity me;

static struct watch control;
static struct buffer out, in;
static bool out_blocked;
static uint64_t lost;
static cpu_set_t all_cpus;

/* --- what we say --- */

static void say_line(const char *format, va_list args)
{
    char line[1024];
    int n = vsnprintf(line, sizeof line, format, args);
    if (n < 0)
        return;
    if ((size_t)n >= sizeof line) { /* cut, but still a line */
        n = sizeof line - 1;
        line[n - 1] = '\n';
    }
    say_raw(line, (size_t)n);
}

void say_event(const char *format, ...)
{
    if (out.len > OUT_LIMIT) {
        lost++;
        return;
    }
    va_list args;
    va_start(args, format);
    say_line(format, args);
    va_end(args);
}

void say_answer(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say_line(format, args);
    va_end(args);
}

void say_raw(const void *bytes, size_t n)
{
    buffer_add(&out, bytes, n);
}

static void write_out(void)
{
    while (out.len) {
        ssize_t n = send(control.fd, buffer_head(&out), out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            exit(0); /* the controller is gone, and we with it */
        if (n < 0)
            return;
        buffer_take(&out, (size_t)n);
    }
}

static void flush_out(void)
{
    write_out();
    if (lost && !out.len) {
        say_answer("lost\t%lu\n", lost);
        lost = 0;
        write_out();
    }
    bool blocked = out.len > 0;
    if (blocked != out_blocked)
        loop_change(&control, blocked ? EPOLLIN | EPOLLOUT : EPOLLIN);
    out_blocked = blocked;
}

/* --- what we are told --- */

static void do_listen(const char *id, char **args, int n)
{
    bool tcp = n == 2 && !strcmp(args[0], "tcp");
    if (n != 2 || (!tcp && strcmp(args[0], "udp"))) {
        say_answer("=\t%s\terr\tlisten: write tcp or udp and ports\n", id);
        return;
    }
    int done = 0;
    for (char *text = strtok(args[1], ","); text; text = strtok(NULL, ",")) {
        long port;
        int error = parse_long(text, 1, 65535, &port) ? 0 : EINVAL;
        for (int family = 4; !error && family <= 6; family += 2)
            error = tcp ? tcp_listen(family, (int)port) : udp_listen(family, (int)port);
        if (error) {
            say_answer("=\t%s\terr\t%s\t%d\n", id, text, error);
            return;
        }
        done++;
    }
    say_answer("=\t%s\tok\t%d\n", id, done);
}

static void do_unlisten(const char *id, char **args, int n)
{
    int closed = 0;
    for (char *text = n == 2 ? strtok(args[1], ",") : NULL; text; text = strtok(NULL, ",")) {
        long port;
        if (parse_long(text, 1, 65535, &port))
            closed += !strcmp(args[0], "tcp") ? tcp_unlisten((int)port) : udp_unlisten((int)port);
    }
    say_answer("=\t%s\tok\t%d\n", id, closed);
}

static void do_pin(const char *id, char **args, int n)
{
    long cpu;
    cpu_set_t set;
    bool good = n == 1 && parse_long(args[0], -1, CPU_SETSIZE - 1, &cpu);
    if (good && cpu >= 0) {
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
    }
    if (!good || sched_setaffinity(0, sizeof set, cpu < 0 ? &all_cpus : &set))
        say_answer("=\t%s\terr\tpin\t%d\n", id, good ? errno : EINVAL);
    else
        say_answer("=\t%s\tok\n", id);
}

static void do_wait(const char *id, char **args, int n)
{
    long ns;
    if (n == 1 && parse_long(args[0], 0, MOST_WAIT_NS, &ns)) {
        tcp_echo_wait((uint64_t)ns);
        say_answer("=\t%s\tok\n", id);
    } else
        say_answer("=\t%s\terr\twait\n", id);
}

static void do_capture(const char *id, char **args, int n)
{
    char *texts[MOST_CAPTURED];
    int ports[MOST_CAPTURED], count = n == 1 ? split(args[0], ',', texts, MOST_CAPTURED) : 0, error = count ? 0 : EINVAL;
    for (int i = 0; i < count; i++) {
        long port = 0;
        if (!parse_long(texts[i], 1, 65535, &port))
            error = EINVAL;
        ports[i] = (int)port;
    }
    if (!error)
        error = capture(ports, count);
    if (error)
        say_answer("=\t%s\terr\tcapture: %s\n", id, strerror(error));
    else
        say_answer("=\t%s\tok\n", id);
}

static void do_cpu(const char *id)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    say_answer("=\t%s\tok\t%ld\n", id, t.tv_sec * 1000000000L + t.tv_nsec);
}

/* A sync is answered two passes later: whatever had arrived when it came has then been read and reported. */
static struct {
    char id[24];
    int passes;
} syncs[64];
static int sync_len;

static void do_sync(const char *id)
{
    if (sync_len == 64) {
        say_answer("=\t%s\terr\tsync: too many under way\n", id);
        return;
    }
    snprintf(syncs[sync_len].id, sizeof syncs[sync_len].id, "%s", id);
    syncs[sync_len++].passes = SYNC_PASSES;
}

static void age_syncs(void)
{
    int kept = 0;
    for (int i = 0; i < sync_len; i++) {
        if (syncs[i].passes--)
            syncs[kept++] = syncs[i];
        else
            say_answer("=\t%s\tok\n", syncs[i].id);
    }
    sync_len = kept;
}

static void obey(char *line)
{
    char *f[2 + MAX_FIELDS];
    int n = split(line, '\t', f, 2 + MAX_FIELDS) - 2;
    const char *id = f[0], *verb = n >= 0 ? f[1] : "";
    char **args = f + 2;
    bool understood = true;
    if (!strcmp(verb, "probe"))
        understood = probe_start(args, n, false);
    else if (!strcmp(verb, "reach"))
        understood = probe_start(args, n, true);
    else if (!strcmp(verb, "capture"))
        do_capture(id, args, n);
    else if (!strcmp(verb, "exploit"))
        understood = exploit_start(args, n);
    else if (!strcmp(verb, "listen"))
        do_listen(id, args, n);
    else if (!strcmp(verb, "unlisten"))
        do_unlisten(id, args, n);
    else if (!strcmp(verb, "pin"))
        do_pin(id, args, n);
    else if (!strcmp(verb, "wait"))
        do_wait(id, args, n);
    else if (!strcmp(verb, "cpu"))
        do_cpu(id);
    else if (!strcmp(verb, "sync"))
        do_sync(id);
    else if (!strcmp(verb, "crr") || !strcmp(verb, "rr") || !strcmp(verb, "http"))
        understood = loop_measure(id, verb[0], args, n);
    else if (!strcmp(verb, "calls") && (understood = n == 1 && calls_set(args[0])))
        say_answer("=\t%s\tok\n", id);
    else if (!strcmp(verb, "quit"))
        exit(0);
    else
        understood = false;
    if (!understood)
        say_answer("=\t%s\terr\tnot understood: %s\n", id, verb);
}

static void control_ready(struct watch *w, uint32_t events)
{
    static char chunk[65536];
    if (events == EPOLLOUT)
        return; /* flushed at the end of the pass */
    ssize_t n = recv(w->fd, chunk, sizeof chunk, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0)
        exit(0);
    buffer_add(&in, chunk, (size_t)n);
    char *end;
    while ((end = in.len ? memchr(buffer_head(&in), '\n', in.len) : NULL)) {
        char *line = buffer_head(&in);
        size_t length = (size_t)(end - line) + 1;
        *end = '\0';
        obey(line);
        buffer_take(&in, length);
    }
}

/* --- coming up --- */

static void raise_file_limit(void)
{
    struct rlimit limit = {FILES, FILES};
    struct rlimit now;
    if (getrlimit(RLIMIT_NOFILE, &now))
        return;
    if (now.rlim_max >= FILES || setrlimit(RLIMIT_NOFILE, &limit)) {
        now.rlim_cur = now.rlim_max;
        setrlimit(RLIMIT_NOFILE, &now);
    }
}

static void become(uid_t uid)
{
    if (uid == getuid())
        return;
    if (drop_groups() || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
        die("--uid %u: %s", uid, strerror(errno));
}

/* What others see in a list of processes: the name, and the command's first word as far as there is room for it. Nothing
 * that enforces may go by either. */
static void pose(char **argv, const char *as)
{
    const char *slash = strrchr(as, '/');
    prctl(PR_SET_NAME, slash ? slash + 1 : as);
    snprintf(argv[0], strlen(argv[0]) + 1, "%s", as);
}

struct options {
    const char *control, *pose;
    long uid;
    bool observe;
};

static struct options read_options(int argc, char **argv)
{
    static const struct option known[] = {
        {"control", required_argument, NULL, 'c'}, {"host", required_argument, NULL, 'h'},
        {"process", required_argument, NULL, 'p'}, {"user", required_argument, NULL, 'u'},
        {"uid", required_argument, NULL, 'n'},     {"observe-icmp", no_argument, NULL, 'i'},
        {"vulnerable", no_argument, NULL, 'v'},    {"pose", required_argument, NULL, 'a'},
        {NULL, 0, NULL, 0},
    };
    struct options got = {.uid = -1};
    bool good = true;
    for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (o) {
        case 'c': got.control = optarg; break;
        case 'h': me.host = optarg; break;
        case 'p': me.process = optarg; break;
        case 'u': me.user = optarg; break;
        case 'n': good = good && parse_long(optarg, 0, 0xfffffffe, &got.uid); break;
        case 'i': got.observe = true; break;
        case 'v': me.vulnerable = true; break;
        case 'a': got.pose = optarg; break;
        default: good = false;
        }
    }
    if (!good || !got.control || !me.host || !me.process || !me.user || got.uid < 0 || optind != argc)
        die("serve --control PATH --host H --process P --user U --uid N [--observe-icmp] [--vulnerable] [--pose PATH]");
    return got;
}

int serve_main(int argc, char **argv)
{
    struct options o = read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN); /* the kernel reaps: a loop's child reports through its pipe */
    raise_file_limit();
    sched_getaffinity(0, sizeof all_cpus, &all_cpus);
    control = (struct watch){control_ready, connect_unix("control", o.control)};
    if (o.observe)
        observe_icmp();
    become((uid_t)o.uid);
    if (o.pose)
        pose(argv, o.pose);
    loop_init();
    loop_add(&control, EPOLLIN);
    observe_icmp_start();
    say_answer("hello\t%s\t%s\t%s\t%d\n", me.host, me.process, me.user, getpid());
    for (;;) {
        flush_out();
        loop_pass(sync_len > 0);
        age_syncs();
    }
}
