/* `labhost init`: the process that holds one host.
 *
 * It makes network, mount, PID, UTS and IPC namespaces, stays as their parent, prints `ready PID` (of the host's PID
 * 1, as it sees it) once the host takes commands, and ends with it. The host ends when its parent does.
 *
 * PID 1 listens on a unix stream socket; one connection is one command. The client sends a u32 (little-endian) length
 * and as many bytes, with three descriptors (standard input, output, error) on the first byte. The bytes are fields,
 * each ended by NUL: any of
 *     uid=N  gid=N (gid is uid if only that is given)  cgroup=DIR (v2)  cwd=DIR  env=K=V (repeatable)
 *     detach=1 (the command outlives the connection)
 * then `--` and the argv. The answer is `pid N\n` (as the host counts), later `exit STATUS\n` (128 + signal if killed);
 * or `error ERRNO text\n`. If the client closes first, the command's process group is killed, unless detached.
 */
#ifndef LABHOST_INIT_H
#define LABHOST_INIT_H

#include <stdbool.h>
#include <sys/types.h>

#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

int init_main(int argc, char **argv);

/* The steps of a host's PID 1. It ends with its parent, who alone holds the other end of the pipe `alive`; listens at
 * a path of the mounts that it still shares; and at last takes commands, having written `word` to `ready`. */
void init_end_with_parent(int alive);
int init_listen(const char *path);
void init_serve(int listener, int ready, const void *word, size_t n) __attribute__((noreturn));
/* Have init_serve watch one more descriptor for what it has to read. */
struct watch;
void init_watch(struct watch *more);

/* contain.c: `labhost contain`, the PID 1 of a container. */
int contain_main(int argc, char **argv);

/* place.c: `labhost place`, a file where a container's image has no tool to write one. */
int place_main(int argc, char **argv);
int exe_main(int argc, char **argv);

/* herd.c: `labhost hosts`, all hosts of a lab at once. */
int hosts_main(int argc, char **argv);

/* host.c: make the calling process the host's PID 1 in all but its duties. */
void host_enter(const char *hostname);
/* Set one sysctl (a key as under /proc/sys). A kernel without it has nothing to set; one that refuses a value that is
 * there already has done no harm. Dies otherwise. */
void host_sysctl(const char *key, const char *value);

/* spawn.c: a command as it was asked for; the strings lie in the request's memory. */
struct command {
    long uid, gid; /* -1: as init */
    const char *cgroup, *cwd;
    bool detach;
    char **env;  /* NULL-terminated, allocated */
    char **argv; /* NULL-terminated, allocated */
};

/* Read the fields of a request. Returns NULL, or what is wrong with them. */
const char *command_parse(struct command *out, char *payload, size_t n);
void command_free(struct command *c);

/* Why a command could not start: written by the child into its status pipe, or left by command_start. */
struct failure {
    int error;
    char what[60];
};

/* Fork and execute with `stdio` as 0, 1, 2. Returns the pid, or -1 with *why filled. *status is the pipe that gives
 * one struct failure, or end of file once the command runs. */
pid_t command_start(const struct command *c, const int stdio[3], int *status, struct failure *why);

#endif
