/* flood SECONDS (tcp|udp SOURCE TARGET PORT)...: connection requests and datagrams from every port in turn.
 *
 * As root, by raw sockets, so that no socket of the host's remembers any of it. One pass sends to every target from each
 * of 65,535 ports; passes follow one another until the time is over. Says {"ready": true} first and at the end what was
 * sent and what the host itself refused, both as JSON. Not longer than 30 seconds, whatever is asked for. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, PORTS = 65535, TARGETS = 32, LONGEST_S = 30, TCP_BYTES = 20, UDP_BYTES = 8 };

struct target {
    int fd, is_tcp, is_v4;
    uint16_t port;
    uint32_t ends; /* ones' complement sum of what the pseudo-header has of the addresses (IPv4) */
};

static void fail(const char *what)
{
    printf("{\"failed\": %d, \"why\": \"%s: %s\"}\n", errno, what, strerror(errno));
    exit(0);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static uint32_t sum_of(const void *data, int bytes)
{
    uint32_t sum = 0;
    const uint8_t *at = data;
    for (int i = 0; i < bytes; i += 2)
        sum += at[i] << 8 | at[i + 1];
    return sum;
}

static uint16_t folded(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons(~sum & 0xffff);
}

static struct target opened(char **words)
{
    struct target one = {.is_tcp = !strcmp(words[0], "tcp"), .is_v4 = !strchr(words[1], ':')};
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    int proto = one.is_tcp ? IPPROTO_TCP : IPPROTO_UDP, at = one.is_tcp ? 16 : 6;
    one.port = atoi(words[3]);
    one.fd = socket(one.is_v4 ? AF_INET : AF_INET6, SOCK_RAW, proto);
    if (one.fd < 0)
        fail("raw socket");
    if (one.is_v4) {
        struct in_addr source;
        if (inet_pton(AF_INET, words[1], &source) != 1 || inet_pton(AF_INET, words[2], &v4.sin_addr) != 1)
            fail(words[2]);
        one.ends = sum_of(&source, 4) + sum_of(&v4.sin_addr, 4);
        if (connect(one.fd, (void *)&v4, sizeof v4))
            fail(words[2]);
    } else {
        if (inet_pton(AF_INET6, words[2], &v6.sin6_addr) != 1)
            fail(words[2]);
        if (setsockopt(one.fd, IPPROTO_IPV6, IPV6_CHECKSUM, &at, sizeof at) || connect(one.fd, (void *)&v6, sizeof v6))
            fail(words[2]);
    }
    return one;
}

static int filled(uint8_t *packet, const struct target *to, uint16_t from_port, uint32_t sequence)
{
    int bytes = to->is_tcp ? TCP_BYTES : UDP_BYTES;
    uint16_t ports[2] = {htons(from_port), htons(to->port)}, length = htons(bytes), check;
    uint32_t number = htonl(sequence);
    memset(packet, 0, bytes);
    memcpy(packet, ports, sizeof ports);
    if (to->is_tcp) {
        memcpy(packet + 4, &number, sizeof number);
        packet[12] = 5 << 4;
        packet[13] = 2; /* SYN */
        packet[14] = 4; /* window 1024 */
    } else {
        memcpy(packet + 4, &length, sizeof length);
    }
    if (to->is_v4) {
        check = folded(to->ends + (to->is_tcp ? IPPROTO_TCP : IPPROTO_UDP) + bytes + sum_of(packet, bytes));
        memcpy(packet + (to->is_tcp ? 16 : 6), &check, sizeof check);
    }
    return bytes;
}

int main(int argc, char **argv)
{
    struct target targets[TARGETS];
    static uint8_t packets[BATCH][TCP_BYTES];
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH];
    unsigned long sent = 0, refused = 0;
    int count = (argc - 2) / 4;
    if (argc < 6 || (argc - 2) % 4 || count > TARGETS)
        return 2;
    double asked = atof(argv[1]);
    for (int i = 0; i < count; i++)
        targets[i] = opened(argv + 2 + 4 * i);
    printf("{\"ready\": true}\n");
    fflush(stdout);
    double ends = now() + (asked < LONGEST_S ? asked : LONGEST_S);
    for (uint32_t first = 1, pass = 0; now() < ends; first += BATCH) {
        if (first + BATCH > PORTS)
            first = 1, pass++;
        for (int i = 0; i < count; i++) {
            for (int k = 0; k < BATCH; k++) {
                parts[k] = (struct iovec){packets[k], filled(packets[k], &targets[i], first + k, pass << 16 | (first + k))};
                messages[k] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[k], .msg_iovlen = 1}};
            }
            for (int k = 0; k < BATCH;) { /* it stops at one that is refused */
                int went = sendmmsg(targets[i].fd, messages + k, BATCH - k, 0);
                sent += went > 0 ? went : 1;
                refused += went <= 0;
                k += went > 0 ? went : 1;
            }
        }
    }
    printf("{\"sent\": %lu, \"refused\": %lu}\n", sent, refused);
    return 0;
}
