/* The lab as `labhost hosts` is told of it on standard input: hosts, and how they are wired.
 *
 * One line a fact, fields separated by single spaces, empty lines ignored:
 *     sysctl KEY VALUE              of every host (a key as under /proc/sys, a value without spaces)
 *     segment BRIDGE                a bridge, made in the caller's network namespace
 *     standing BRIDGE               one that is there already: hosts join a lab that stands
 *     member BRIDGE V4 V6 MAC       whom the hosts of a segment have as permanent neighbours
 *     host NAME SOCKET              the lines below it are about this host, until the next
 *     sysctl KEY VALUE
 *     link DEVICE BRIDGE PORT MAC   a veth pair: DEVICE in the host, PORT under the bridge
 *     address DEVICE FAMILY ADDRESS PREFIX
 *     default DEVICE FAMILY GATEWAY
 */
#ifndef LABHOST_PLAN_H
#define LABHOST_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util.h"

struct sysctl {
    const char *key, *value;
};

struct member {
    union addr v4, v6;
    uint8_t mac[6];
};

struct segment {
    const char *bridge;
    unsigned index; /* of the bridge, once it is made */
    bool standing;  /* it is there already */
    struct member *members;
    size_t members_len;
};

struct wire {
    const char *device, *port;
    size_t segment; /* in plan.segments */
    uint8_t mac[6];
};

struct address {
    const char *device;
    union addr address;
    int prefix; /* -1: it is the default gateway */
};

struct host {
    const char *name, *socket;
    struct sysctl *sysctls;
    struct wire *wires;
    struct address *addresses;
    size_t sysctls_len, wires_len, addresses_len;
};

struct plan {
    struct sysctl *sysctls;
    struct segment *segments;
    struct host *hosts;
    size_t sysctls_len, segments_len, hosts_len;
};

/* Read a plan from `fd` to its end. Dies naming the line that is wrong. The strings stay allocated. */
void plan_read(struct plan *out, int fd);

#endif
