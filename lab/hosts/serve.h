/* `labhost serve`: one service under the control of one controller. What its parts share.
 *
 * Every line of the control protocol has tab-separated fields and ends with a newline. Times are CLOCK_MONOTONIC in
 * nanoseconds. The service opens with
 *     hello HOST PROCESS USER PID
 * The controller sends `ID VERB ARGS...`; the answer is `= ID ok ...` or `= ID err ...`.
 *     listen tcp|udp PORT[,PORT...]      ok N, or err PORT ERRNO (ports before PORT stay open); both families
 *     unlisten tcp|udp PORT[,PORT...]    ok N (sockets closed)
 *     capture PORT[,PORT...]             tell of every handshake that these ports answer; ok, or err ERRNO. As root
 *     calls FAM,ADDR,PORT[;FAM,ADDR,PORT...]   whom to ask, in turn, before answering an HTTP request; none if empty
 *     pin CPU                            stay on one processor; -1: all again
 *     wait NS                            be so long, busily, at every plain echo over TCP before it is sent; 0: at none
 *     cpu                                ok NS (user and system time of this process)
 *     sync                               ok, once everything that had arrived before it has been reported
 *     crr|rr|http FAM ADDR PORT SECONDS  ok N ERRORS ELAPSED_NS CPU_NS LAT,LAT,... (tenths of a microsecond, at
 *                                        most 200,000, in order); runs in a child, so that the service keeps serving.
 *                                        crr with a RATE behind SECONDS: so many a second, timed from when due
 *     quit
 * and, answered by an event instead:
 *     probe TOKEN tcp|udp|icmp FAM ADDR PORT TIMEOUT_MS
 *     reach (as probe)                   a program that is no service of ours: connected, or any reply, is OPEN
 *     exploit TOKEN FAM ADDR PORT TIMEOUT_MS NONCE
 * Events:
 *     p TOKEN OUTCOME ERRNO SPORT START CONNECT END BYTES           an attempt ended
 *     x (as p, then) HOST PROCESS USER                              an exploit ended; empty if it took nothing
 *     a PROTO FAM PEER PEERPORT LOCALPORT TOKEN TIME                an attempt arrived here
 *     s tcp FAM LOCAL LOCALPORT PEER PEERPORT TIME    a captured port answered a handshake
 *     c OUTCOME ERRNO FAM LADDR SPORT DADDR DPORT START CONNECT END BYTES    a downstream call ended
 *     h FAM PEER PEERPORT LOCALPORT OPENED CLOSED REQUESTS BYTES_IN BYTES_OUT   an HTTP connection closed
 *     e WHAT ERRNO                       a connection could not be taken (out of descriptors or memory)
 *     lost N                             N events were dropped, because the controller did not read for 64 MiB
 */
#ifndef LABHOST_SERVE_H
#define LABHOST_SERVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop.h"
#include "util.h"

struct identity {
    const char *host, *process, *user;
    bool vulnerable;
};
extern struct identity me;

int serve_main(int argc, char **argv);

/* Append an event or an answer to the control stream; it leaves at the end of the pass. Events may be dropped. */
void say_event(const char *format, ...) __attribute__((format(printf, 1, 2)));
void say_answer(const char *format, ...) __attribute__((format(printf, 1, 2)));
void say_raw(const void *bytes, size_t n);

/* What an attempt came to, under the names of lab.model.Outcome. */
enum outcome { OPEN, REFUSED, DENIED_LOCALLY, UNREACHABLE, TIMED_OUT, BROKEN };
extern const char *const outcome_names[];
/* `direct`: the call itself returned it; otherwise the network said so later. See verdict.c. */
enum outcome outcome_of(int error, bool direct);
/* Have ICMP errors about a client's socket queued, at once. Without it they are told for some codes only, and a TCP
 * connect that meets one while the kernel still holds the socket learns of it a second later, from its second SYN. */
void report_errors(int fd, int family);
/* Empty the queue of ICMP errors; the last one that ends an attempt, or 0. */
int queued_error(int fd);
/* A redirect or a smaller path MTU: the answer may still come. */
bool is_advice(int error);

/* The record that proves an arrival: 32 bytes, little-endian numbers. */
enum { RECORD = 32 };
#define PROBE_MAGIC "LCP1"
#define EXPLOIT_MAGIC "LCX1"
#define LOOP_MAGIC "LCB1"
#define PROOF_KEY 0x5a5a5a5a5a5a5a5aULL
void record_make(uint8_t out[RECORD], const char *magic, uint64_t token, uint64_t nonce);
uint64_t record_token(const uint8_t *record);
uint64_t record_nonce(const uint8_t *record);

/* listen.c, udp.c, observe.c: the listening side. Return errno or 0. */
int tcp_listen(int family, int port);
int tcp_unlisten(int port);
void tcp_echo_wait(uint64_t ns);
int udp_listen(int family, int port);
int udp_unlisten(int port);
void observe_icmp(void);       /* opens the raw sockets, as root */
void observe_icmp_start(void); /* watches them */
int capture(const int *ports, int n); /* capture.c; errno or 0 */

/* probe.c, loops.c: the asking side. `fields` are a line's arguments; false: they are not understood. */
bool probe_start(char **fields, int n, bool reach);
bool exploit_start(char **fields, int n);
/* `kind`: the first letter of the verb. */
bool loop_measure(const char *id, char kind, char **fields, int n);
bool http_exchange(int fd); /* one GET on a connection that stays open, answered with 200 and all of its body */

#endif
