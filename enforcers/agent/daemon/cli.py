"""The commands: `agent.pyz start|ready|update|collect|stop --dir D [--mode agent|router]`.

Exit status 0 is done; 1 is not, with one line on standard error; 2 is a wrong call.
"""

# ruff: noqa: PTH110, PTH112
from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

from . import settings
from .files import AgentError, Directory, delete_table, in_force, is_enforced, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

USAGE = "usage: agent.pyz start|ready|update|collect|stop --dir DIRECTORY [--mode agent|router]"
COMMANDS = ("start", "ready", "update", "collect", "stop")
_MODES = ("agent", "router")
_PEERCRED = struct.Struct("=iII")
_ANSWER_TIMEOUT_S, _STOP_TIMEOUT_S = 60.0, 5.0


def main(arguments: list[str]) -> int:
    """Carry out one command and return its exit status."""
    parsed = _parse(arguments)
    if parsed is None:
        print(USAGE, file=sys.stderr)
        return 2
    command, directory, mode = parsed
    os.umask(0o077)
    try:
        _run(command, directory, mode)
    except (AgentError, OSError) as err:
        print(f"agent {command}: {err}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: list[str]) -> tuple[str, Directory, str] | None:
    command, options = (arguments[0], arguments[1:]) if arguments else ("", [])
    pairs = dict(zip(options[::2], options[1::2], strict=False))
    mode = pairs.get("--mode", "agent")
    known = set(pairs) <= {"--dir", "--mode"} and len(options) % 2 == 0
    if command not in COMMANDS or not known or "--dir" not in pairs or mode not in _MODES:
        return None
    return command, Directory(pairs["--dir"]), mode


def _run(command: str, directory: Directory, mode: str) -> None:
    if command == "start":
        start(directory, mode)
    elif command == "stop":
        stop(directory)
    else:
        with ask(directory, command) as answer:
            if command == "collect":
                while part := answer.read(1 << 20):
                    sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
        if command == "ready" and (problem := in_force(directory)):
            raise AgentError(f"not in force: {problem}")


def start(directory: Directory, mode: str) -> None:
    """Start the daemon, in the place of one that died if there was one.

    A rule set of ours that is in force stays so until the new one replaces it, in one transaction: a restart opens
    nothing. A start that fails leaves what it found: that rule set, or nothing.
    """
    from .service import daemonise  # the other commands are quicker without it

    directory.secure()
    _end_daemon(directory)
    takes_over = is_enforced()
    if not takes_over:
        _clear(directory)
    try:
        daemonise(directory, mode, takes_over)
    except AgentError:
        if not takes_over:
            stop(directory)
        raise


def stop(directory: Directory) -> None:
    """End the daemon, whatever state it is in, and remove all that `start` made. Repeating it is no mistake."""
    if not os.path.isdir(directory.path):
        return
    _end_daemon(directory)
    delete_table()
    _clear(directory)


def _clear(directory: Directory) -> None:
    _restore(directory)
    directory.remove_ours()


def _end_daemon(directory: Directory) -> None:
    # It was killed, does not answer, or was never there: the lock will tell.
    with suppress(AgentError, OSError), ask(directory, "stop", _STOP_TIMEOUT_S):
        pass
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while (lock := directory.take_lock()) is None:
        if not _await_end(directory.holder(), deadline):
            raise AgentError(f"{directory.path}: the daemon does not end; kill process {directory.holder()}")
    os.close(lock)


def _await_end(pid: int, deadline: float) -> bool:
    """Wait until the process that holds the lock is gone, by force in the end; False when even that is too late."""
    if pid <= 0:
        return time.monotonic() < deadline
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return time.monotonic() < deadline
    try:
        for kill in (False, True):
            if kill:
                signal.pidfd_send_signal(handle, signal.SIGKILL)  # it holds our lock, so it is ours
            if select.select([handle], [], [], 1.0)[0]:
                return True
    finally:
        os.close(handle)
    return time.monotonic() < deadline


def _restore(directory: Directory) -> None:
    """Put connection tracking back as it was, and leave no entries of ours in its table."""
    if os.path.exists(directory.before):
        with suppress(ValueError):  # cut short by a crash while it was written: nothing had been changed yet
            settings.write(settings.parse(read(directory.before)))
        settings.forget()


def ask(directory: Directory, word: str, timeout_s: float = _ANSWER_TIMEOUT_S) -> IO[bytes]:
    """Send one command to the daemon; returns its answer after the first line. Raises AgentError if it refuses."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout_s)
    try:
        client.connect(directory.socket)
    except OSError as err:
        client.close()
        raise AgentError(f"{directory.socket}: no daemon answers ({err.strerror}); start it first") from err
    with client:
        _, uid, _ = _PEERCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        if uid != os.geteuid():
            raise AgentError(f"{directory.socket}: somebody else's (user id {uid}) answers there")
        client.sendall(word.encode() + b"\n")
        answer = client.makefile("rb")
    first = answer.readline().decode(errors="replace").strip()
    if first != "ok":
        answer.close()
        raise AgentError(first.removeprefix("error ") or "the daemon ended without an answer")
    return answer
