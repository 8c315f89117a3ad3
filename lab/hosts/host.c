#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"
#include "util.h"

static void mount_or_die(const char *kind, const char *target, unsigned long flags, const char *data)
{
    if (mount(kind, target, kind, flags, data))
        die("mount %s on %s: %s", kind, target, strerror(errno));
}

static void loopback_up(void)
{
    struct ifreq request = {.ifr_flags = IFF_UP | IFF_RUNNING};
    strcpy(request.ifr_name, "lo");
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
        die("lo: %s", strerror(errno));
    close(fd);
}

/* Write the first of `values` (NULL-terminated) that the kernel takes as meaningful. */
static void set_sysctl(const char *path, const char *const values[])
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        die("%s: %s", path, strerror(errno));
    while (write(fd, values[0], strlen(values[0])) < 0)
        if (errno != EINVAL || !*++values)
            die("%s: %s", path, strerror(errno));
    close(fd);
}

static bool holds(const char *path, const char *value)
{
    char now[64];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, now, sizeof now);
    if (fd >= 0)
        close(fd);
    return n > 0 && (size_t)n == strlen(value) + 1 && !memcmp(now, value, (size_t)n - 1);
}

void host_sysctl(const char *key, const char *value)
{
    char path[256];
    snprintf(path, sizeof path, "/proc/sys/%s", key);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool good = fd >= 0 ? write(fd, value, strlen(value)) >= 0 : errno == ENOENT;
    if (!good && !holds(path, value))
        die("sysctl %s=%s: %s", key, value, strerror(errno));
    if (fd >= 0)
        close(fd);
}

void host_enter(const char *hostname)
{
    if (hostname && sethostname(hostname, strlen(hostname)))
        die("--hostname %s: %s", hostname, strerror(errno));
    mount_or_die("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_or_die("tmpfs", "/opt", MS_NODEV, "mode=755");
    mount_or_die("tmpfs", "/srv", MS_NODEV, "mode=755");
    if (mkdir("/run/host", 0755) && errno != EEXIST)
        die("/run/host: %s", strerror(errno));
    mount_or_die("tmpfs", "/run/host", MS_NODEV, "mode=755");
    loopback_up();
    /* Probes go out and services listen as the declared user, who has no capabilities: every user may send echo
     * requests, and listen on any port. */
    /* A user namespace may speak only of the groups that it maps. */
    set_sysctl("/proc/sys/net/ipv4/ping_group_range", (const char *[]){"0 2147483647", "0 65535", "0 0", NULL});
    set_sysctl("/proc/sys/net/ipv4/ip_unprivileged_port_start", (const char *[]){"0", NULL});
}
