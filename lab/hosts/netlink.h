/* Route netlink, spoken in batches: links, addresses, routes and neighbours of one network namespace. */
#ifndef LABHOST_NETLINK_H
#define LABHOST_NETLINK_H

#include <stdint.h>

#include "util.h"

struct netlink {
    int fd;
    uint32_t seq;
    unsigned len;
    char *buffer;
    int error;        /* the first that the kernel answered, else 0 */
    const char *what; /* of which kind of message */
};

/* A socket in the network namespace of the caller; it stays there when the caller moves on. Dies on failure. */
void netlink_open(struct netlink *n);
/* Send what is queued and wait for every answer. Returns 0, or the first error since the last call, n->what its kind. */
int netlink_sync(struct netlink *n);
void netlink_close(struct netlink *n);

/* The index of an interface in the socket's namespace, or 0. */
unsigned netlink_index(const struct netlink *n, const char *name);

/* Each queues one message. */
/* Up, without snooping, forwarding at once; one that an earlier lab of the same run left is taken over. */
void netlink_bridge(struct netlink *n, const char *name);
/* A veth pair: `port` here, up, under the bridge `master`; `name` with `mac`, down, in the namespace `netns_fd`. */
void netlink_pair(struct netlink *n, const char *port, unsigned master, const char *name, const uint8_t mac[6],
                  int netns_fd);
void netlink_up(struct netlink *n, unsigned device);
void netlink_address(struct netlink *n, unsigned device, const union addr *a, int prefix); /* no duplicate detection */
/* The same, right also where the device has that address already. */
void netlink_readdress(struct netlink *n, unsigned device, const union addr *a, int prefix);
void netlink_default(struct netlink *n, unsigned device, const union addr *gateway);
void netlink_neighbour(struct netlink *n, unsigned device, const union addr *a, const uint8_t mac[6]); /* permanent */

#endif
