/* The measuring loops: connect-request-response-close, request-response, and HTTP requests on one connection. Closed loop;
 * crr also at a rate, with one exchange under way at a time.
 *
 * Each runs in a child of the service: same executable, user, cgroup and processor, but the service goes on serving.
 * The child writes the whole answer line into a pipe, which the service passes on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "serve.h"

enum { PAYLOAD = 64, SAMPLES = 200000, WAIT_S = 2, OVERTIME_MS = 20 };

struct tally {
    uint64_t n, errors;
    uint32_t *samples; /* tenths of a microsecond */
    uint32_t kept;
};

static int connect_waiting(const union addr *to)
{
    int one = 1;
    struct linger reset = {1, 0};
    struct timeval wait = {WAIT_S, 0};
    int fd = socket(to->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait); /* bounds connect too */
    if (!connect(fd, &to->sa, addr_len(to)))
        return fd;
    close(fd);
    return -1;
}

static bool exchange(int fd)
{
    static const char question[PAYLOAD] = LOOP_MAGIC;
    char answer[PAYLOAD];
    if (send(fd, question, PAYLOAD, MSG_NOSIGNAL) != PAYLOAD)
        return false;
    for (size_t got = 0; got < PAYLOAD;) {
        ssize_t n = recv(fd, answer + got, PAYLOAD - got, 0);
        if (n <= 0)
            return false;
        got += (size_t)n;
    }
    return true;
}

static void count(struct tally *t, uint64_t begin, bool good)
{
    if (!good) {
        t->errors++;
        return;
    }
    t->n++;
    if (t->kept < SAMPLES)
        t->samples[t->kept++] = (uint32_t)((now_ns() - begin + 50) / 100);
}

/* When the next exchange begins: at once, or every `gap`, whether or not the last one was in time. Who is late is timed
 * from when it should have begun. */
static uint64_t next_begin(uint64_t *due, uint64_t gap)
{
    if (!gap)
        return now_ns();
    uint64_t begin = *due;
    struct timespec until = {(time_t)(begin / 1000000000u), (long)(begin % 1000000000u)};
    while (now_ns() < begin && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        continue;
    *due += gap;
    return begin;
}

static void run_crr(const union addr *to, uint64_t end, uint64_t gap, struct tally *t)
{
    uint64_t due = now_ns();
    for (uint64_t begin; (begin = next_begin(&due, gap)) < end && now_ns() < end;) {
        int fd = connect_waiting(to);
        bool good = fd >= 0 && exchange(fd);
        if (fd >= 0)
            close(fd); /* by reset: the close belongs to what is timed */
        count(t, begin, good);
    }
}

static void run_rr(const union addr *to, uint64_t end, struct tally *t, bool (*once)(int fd))
{
    int fd = -1;
    while (now_ns() < end) {
        if (fd < 0)
            fd = connect_waiting(to);
        uint64_t begin = now_ns();
        bool good = fd >= 0 && once(fd);
        count(t, begin, good);
        if (!good && fd >= 0) {
            close(fd);
            fd = -1;
        }
    }
    if (fd >= 0)
        close(fd);
}

static void nothing(int signal_number)
{
    (void)signal_number;
}

/* A wait still under way shortly after the end is broken off, again and again since a signal can fall before it. */
static void stop_waiting_at(double seconds)
{
    struct sigaction act = {.sa_handler = nothing}; /* no SA_RESTART: the call returns EINTR */
    sigaction(SIGALRM, &act, NULL);
    long us = (long)(seconds * 1e6) + OVERTIME_MS * 1000L;
    struct itimerval timer = {{0, OVERTIME_MS * 1000L}, {us / 1000000, us % 1000000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void write_all(int fd, const char *bytes, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t wrote = write(fd, bytes + done, n - done);
        if (wrote < 0 && errno != EINTR)
            _exit(1);
        done += wrote > 0 ? (size_t)wrote : 0;
    }
}

static void measure(int pipe_fd, const char *id, char kind, const union addr *to, double seconds,
                    uint64_t gap)
{
    struct tally t = {.samples = need(SAMPLES * sizeof(uint32_t))};
    stop_waiting_at(seconds);
    struct timespec cpu0, cpu1;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu0);
    uint64_t begin = now_ns();
    uint64_t end = begin + (uint64_t)(seconds * 1e9);
    if (kind == 'c')
        run_crr(to, end, gap, &t);
    else
        run_rr(to, end, &t, kind == 'h' ? http_exchange : exchange);
    uint64_t elapsed = now_ns() - begin;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu1);
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
    long cpu = (cpu1.tv_sec - cpu0.tv_sec) * 1000000000L + cpu1.tv_nsec - cpu0.tv_nsec;
    struct buffer line = {0};
    char text[160];
    int n = snprintf(text, sizeof text, "=\t%s\tok\t%lu\t%lu\t%lu\t%ld\t", id, t.n, t.errors, elapsed, cpu);
    buffer_add(&line, text, (size_t)n);
    for (uint32_t i = 0; i < t.kept; i++) {
        n = snprintf(text, sizeof text, "%s%u", i ? "," : "", t.samples[i]);
        buffer_add(&line, text, (size_t)n);
    }
    buffer_add(&line, "\n", 1);
    write_all(pipe_fd, buffer_head(&line), line.len);
}

/* --- in the service --- */

struct measurement {
    struct watch w;
    char id[24];
    struct buffer line;
};

static void measurement_ready(struct watch *w, uint32_t events)
{
    (void)events;
    static char chunk[65536];
    struct measurement *m = container_of(w, struct measurement, w);
    ssize_t n = read(w->fd, chunk, sizeof chunk);
    if (n > 0) {
        buffer_add(&m->line, chunk, (size_t)n);
        return;
    }
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (m->line.len && buffer_head(&m->line)[m->line.len - 1] == '\n')
        say_raw(buffer_head(&m->line), m->line.len);
    else
        say_answer("=\t%s\terr\tthe measuring child died\n", m->id);
    buffer_clear(&m->line);
    loop_close(w);
    loop_free(m);
}

static void in_child(int pipe_fd, const char *id, char kind, const union addr *to, double seconds, uint64_t gap)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    dup2(pipe_fd, 3);
    close_range(4, ~0U, 0); /* the service's listeners are not ours to hold */
    measure(3, id, kind, to, seconds, gap);
    _exit(0);
}

bool loop_measure(const char *id, char kind, char **f, int n)
{
    long family, port;
    union addr to;
    char *end = NULL, *over = "";
    double seconds = n == 4 || n == 5 ? strtod(f[3], &end) : 0;
    double rate = n == 5 ? strtod(f[4], &over) : 0;
    if ((n != 4 && n != 5) || *end || *over || !(rate >= 0 && rate <= 1e6) || !(seconds > 0 && seconds <= 3600) || !parse_long(f[0], 4, 6, &family) ||
        !parse_long(f[2], 1, 65535, &port) || !addr_parse(&to, (int)family, f[1], (int)port))
        return false;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) {
        say_answer("=\t%s\terr\tpipe\t%d\n", id, errno);
        return true;
    }
    pid_t pid = fork();
    if (pid == 0)
        in_child(ends[1], id, kind, &to, seconds, rate > 0 ? (uint64_t)(1e9 / rate) : 0);
    close(ends[1]);
    struct measurement *m = need_zero(sizeof *m);
    m->w = (struct watch){measurement_ready, ends[0]};
    snprintf(m->id, sizeof m->id, "%s", id);
    if (pid < 0 || loop_add(&m->w, EPOLLIN)) {
        say_answer("=\t%s\terr\tfork\t%d\n", id, errno);
        close(ends[0]);
        free(m);
    }
    return true;
}
