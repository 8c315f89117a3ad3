"""Commands on a host: the client of `labhost init`. Standard library only. The protocol is told in init.h."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

_KILLED = 137  # 128 + SIGKILL
_CHUNK = 65536
StrPath = str | os.PathLike[str]


class SpawnError(OSError):
    """The host could not start the command; `errno` says why, the message which step."""


class HostGoneError(ConnectionError):
    """The host ended before its command did."""


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended: its status (128 + signal if killed) and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


class Handle:
    """A command under way. `pid` counts as the host does. Closing it kills the command's group, unless detached."""

    def __init__(self, connection: socket.socket, what: str) -> None:
        self._connection = connection
        self.what = what
        self._buffer = b""
        self._status: int | None = None
        self.pid = self._started()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()

    def fileno(self) -> int:
        """Readable when the command has ended."""
        return self._connection.fileno()

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, 128 + signal if killed. Raises TimeoutError after `timeout` seconds, HostGoneError."""
        if self._status is None:
            word, _, rest = self._line(timeout).partition(" ")
            if word != "exit":
                raise HostGoneError(f"{self.what}: unexpected answer {word!r}")
            self._status = int(rest)
            self._connection.close()
        return self._status

    def kill(self) -> None:
        """End the command's process group with SIGKILL (a detached command is only let go)."""
        if self._status is None:
            self._status = _KILLED
        self._connection.close()

    def _started(self) -> int:
        try:
            word, _, rest = self._line(None).partition(" ")
            if word == "pid":
                return int(rest)
            number, _, text = rest.partition(" ")
            raise SpawnError(int(number), f"{self.what}: {text}")
        except BaseException:
            self._connection.close()
            raise

    def _line(self, timeout: float | None) -> str:
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._buffer:
            # A timeout of 0 would switch the socket to non-blocking, whose error is another.
            self._connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-6))
            got = self._connection.recv(4096)
            if not got:
                raise HostGoneError(f"{self.what}: the host ended")
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")


def spawn(
    socket_path: StrPath,
    argv: Sequence[str],
    *,
    uid: int | None = None,
    gid: int | None = None,
    cgroup: StrPath | None = None,
    cwd: StrPath | None = None,
    env: Mapping[str, str] | None = None,
    detach: bool = False,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = 2,
) -> Handle:
    """Start `argv` on the host whose init listens at `socket_path`; returns once it executes.

    `stdin`, `stdout`, `stderr` are descriptors, None meaning /dev/null; they stay the caller's. `gid` is `uid` if only
    that is given. `env` is added to an environment that holds PATH alone. `cgroup` is a directory of cgroup v2.
    Raises SpawnError (with errno), HostGoneError, or OSError when nobody listens.
    """
    return Handle(_ask(socket_path, argv, uid, gid, cgroup, cwd, env, detach, (stdin, stdout, stderr)), argv[0])


def start_all(commands: Iterable[tuple[StrPath, Sequence[str], StrPath | None]], at_once: int = 64) -> None:
    """Start each (socket path, argv, cgroup) detached, and let go of it; returns once all execute.

    `at_once` requests are under way at a time, so that hosts work while others are asked. Raises as `spawn` does.
    """
    waiting: deque[tuple[socket.socket, str]] = deque()
    try:
        for socket_path, argv, cgroup in commands:
            if len(waiting) == at_once:
                Handle(*waiting.popleft()).kill()
            stdio = (None, None, 2)
            waiting.append((_ask(socket_path, argv, None, None, cgroup, None, None, True, stdio), argv[0]))
        while waiting:
            Handle(*waiting.popleft()).kill()
    finally:
        for connection, _what in waiting:
            connection.close()


def _ask(socket_path: StrPath, argv: Sequence[str], uid: int | None, gid: int | None, cgroup: StrPath | None,
         cwd: StrPath | None, env: Mapping[str, str] | None, detach: bool,
         stdio: tuple[int | None, int | None, int | None]) -> socket.socket:
    """Send the request of a command; the answer is still to come."""
    fields = [f"{key}={value}" for key, value in (("uid", uid), ("gid", gid), ("cgroup", cgroup), ("cwd", cwd))
              if value is not None]
    fields += [f"env={key}={value}" for key, value in (env or {}).items()]
    fields += ["detach=1"] * detach + ["--", *argv]
    if not argv or any("\0" in field for field in fields):
        raise ValueError(f"{list(argv)}: a command has a name, and no NUL in any part")
    payload = b"".join(os.fsencode(field) + b"\0" for field in fields)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        connection.connect(os.fspath(socket_path))
        message = struct.pack("<I", len(payload)) + payload
        sent = socket.send_fds(connection, [message], [null if fd is None else fd for fd in stdio])
        if sent < len(message):  # an empty send to a command that has already ended would be an error
            connection.sendall(message[sent:])
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(null)
    return connection


def run(
    socket_path: StrPath,
    argv: Sequence[str],
    input: bytes = b"",
    timeout_s: float | None = 300.0,
    *,
    uid: int | None = None,
    gid: int | None = None,
    cgroup: StrPath | None = None,
    cwd: StrPath | None = None,
    env: Mapping[str, str] | None = None,
    detach: bool = False,
) -> Completed:
    """Run `argv` on the host to its end. What it leaves running with its output open is not waited for.

    Raises TimeoutError after `timeout_s` (the command is killed then), and what `spawn` raises.
    """
    with contextlib.ExitStack() as stack:
        child_in, mine_in = _pipe(stack)
        mine_out, child_out = _pipe(stack)
        mine_err, child_err = _pipe(stack)
        handle = stack.enter_context(spawn(socket_path, argv, uid=uid, gid=gid, cgroup=cgroup, cwd=cwd, env=env,
                                           detach=detach, stdin=child_in.fd, stdout=child_out.fd, stderr=child_err.fd))
        for end in (child_in, child_out, child_err):
            end.close()
        return _converse(handle, input, mine_in, (mine_out, mine_err), timeout_s)


class _End:
    """One end of a pipe, closed once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _pipe(stack: contextlib.ExitStack) -> tuple[_End, _End]:
    ends = tuple(_End(fd) for fd in os.pipe())
    for end in ends:
        stack.callback(end.close)
    return ends[0], ends[1]


def _converse(handle: Handle, data: bytes, to: _End, outputs: tuple[_End, _End], timeout_s: float | None) -> Completed:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    printed: dict[int, list[bytes]] = {end.fd: [] for end in outputs}
    rest = memoryview(data)
    for end in (to, *outputs):
        os.set_blocking(end.fd, False)
    with selectors.DefaultSelector() as selector:
        for fd in (handle.fileno(), *printed):
            selector.register(fd, selectors.EVENT_READ)
        selector.register(to.fd, selectors.EVENT_WRITE)
        ready: set[int] = set()
        while handle.fileno() not in ready:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"{handle.what}: still running after {timeout_s} s")
            ready = {key.fd for key, _events in selector.select(left)}
            if to.fd in ready:
                rest = _feed(to.fd, rest)
                if not rest:
                    selector.unregister(to.fd)
                    to.close()
            for fd in ready & printed.keys():
                if not _read_into(printed[fd], fd):
                    selector.unregister(fd)
    status = handle.wait(5.0)
    for fd, parts in printed.items():  # all that the command itself printed is in the pipe by now
        while _read_into(parts, fd):
            pass
    stdout, stderr = (b"".join(parts) for parts in printed.values())
    return Completed(status, stdout, stderr)


def _feed(fd: int, rest: memoryview) -> memoryview:
    try:
        return rest[os.write(fd, rest[:_CHUNK]):]
    except BlockingIOError:
        return rest
    except BrokenPipeError:  # it does not want to read; that is its right
        return rest[:0]


def _read_into(parts: list[bytes], fd: int) -> bool:
    """Read once; False at the end, or when there is nothing now."""
    try:
        got = os.read(fd, _CHUNK)
    except BlockingIOError:
        return False
    parts.append(got)
    return bool(got)
