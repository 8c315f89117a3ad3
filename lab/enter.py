"""Into a standing lab, from outside: the namespaces of a run, then those of one of its hosts.

The command is a child of whoever asks, so the terminal, its signals and its job control work as anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lab.forked import child
from lab.hosts import init_client
from lab.isolation import tool_env
from lab.runs import Entry

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_WORLD = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
_TERMINAL = {key: os.environ[key] for key in ("TERM", "LC_ALL") if key in os.environ}
_libc = ctypes.CDLL(None, use_errno=True)


class EnterError(RuntimeError):
    """The lab or the host cannot be entered; the message says why."""


def in_run(entry: Entry, body: Callable[[], int]) -> int:
    """Run `body` in a child inside the run's namespaces and return its status (128 + signal if killed)."""
    with _quiet():
        return _forked(lambda: _join(entry.init, entry.pid != 0 and os.geteuid() != 0, lambda: _forked(body)))


def on_host(entry: Entry, host_pid: int, argv: list[str], *, cgroup: Path | None = None, uid: int | None = None,
            stdout: int | None = None) -> int:
    """Run `argv` on the host whose first process is `host_pid` (as the run counts) and return its status.

    `uid` is one of the lab's own. Status 127: there is no such command; 126: it cannot be run.
    """
    def there() -> int:
        return _join(host_pid, False, lambda: _forked(lambda: _execute(argv, uid, stdout)))

    if cgroup is not None:
        return _forked(lambda: _in_cgroup(cgroup, lambda: in_run(entry, there)))
    return in_run(entry, there)


def by_first_process(socket: Path, argv: list[str], *, cgroup: Path | None = None, uid: int | None = None,
                     stdout: int | None = None) -> int:
    """The same on a host that is a container: its first process, which listens at `socket`, starts the command.

    The command has our terminal, but not as its own: an interrupt ends it. `cgroup` is as the host sees it.
    """
    try:
        with init_client.spawn(socket, argv, uid=uid or None, cgroup=cgroup, stdin=0, cwd="/",
                               stdout=1 if stdout is None else stdout, env=_TERMINAL) as command:
            return command.wait()
    except KeyboardInterrupt:
        return 130
    except init_client.SpawnError as err:
        print(f"labctl: {str(err.strerror).removeprefix(f'{argv[0]}: ')}", file=sys.stderr)
        return 127 if err.errno == errno.ENOENT else 126
    except OSError as err:
        print(f"labctl: the lab has ended ({err.strerror or err})", file=sys.stderr)
        return 3


def _in_cgroup(cgroup: Path, body: Callable[[], int]) -> int:
    with contextlib.suppress(OSError):  # accounting only: the command matters more
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    return body()


def _join(pid: int, with_users: bool, body: Callable[[], int]) -> int:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as err:
        print(f"labctl: the lab has ended ({os.strerror(err.errno or 0)})", file=sys.stderr)
        return 3
    if _libc.setns(pidfd, _WORLD | (_CLONE_NEWUSER if with_users else 0)):
        print(f"labctl: cannot enter: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 3
    return body()


def _execute(argv: list[str], uid: int | None, stdout: int | None) -> NoReturn:
    if stdout is not None:
        os.dup2(stdout, 1)
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    with contextlib.suppress(OSError):
        os.chdir("/")
    try:
        os.execvpe(argv[0], argv, tool_env())  # noqa: S606 (an argv, as the user gave it)
    except OSError as err:
        print(f"labctl: {argv[0]}: {err.strerror}", file=sys.stderr)
        os._exit(127 if isinstance(err, FileNotFoundError) else 126)


def _forked(body: Callable[[], int]) -> int:
    def heeding() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return body()

    pid = child(heeding)
    with _quiet():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Ctrl-C is for the command inside, which shares our terminal; we only wait for how it ends."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
