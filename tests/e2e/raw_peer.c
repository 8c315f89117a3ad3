/* The plainest client and server that can be written, to check the instruments against. Nothing shared with labctl.
 *
 *   serve PORT DELAY_US           HTTP or 64-byte echo, each answer after a busy wait
 *   crr|rr|http|wrklike ADDR PORT SECONDS prints "N ELAPSED_S"; http: GET on one connection; wrklike: the same with the
 *                                 system calls of wrk's event loop for each request, and nothing else of wrk's
 *   sink PORT, bulk ADDR PORT BYTES   the sink takes one connection and prints "BYTES ELAPSED_S"
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";
static const char GET[] = "GET / HTTP/1.1\r\nHost: 10.10.1.2\r\n\r\n";
static char bytes[1 << 17];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static struct sockaddr_in to(const char *address, int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &a.sin_addr);
    return a;
}

static int connected(struct sockaddr_in *a)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct linger reset = {1, 0};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(fd, (struct sockaddr *)a, sizeof *a))
        exit(1);
    return fd;
}

static int listening(int port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = to("0.0.0.0", port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 512))
        exit(1);
    puts("listening");
    fflush(stdout);
    return fd;
}

static void serve(int port, double delay_s)
{
    int listener = listening(port), poll = epoll_create1(0), one = 1;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        epoll_wait(poll, &e, 1, -1);
        int fd = e.data.fd;
        if (fd == listener) {
            struct epoll_event new = {.events = EPOLLIN, .data.fd = accept(listener, NULL, NULL)};
            setsockopt(new.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            epoll_ctl(poll, EPOLL_CTL_ADD, new.data.fd, &new);
            continue;
        }
        ssize_t n = recv(fd, bytes, sizeof bytes, 0);
        if (n <= 0) {
            close(fd);
            continue;
        }
        for (double until = now() + delay_s; now() < until;)
            ;
        if (memcmp(bytes, "GET", 3))
            send(fd, bytes, n, MSG_NOSIGNAL);
        else
            send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL);
    }
}

static void ask(int fd, const char *question, size_t n, int http)
{
    char answer[4096];
    if (send(fd, question, n, MSG_NOSIGNAL) != (ssize_t)n)
        exit(1);
    for (size_t got = 0; http ? got < 4 || memcmp(answer + got - 3, "ok\n", 3) : got < n;) {
        ssize_t more = recv(fd, answer + got, sizeof answer - got, 0);
        if (more <= 0)
            exit(1);
        got += more;
    }
}

/* wrk 4.1 for each request: wants to write (epoll_ctl), is told (epoll_wait), writes, no longer wants to (epoll_ctl),
 * is told of the answer (epoll_wait), reads. */
static void ask_by_events(int poll, int fd)
{
    char answer[4096];
    struct epoll_event both = {.events = EPOLLIN | EPOLLOUT}, in = {.events = EPOLLIN}, got;
    epoll_ctl(poll, EPOLL_CTL_MOD, fd, &both);
    epoll_wait(poll, &got, 1, -1);
    if (write(fd, GET, sizeof GET - 1) != sizeof GET - 1)
        exit(1);
    epoll_ctl(poll, EPOLL_CTL_MOD, fd, &in);
    epoll_wait(poll, &got, 1, -1);
    if (read(fd, answer, sizeof answer) <= 0)
        exit(1);
}

static long wrklike(const char *address, int port, double until)
{
    struct sockaddr_in a = to(address, port);
    int fd = connected(&a), poll = epoll_create1(0);
    struct epoll_event in = {.events = EPOLLIN};
    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &in);
    long n = 0;
    for (; now() < until; n++)
        ask_by_events(poll, fd);
    return n;
}

static void loop(const char *kind, const char *address, int port, double seconds)
{
    char echo[64] = "raw peer";
    struct sockaddr_in a = to(address, port);
    int http = !strcmp(kind, "http"), again = !strcmp(kind, "crr"), fd = again ? -1 : connected(&a);
    double begin = now();
    long n = 0;
    for (; now() < begin + seconds; n++) {
        if (again)
            fd = connected(&a);
        ask(fd, http ? GET : echo, http ? sizeof GET - 1 : sizeof echo, http);
        if (again)
            close(fd);
    }
    printf("%ld %.9f\n", n, now() - begin);
}

static void sink(int port)
{
    int fd = accept(listening(port), NULL, NULL);
    double begin = now();
    long total = 0;
    for (ssize_t n; (n = recv(fd, bytes, sizeof bytes, 0)) > 0;)
        total += n;
    printf("%ld %.9f\n", total, now() - begin);
}

static void bulk(const char *address, int port, long left)
{
    struct sockaddr_in a = to(address, port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof a))
        exit(1);
    while (left > 0) {
        ssize_t n = send(fd, bytes, left < (long)sizeof bytes ? left : (long)sizeof bytes, MSG_NOSIGNAL);
        if (n < 0)
            exit(1);
        left -= n;
    }
    shutdown(fd, SHUT_WR);
    recv(fd, bytes, 1, 0);
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "serve"))
        serve(atoi(argv[2]), atof(argv[3]) / 1e6);
    else if (argc == 3 && !strcmp(argv[1], "sink"))
        sink(atoi(argv[2]));
    else if (argc == 5 && !strcmp(argv[1], "bulk"))
        bulk(argv[2], atoi(argv[3]), atol(argv[4]));
    else if (argc == 5 && !strcmp(argv[1], "wrklike")) {
        double begin = now();
        long n = wrklike(argv[2], atoi(argv[3]), begin + atof(argv[4]));
        printf("%ld %.9f\n", n, now() - begin);
    } else if (argc == 5)
        loop(argv[1], argv[2], atoi(argv[3]), atof(argv[4]));
    else
        return 2;
    return 0;
}
