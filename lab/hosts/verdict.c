#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "serve.h"

const char *const outcome_names[] = {"OPEN", "REFUSED", "DENIED_LOCALLY", "UNREACHABLE", "TIMED_OUT", "BROKEN"};

/* EPERM and EACCES from the call itself are this host's doing (a firewall's output hook, a cgroup program). Coming
 * later they are the network's: ICMPv6 "administratively prohibited" arrives as EACCES (icmpv6_err_convert in
 * net/ipv6/icmp.c), its IPv4 sibling as EHOSTUNREACH (icmp_err_convert in net/ipv4/icmp.c). For a connected UDP
 * socket send() is the call itself and recv() the network; a send() that met the ICMP error of an earlier send would
 * be told wrongly, but a probe sends once. Out of ports, descriptors or memory is our own failure: BROKEN. */
enum outcome outcome_of(int error, bool direct)
{
    switch (error) {
    case ECONNREFUSED:
        return REFUSED;
    case EPERM:
    case EACCES:
        return direct ? DENIED_LOCALLY : UNREACHABLE;
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EHOSTDOWN:
    case ENOPROTOOPT: /* ICMP "protocol unreachable" */
        return UNREACHABLE;
    case ETIMEDOUT:
        return TIMED_OUT;
    default:
        return BROKEN;
    }
}

static void put_u64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_u64(const uint8_t *at)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

void record_make(uint8_t out[RECORD], const char *magic, uint64_t token, uint64_t nonce)
{
    memset(out, 0, RECORD);
    memcpy(out, magic, 4);
    put_u64(out + 8, token);
    put_u64(out + 16, nonce);
}

uint64_t record_token(const uint8_t *record)
{
    return get_u64(record + 8);
}

uint64_t record_nonce(const uint8_t *record)
{
    return get_u64(record + 16);
}
