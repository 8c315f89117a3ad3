"""The commands: `agent.pyz VERB --host H --dir D [words]`.

start, ready, update, collect, stop carry a deployment out; mode, status, policy, flows and explain are for people, and
answer in JSON. Exit status 0 is done; 1 is not, with one line on standard error; 2 is a wrong call.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from contextlib import suppress

from .place import GOT, AgentError, Place, netns_cookie, remove
from .scripts import set_tags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

COMMANDS = ("start", "ready", "update", "collect", "stop", "mode", "status", "policy", "flows", "explain")
USAGE = f"usage: agent.pyz {'|'.join(COMMANDS)} --host HOST --dir DIRECTORY [WORDS]"
_PEERCRED = struct.Struct("=iII")
_ANSWER_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 30.0


class NoAgentError(AgentError):
    """Nobody listens where the agent would."""


def main(arguments: list[str]) -> int:
    """Carry out one command and return its exit status."""
    parsed = _parse(arguments)
    if parsed is None:
        print(USAGE, file=sys.stderr)
        return 2
    command, host, directory, words = parsed
    os.umask(0o077)
    try:
        _run(command, Place(host, directory), words)
    except (AgentError, OSError) as err:
        print(f"agent {command}: {err}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: list[str]) -> tuple[str, str, str, list[str]] | None:
    command, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    options = {}
    while len(rest) > 1 and rest[0] in ("--host", "--dir"):
        options[rest[0]] = rest[1]
        del rest[:2]
    if command not in COMMANDS or len(options) != 2:
        return None
    return command, options["--host"], options["--dir"], rest


def _run(command: str, place: Place, words: list[str]) -> None:
    if command == "start":
        start(place)
    elif command == "stop":
        stop(place)
    else:
        with ask(place, command, *words) as answer:
            while part := answer.read(1 << 20):
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            if command == "collect":
                answer.write(GOT)
                answer.flush()


def start(place: Place) -> None:
    """Join the agent that serves this host, starting it where none runs; returns when the policy is in force.

    What is in force for the host already, also by an agent that died, stays so until the new policy replaces it.
    """
    place.secure()
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        _have_agent(place)
        try:
            with ask(place, "prepare") as answer:
                set_tags(place.bpf, answer.read())
            _adopt(place)
            _guard(place)
            ask(place, "join").close()
            return
        except NoAgentError:  # its last host left just now, and it with it
            if time.monotonic() > deadline:
                raise


def _have_agent(place: Place) -> None:
    """Start an agent if none runs. Of hosts that come at once one starts it, the others wait."""
    if _answers(place):
        return
    held = place.take("starting")
    try:
        if not _answers(place):
            from .service import daemonise  # the other commands are quicker without it

            daemonise(place)
    finally:
        if held is not None:
            os.close(held)


def _adopt(place: Place) -> None:
    """Tag what runs and is open on this host already. The kernel walks the tasks that the caller can see: ours."""
    from lab.bpf import syscall

    for name in ("adopt_tasks", "adopt_listeners", "adopt_sockets"):
        program = syscall.pinned(f"{place.bpf}/prog_{name}")
        try:
            syscall.iterate(program)
        finally:
            os.close(program)


def _guard(place: Place) -> None:
    """Judge at the host's interfaces what no socket sees: what the kernel itself answers, and packet sockets' frames.

    Here and not in the agent, since the kernel waits for its readers at each (15 ms), and hosts can wait side by side.
    """
    from lab.bpf import syscall

    for number, name in socket.if_nameindex():
        if name == "lo":  # within a host the sender is judged, and everything about both ends is known
            continue
        for way, hook in (("in", syscall.TCX_INGRESS), ("out", syscall.TCX_EGRESS)):
            program = syscall.pinned(f"{place.bpf}/prog_interface_{way}")
            path = f"{place.bpf}/link_{place.host}@{name}_{way}"
            with suppress(FileExistsError):  # this very program is there already: the host starts again
                link = syscall.link(program, number, hook)
                remove(path)
                syscall.pin(link, path)
                os.close(link)
            os.close(program)


def stop(place: Place) -> None:
    """Leave the agent, which ends with its last host. What a dead agent left goes as well; repeating is no mistake."""
    if not os.path.isdir(place.shared):
        return
    held = place.take("starting")
    try:
        if _answers(place):
            ask(place, "leave").close()
            return
        remove(place.member(place.host))
        if not os.listdir(place.members):
            from .kernel import unpin

            unpin(place.bpf)
            remove(place.names)
    except FileNotFoundError:
        return
    finally:
        if held is not None:
            os.close(held)


def _answers(place: Place) -> bool:
    """Whether an agent is there to be asked. One that was killed holds no lock."""
    lock = place.take("lock", block=False)
    if lock is None:
        return True
    os.close(lock)
    return False


def ask(place: Place, verb: str, *words: str, timeout_s: float = _ANSWER_TIMEOUT_S) -> BinaryIO:
    """Give one command to the agent; returns its answer after the first line. Raises AgentError if it refuses.

    With it go this host's root directory, its processes and its network: the agent may be in another host's.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout_s)
    handles = []
    with client:
        try:
            client.connect(place.socket)
        except OSError as err:
            raise NoAgentError(f"{place.socket}: no agent answers ({err.strerror}); start it first") from err
        _, uid, _ = _PEERCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        if uid != os.geteuid():
            raise AgentError(f"{place.socket}: somebody else's (user id {uid}) answers there")
        line = "\t".join([verb, place.host, place.directory, str(netns_cookie()), *words])
        try:
            for path, flags in (("/", os.O_PATH), ("/proc", os.O_RDONLY), ("/proc/self/ns/net", os.O_RDONLY)):
                handles.append(os.open(path, flags | os.O_CLOEXEC))
            socket.send_fds(client, [line.encode() + b"\n"], handles)
        finally:
            for handle in handles:
                os.close(handle)
        answer: BinaryIO = client.makefile("rwb")  # type: ignore[assignment]  # a pair of buffers is as good
    first = answer.readline().decode(errors="replace").strip()
    if first != "ok":
        answer.close()
        raise AgentError(first.removeprefix("error ") or "the agent ended without an answer")
    return answer
