/* Proof that a TCP connection reached a program that is not ours: the handshake's answer, as it leaves this host.
 *
 * Only a socket that listens, and that the host's own input rules let the SYN through to, makes the kernel send SYN and
 * ACK; and a packet socket sees what leaves behind the output rules. So what is captured here has arrived, also where
 * the answer is lost on its way. packet(7); the filter is classic BPF on the network header.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>

#include "serve.h"

enum { RECEIVE_BUFFER = 4 << 20, DATAGRAMS = 256, HEADERS = 128 };

static uint8_t watched[65536 / 8];
static struct watch tap = {NULL, -1};

static void take(const uint8_t *packet, size_t n)
{
    union addr from = {0}, to = {0};
    bool v4 = packet[0] >> 4 == 4;
    size_t header = v4 ? (packet[0] & 15u) * 4u : 40;
    if (n < header + 14)
        return;
    const uint8_t *tcp = packet + header;
    unsigned sport = (unsigned)tcp[0] << 8 | tcp[1], dport = (unsigned)tcp[2] << 8 | tcp[3];
    if (!(watched[sport / 8] >> sport % 8 & 1))
        return;
    from.sa.sa_family = to.sa.sa_family = v4 ? AF_INET : AF_INET6;
    if (v4) {
        memcpy(&from.in.sin_addr, packet + 12, 4);
        memcpy(&to.in.sin_addr, packet + 16, 4);
    } else {
        memcpy(&from.in6.sin6_addr, packet + 8, 16);
        memcpy(&to.in6.sin6_addr, packet + 24, 16);
    }
    char mine[64];
    strncpy(mine, addr_text(&from), sizeof mine - 1);
    mine[sizeof mine - 1] = '\0';
    say_event("s\ttcp\t%d\t%s\t%u\t%s\t%u\t%lu\n", v4 ? 4 : 6, mine, sport, addr_text(&to), dport, now_ns());
}

static void tap_ready(struct watch *w, uint32_t events)
{
    (void)events;
    uint8_t packet[HEADERS];
    for (int i = 0; i < DATAGRAMS; i++) {
        struct sockaddr_ll from;
        socklen_t len = sizeof from;
        ssize_t n = recvfrom(w->fd, packet, sizeof packet, MSG_DONTWAIT, (struct sockaddr *)&from, &len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return;
        if (from.sll_pkttype == PACKET_OUTGOING && n >= 40)
            take(packet, (size_t)n);
    }
}

static int tap_open(void)
{
    /* TCP of either family whose flags are SYN and ACK; extension headers of IPv6 are not looked behind. */
    struct sock_filter code[] = {
        {BPF_LD | BPF_B | BPF_ABS, 0, 0, 0},      {BPF_ALU | BPF_AND | BPF_K, 0, 0, 0xf0},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 5, 0x40},  {BPF_LD | BPF_B | BPF_ABS, 0, 0, 9},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 9, 6},     {BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0},
        {BPF_LD | BPF_B | BPF_IND, 0, 0, 13},     {BPF_JMP | BPF_JA, 0, 0, 3},
        {BPF_LD | BPF_B | BPF_ABS, 0, 0, 6},      {BPF_JMP | BPF_JEQ | BPF_K, 0, 4, 6},
        {BPF_LD | BPF_B | BPF_ABS, 0, 0, 53},     {BPF_ALU | BPF_AND | BPF_K, 0, 0, 0x12},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0x12},  {BPF_RET | BPF_K, 0, 0, HEADERS},
        {BPF_RET | BPF_K, 0, 0, 0},
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    int size = RECEIVE_BUFFER, fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(ETH_P_ALL));
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program))
        return errno;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    tap = (struct watch){tap_ready, fd};
    return loop_add(&tap, EPOLLIN);
}

int capture(const int *ports, int n)
{
    for (int i = 0; i < n; i++)
        watched[ports[i] / 8] |= (uint8_t)(1 << ports[i] % 8);
    return tap.fd < 0 ? tap_open() : 0;
}
