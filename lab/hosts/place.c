/* `labhost place PATH [SOURCE]`: put a file there, mode 0755, with its directories: what standard input gives, or SOURCE.
   It appears whole: it is written beside and renamed, so that who opens it meanwhile finds the old file or the new one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"
#include "util.h"

static void make_parents(char *path)
{
    for (char *slash = path; (slash = strchr(slash + 1, '/'));) {
        *slash = '\0';
        if (mkdir(path, 0755) && errno != EEXIST)
            die("%s: %s", path, strerror(errno));
        *slash = '/';
    }
}

/* What `from` gives, into the file `path`, which is removed where that fails. */
static void copy(int from, int to, const char *path)
{
    static char chunk[1 << 16];
    for (ssize_t n; (n = read(from, chunk, sizeof chunk)) != 0;) {
        if (n < 0 && errno == EINTR)
            continue;
        ssize_t at = 0;
        for (ssize_t w; at < n; at += w)
            if ((w = write(to, chunk + at, (size_t)(n - at))) < 0)
                break;
        if (n < 0 || at < n) {
            int why = errno;
            unlink(path);
            die(n < 0 ? "%s: what to write cannot be read: %s" : "%s: %s", path, strerror(why));
        }
    }
}

int place_main(int argc, char **argv)
{
    if (argc < 2 || argc > 3 || argv[1][0] != '/')
        die("place PATH [SOURCE]");
    int from = argc == 3 ? open(argv[2], O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    if (from < 0)
        die("%s: %s", argv[2], strerror(errno));
    make_parents(argv[1]);
    char beside[4096];
    if ((size_t)snprintf(beside, sizeof beside, "%s.XXXXXX", argv[1]) >= sizeof beside)
        die("%s: %s", argv[1], strerror(ENAMETOOLONG));
    int to = mkostemp(beside, O_CLOEXEC);
    if (to < 0)
        die("%s: %s", beside, strerror(errno));
    copy(from, to, beside);
    /* renamed, not written over: an executable that runs cannot be written */
    if (fchmod(to, 0755) || close(to) || rename(beside, argv[1])) {
        int why = errno;
        unlink(beside);
        die("%s: %s", argv[1], strerror(why));
    }
    return 0;
}

/* `labhost exe PID`: the path of what the process executes. */
int exe_main(int argc, char **argv)
{
    char link[64], path[4096];
    long pid;
    if (argc != 2 || !parse_long(argv[1], 1, 1L << 30, &pid))
        die("exe PID");
    snprintf(link, sizeof link, "/proc/%ld/exe", pid);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0)
        die("%s: %s", link, strerror(errno));
    path[n] = '\0';
    return puts(path) < 0;
}
