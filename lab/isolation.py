"""Private namespaces for a run: whatever happens to labctl, the machine is as it was.

A run is a child that is PID 1 of its own PID namespace, with its own network, mounts, IPC and host name. When labctl
dies, by whatever signal, the kernel ends that child and with it every process, link, rule and mount of the lab. Only
the run's cgroup lives outside; a reaper in a session of its own, forked before the cgroup exists and holding labctl's
pidfd, ends and removes it by its id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RUN_DIR = Path("/run/labctl")  # inside the run only: /run is a tmpfs of the run's own there

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class IsolationError(RuntimeError):
    """This machine cannot give the run its own namespaces; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Who a run is: its id, and the cgroup (v2) that carries it, None where the machine has no writable one."""

    run_id: str
    cgroup: Path | None


def cgroup2_root() -> Path | None:
    """Where cgroup v2 is mounted and writable, or None."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            root = Path(left.split()[4])
            if os.access(root / "cgroup.procs", os.W_OK):
                return root
    return None


def run_isolated(body: Callable[[RunIdentity], int]) -> int:
    """Run `body` as PID 1 of private namespaces and return its exit status.

    SIGINT and SIGTERM are passed on once so that the body can tear down in order; the status of a body that was
    killed is 128 + signal. Raises IsolationError where namespaces are refused.
    """
    if os.geteuid() != 0:
        raise IsolationError("labctl: this needs root for network namespaces and nftables; run it with sudo")
    run_id = f"labctl-{secrets.token_hex(4)}"
    root = cgroup2_root()
    cgroup = root / run_id if root else None
    if cgroup:
        _start_reaper(cgroup)
        cgroup.mkdir()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        return _supervise(lambda: body(RunIdentity(run_id, cgroup)))
    finally:
        if cgroup:
            remove_cgroup(cgroup)


def _supervise(body: Callable[[], int]) -> int:
    _unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET)
    child = os.fork()
    if child == 0:
        _become_init(body)
    for signum in (signal.SIGINT, signal.SIGTERM):
        # A terminal already sends Ctrl-C to the whole group; a lone `kill` reaches only this process.
        signal.signal(signum, lambda s, _f: _forward(child, s))
    _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _forward(child: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM if signum == signal.SIGTERM else signal.SIGINT)


def _become_init(body: Callable[[], int]) -> None:
    """In the child: finish the private world, run the body, leave without running the parent's clean-up."""
    status = 70
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        _private_mounts()
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, env=tool_env())
        status = body()
    except KeyboardInterrupt:
        status = 130
    except BaseException:  # the last frame of this process: report, then leave
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _interrupt(_signum: int, _frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough: teardown is under way
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _private_mounts() -> None:
    mount(None, "/", None, _MS_REC_PRIVATE)
    mount("proc", "/proc", "proc", 0)
    mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    RUN_DIR.mkdir(mode=0o700)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2); raises OSError naming the target."""
    what, how = (text.encode() if text is not None else None for text in (source, kind))
    if _libc.mount(what, target.encode(), how, ctypes.c_ulong(flags), data.encode() or None):
        err = ctypes.get_errno()
        raise OSError(err, f"mount: {os.strerror(err)}", target)


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        why = os.strerror(ctypes.get_errno())
        raise IsolationError(f"labctl: the kernel refuses private namespaces ({why}); run it as root on the host")


def tool_env() -> dict[str, str]:
    """An environment whose PATH has the administrator's directories, which an ordinary user's lacks."""
    return {**os.environ, "PATH": f"/usr/sbin:/sbin:{os.environ.get('PATH', '/usr/bin:/bin')}", "LC_ALL": "C.UTF-8"}


# --- what lives outside -------------------------------------------------------------------------


def _start_reaper(cgroup: Path) -> None:
    """Fork a watcher, in its own session, that removes `cgroup` when this process is gone. Returns once it watches."""
    me = os.getpid()
    ready, started = os.pipe()
    pid = os.fork()
    if pid == 0:
        _reap(me, cgroup, started)
    os.close(started)
    os.read(ready, 1)
    os.close(ready)


def _reap(watched: int, cgroup: Path, started: int) -> None:
    os.setsid()
    pidfd = os.pidfd_open(watched)
    if os.fork():  # our parent must not have to wait for us
        os._exit(0)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.write(started, b"1")
    os.close(started)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    remove_cgroup(cgroup)
    os._exit(0)


def remove_cgroup(cgroup: Path, tries: int = 500) -> None:
    """End every process in `cgroup` and remove it with its children. Quietly done if it is not there."""
    for _ in range(tries):
        if not cgroup.exists():
            return
        with contextlib.suppress(OSError):
            (cgroup / "cgroup.kill").write_text("1")
        for directory, _names, _files in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        if cgroup.exists():
            # Killed processes leave their cgroup when they are reaped; the kernel gives no event for a tree.
            select.select([], [], [], 0.01)
