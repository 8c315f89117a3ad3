"""The commands: `agent.pyz VERB --host H --dir D [words]`.

start, ready, update, collect, stop carry a deployment out; mode, status, policy, flows and explain are for people, and
answer in JSON. Exit status 0 is done; 1 is not, with one line on standard error; 2 is a wrong call.
"""

from __future__ import annotations

import os
import sys
import time

from . import sockets
from .apart import among_processes, in_network
from .place import ADOPTING, GOT, AgentError, Place, read, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sockets import Socket

COMMANDS = ("start", "ready", "update", "collect", "stop", "mode", "status", "policy", "flows", "explain")
USAGE = f"usage: agent.pyz {'|'.join(COMMANDS)} --host HOST --dir DIRECTORY [WORDS]"
_ANSWER_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 30.0


class NoAgentError(AgentError):
    """Nobody listens where the agent would, or it ended before it had answered."""

    @classmethod
    def ended(cls, place: Place) -> NoAgentError:
        return cls(f"{place.socket}: the agent ended without an answer; start it again")


def run(arguments: list[str]) -> None:
    """The whole process: without tidying up, which takes as long as asking the agent."""
    status = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


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
    if place.gone and command != "stop":
        raise AgentError(f"{place.host}: its container has gone")
    if command == "start":
        start(place)
    elif command == "stop":
        stop(place)
    else:
        answer = ask(place, command, *words)
        for part in answer.parts():
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        if command == "collect":
            answer.thank()
        answer.close()


def start(place: Place) -> None:
    """Join the agent that serves this host, starting it where none runs; returns when the policy is in force.

    What is in force for the host already, also by an agent that died, stays so until the new policy replaces it.
    """
    place.secure()
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        _have_agent(place)
        try:
            tags = b"".join(ask(place, "prepare").parts())
            among_processes(place, lambda: _adopt(place, tags))  # noqa: B023  # it is done when this returns
            with in_network(place):
                guarded = _guard(place)
            ask(place, "join", *guarded).close()
            return
        except NoAgentError:  # its last host left just now, and it with it; or it was killed over it
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


def _adopt(place: Place, tags: bytes) -> None:
    """Tag what runs and is open on this host already. The kernel walks the tasks that the caller can see: ours."""
    if tags:
        from .scripts import set_tags

        set_tags(place.bpf, tags)
    for name in ADOPTING:
        read(f"{place.bpf}/iter_{name}")


def _guard(place: Place) -> list[str]:
    """Judge at the host's interfaces what no socket sees: what the kernel itself answers, and packet sockets' frames.

    By filters and not by tcx links: the kernel makes the whole machine wait 17 ms for each of these, one after another,
    which is seven seconds for a lab of two hundred hosts. Returns the interfaces.
    """
    from lab.bpf import clsact, syscall

    interfaces, names = clsact.Interfaces(), []
    for way, where in (("in", clsact.INGRESS), ("out", clsact.EGRESS)):
        program = syscall.pinned(f"{place.bpf}/prog_interface_{way}")
        for number, name in sockets.if_nameindex():
            if name != "lo":  # within a host the sender is judged, and everything about both ends is known
                interfaces.attach(number, where, program, f"labctl-{way}")
                names.append(f"{name} {way}")
        os.close(program)
    interfaces.close()
    return names


def _unguard(place: Place) -> None:
    """In a lab the interfaces are ours, also a container's; elsewhere others may have filters beside ours."""
    from lab.bpf import clsact

    interfaces = clsact.Interfaces()
    for number, _name in sockets.if_nameindex():
        if place.in_lab or place.contained:
            interfaces.clear(number)
        else:
            interfaces.detach(number, clsact.INGRESS)
            interfaces.detach(number, clsact.EGRESS)
    interfaces.close()


def stop(place: Place) -> None:
    """Leave the agent, which ends with its last host. What a dead agent left goes as well; repeating is no mistake."""
    if not os.path.isdir(place.shared):
        return
    if not place.gone:
        with in_network(place):
            _unguard(place)
    held = place.take("starting")
    try:
        if _answers(place):
            try:
                ask(place, "leave").close()
                return
            except NoAgentError:
                pass  # killed over it: then we clean up after it
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


class Answer:
    """What the agent says after it has agreed."""

    def __init__(self, place: Place, client: Socket, said: bytes) -> None:
        self._place, self._client, self._said = place, client, said

    def parts(self) -> Iterator[bytes]:
        yield self._said
        try:
            yield from sockets.parts(self._client)
        except ConnectionError as err:
            raise NoAgentError.ended(self._place) from err

    def thank(self) -> None:
        """It has arrived, and need not be kept."""
        self._client.sendall(GOT)

    def close(self) -> None:
        self._client.close()


def ask(place: Place, verb: str, *words: str, timeout_s: float = _ANSWER_TIMEOUT_S) -> Answer:
    """Give one command to the agent. Raises AgentError if it refuses, NoAgentError if there is none.

    With it go this host's root directory, its processes and its network: the agent may be in another host's.
    """
    client, handles = sockets.stream(), []
    client.settimeout(timeout_s)
    try:
        client.connect(place.socket)
    except OSError as err:
        client.close()
        raise NoAgentError(f"{place.socket}: no agent answers ({err.strerror}); start it first") from err
    if not sockets.is_ours(client):
        raise AgentError(f"{place.socket}: another user's program answers there; end it")
    with in_network(place):
        cookie = sockets.netns_cookie()
    line = "\t".join([verb, place.host, place.directory, str(cookie), *words])
    try:
        for path, flags in zip(place.ways, (os.O_PATH, os.O_RDONLY, os.O_RDONLY), strict=True):
            handles.append(os.open(path, flags | os.O_CLOEXEC))
        sockets.send_with(client, line.encode() + b"\n", handles)
        first, rest = _first_line(client)
    except ConnectionError as err:  # it was killed: the kernel tells so in more than one way
        client.close()
        raise NoAgentError.ended(place) from err
    finally:
        for handle in handles:
            os.close(handle)
    if first == b"ok":
        return Answer(place, client, rest)
    client.close()
    if first:
        raise AgentError(first.decode(errors="replace").removeprefix("error "))
    raise NoAgentError.ended(place)


def _first_line(client: Socket) -> tuple[bytes, bytes]:
    said = b""
    while b"\n" not in said and (part := client.recv(1 << 16)):
        said += part
    first, _, rest = said.partition(b"\n")
    return first, rest
