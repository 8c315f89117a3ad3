"""Private namespaces for a run: whatever happens to labctl, the machine is as it was.

A run is a child that is PID 1 of its own PID namespace, with its own network, mounts, IPC and host name, and with its
own users where labctl is not root. When labctl dies, by whatever signal, the kernel ends that child and with it every
process, link, rule and mount of the lab. Only the run's cgroup, its containers and its registry entry live outside; a
reaper in a session of its own, forked before they exist and holding labctl's pidfd, removes them by the run's id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import runs, users
from lab.forked import leave, reader_gone
from lab.runs import Entry, Kind, remove_cgroup

RUN_DIR = Path("/run/labctl")  # inside the run only: /run is a tmpfs of the run's own there
ENTRY_DIR = RUN_DIR / "entry"  # inside the run: its entry in the registry outside
BPF_DIR = RUN_DIR / "bpf"  # inside the run: a bpffs, in which kernel programs of its own outlive who loaded them

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND = 0x2, 0x4, 0x8, 0x1000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class IsolationError(RuntimeError):
    """This machine cannot give the run its own namespaces; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Who a run is: its id, and the cgroup (v2) that carries it, None where the machine has no writable one.

    `several_users` is False where one user stands for all: not root, and no subordinate ids.
    """

    run_id: str
    cgroup: Path | None
    several_users: bool = True


def cgroup2_root() -> Path | None:
    """Where cgroup v2 is mounted and writable, or None."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            root = Path(left.split()[4])
            if os.access(root, os.W_OK) and os.access(root / "cgroup.procs", os.W_OK):
                return root
    return None


def run_isolated(body: Callable[[RunIdentity], int], kind: Kind = "run", scenario: str = "") -> int:
    """Run `body` as PID 1 of private namespaces and return its exit status; what dead runs left is removed first.

    SIGINT and SIGTERM are passed on once so that the body can tear down in order; the status of a body that was
    killed is 128 + signal. Raises IsolationError where namespaces are refused, or the registry is.
    """
    root = cgroup2_root()
    runs.sweep(root)
    run_id = runs.new_id()
    cgroup = root / run_id if root else None
    entry = Entry(run_id, kind, scenario, os.getpid(), time.time(), str(cgroup) if cgroup else None)
    _start_reaper(run_id, cgroup)
    try:
        lock = runs.enroll(entry)
        if cgroup:
            cgroup.mkdir()
            runs.mark_cgroup(cgroup)
        sys.stdout.flush()
        sys.stderr.flush()
        return _supervise(body, entry, lock)
    except runs.RegistryError as err:
        raise IsolationError(str(err)) from None
    finally:
        if cgroup:
            remove_cgroup(cgroup)
        runs.release(run_id)


def _supervise(body: Callable[[RunIdentity], int], entry: Entry, lock: int) -> int:
    try:
        several = True if os.geteuid() == 0 else users.new_namespace()
        _unshare(_CLONE_NEWPID)
    except OSError as err:
        raise IsolationError(f"labctl: the kernel refuses private namespaces ({err.strerror}); allow them "
                             "(user.max_user_namespaces, kernel.unprivileged_userns_clone) or run it as root") from None
    identity = RunIdentity(entry.id, Path(entry.cgroup) if entry.cgroup else None, several)
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tells)
        os.close(lock)
        _become_init(lambda: body(identity), entry.directory, told)
    for signum in (signal.SIGINT, signal.SIGTERM):
        # A terminal already sends Ctrl-C to the whole group; a lone `kill` reaches only this process.
        signal.signal(signum, lambda s, _f: _forward(child, s))
    runs.update(entry, init=child, several_users=several)
    os.close(told)
    os.close(tells)
    _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _forward(child: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM if signum == signal.SIGTERM else signal.SIGINT)


def _become_init(body: Callable[[], int], entry: Path, told: int) -> None:
    """In the child: finish the private world, run the body, leave without running the parent's clean-up."""
    status = 70
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.read(told, 1)  # ends when the registry knows us, or with our parent
        os.close(told)
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        _unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET)
        _private_mounts(entry)
        os.environ["PATH"] = tool_env()["PATH"]  # Mininet and ansible look there for themselves
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, env=tool_env())
        status = body()
    except KeyboardInterrupt:
        status = 130
    except OSError as err:
        if isinstance(err, BrokenPipeError) and reader_gone():
            status = 128 + signal.SIGPIPE  # as of any program whose reader has seen enough
        else:
            print(f"labctl: this machine refuses the run's private world: {err}", file=sys.stderr)
            status = 3
    except BaseException:  # the last frame of this process: report, then leave
        sys.excepthook(*sys.exc_info())
    finally:
        leave(status)


_interrupted: set[int] = set()  # signals that came; without a lock, on which a handler within a handler would wait


def heed_interrupt() -> None:
    """Raise KeyboardInterrupt if one came earlier and was swallowed, as by a destructor. For use between steps."""
    if _interrupted:
        raise KeyboardInterrupt


def _interrupt(signum: int, _frame: object) -> None:
    _interrupted.add(signum)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough: teardown is under way
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """The block runs to its end: whoever interrupts is told to wait. For what must not be lost when all is measured."""
    def wait(_signum: int, _frame: object) -> None:
        os.write(2, b"labctl: all is measured; the summary is being written\n")

    before = {signum: signal.signal(signum, wait) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _private_mounts(entry: Path) -> None:
    outside = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # before /run is covered
    mount(None, "/", None, _MS_REC_PRIVATE)
    mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    mount("tmpfs", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    RUN_DIR.mkdir(mode=0o700)
    ENTRY_DIR.mkdir(mode=0o700)
    mount(f"/proc/self/fd/{outside}", str(ENTRY_DIR), None, _MS_BIND)
    os.close(outside)
    BPF_DIR.mkdir(mode=0o700)
    with contextlib.suppress(OSError):  # without BPF in the kernel nothing will be kept there
        mount("bpf", str(BPF_DIR), "bpf", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=700")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2); raises OSError naming the target."""
    what, how = (text.encode() if text is not None else None for text in (source, kind))
    if _libc.mount(what, target.encode(), how, ctypes.c_ulong(flags), data.encode() or None):
        err = ctypes.get_errno()
        raise OSError(err, f"mount: {os.strerror(err)}", target)


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        err = ctypes.get_errno()
        raise OSError(err, os.strerror(err))


def tool_env() -> dict[str, str]:
    """An environment whose PATH has the administrator's directories, which an ordinary user's lacks."""
    return {**os.environ, "PATH": f"/usr/sbin:/sbin:{os.environ.get('PATH', '/usr/bin:/bin')}", "LC_ALL": "C.UTF-8"}


# --- what lives outside -------------------------------------------------------------------------


def _start_reaper(run_id: str, cgroup: Path | None) -> None:
    """Fork a watcher, in its own session, that removes what the run has outside when this process is gone.

    Returns once it watches.
    """
    me = os.getpid()
    ready, started = os.pipe()
    pid = os.fork()
    if pid == 0:
        _reap(me, run_id, cgroup, started)
    os.close(started)
    os.read(ready, 1)
    os.close(ready)
    os.waitpid(pid, 0)


def _reap(watched: int, run_id: str, cgroup: Path | None, started: int) -> None:
    os.setsid()
    pidfd = os.pidfd_open(watched)
    if os.fork():  # our parent must not have to wait for us
        os._exit(0)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.write(started, b"1")
    os.closerange(3, pidfd)  # pipes of others must not stay open by us
    os.closerange(pidfd + 1, 1024)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    if cgroup:
        remove_cgroup(cgroup)
    runs.release(run_id)
    os._exit(0)
