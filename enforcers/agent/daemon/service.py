"""The daemon itself: one loop over its netlink sockets and its command socket."""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
from contextlib import suppress

from . import settings
from .files import AgentError, Directory, nft, remove, write
from .watch import Watch, line

_PEERCRED = struct.Struct("=iII")  # pid, uid, gid
_COMMAND_TIMEOUT_S = 30.0
_LINES_PER_SEND = 500


class Service:
    """Set up in the order that loses nothing: listening before the rule set that makes events."""

    def __init__(self, directory: Directory, mode: str, takes_over: bool) -> None:
        self._directory = directory
        policy = directory.read_policy()
        if not takes_over:
            # Connections from before are forgotten: under this rule set they are judged like new ones. Those that a
            # rule set of ours has judged carry its mark, as after any change of policy.
            settings.forget()
        if not (takes_over and settings.kept(directory.before)):
            write(directory.before, settings.render(settings.read(tuple(settings.WANTED))))
        settings.write(settings.WANTED)
        self._watch = Watch(policy, attribute=mode == "agent")
        nft("-f", directory.rules)
        remove(directory.socket)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(directory.socket)
        self._listener.listen(8)

    def run(self) -> None:
        """Serve until `stop`."""
        poll = select.poll()
        for sock in (self._watch.events, self._watch.denials, self._listener):
            poll.register(sock, select.POLLIN)
        stopping = more = False
        while not stopping:
            ready = {fd for fd, _ in poll.poll(0 if more else None)}
            more = self._watch.pump()
            if self._listener.fileno() in ready:
                stopping = self._serve_one()
        self._watch.close()

    def _serve_one(self) -> bool:
        """Answer one client; whether it asked to stop. A client that goes away spoils nothing but its own answer."""
        with suppress(OSError), self._listener.accept()[0] as client:
            client.settimeout(_COMMAND_TIMEOUT_S)
            _, uid, _ = _PEERCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
            if uid != os.geteuid():
                return False
            word = client.recv(64).decode(errors="replace").strip()
            return self._answer(word, client)
        return False

    def _answer(self, word: str, client: socket.socket) -> bool:
        try:
            if word == "update":
                self._update()
            elif word not in ("ready", "stop", "collect"):
                raise AgentError(f"unknown command {word!r}")
            client.sendall(b"ok\n")
            if word == "collect":
                self._collect(client)
        except AgentError as err:
            client.sendall(f"error {err}\n".encode())
        return word == "stop"

    def _update(self) -> None:
        policy = self._directory.read_policy()
        nft("-f", self._directory.rules)
        self._watch.configure(policy)

    def _collect(self, client: socket.socket) -> None:
        pending: list[bytes] = []
        for record in self._watch.collect():
            pending.append(line(record))
            if len(pending) == _LINES_PER_SEND:
                client.sendall(b"".join(pending))
                pending.clear()
                self._watch.pump()  # the kernel's buffers fill while a long answer goes out
        client.sendall(b"".join(pending))


def daemonise(directory: Directory, mode: str, takes_over: bool) -> None:
    """Start the daemon in a session of its own; returns when it answers, raises AgentError with what it said."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os.setsid()
        if os.fork():
            os._exit(0)
        _be_daemon(directory, mode, takes_over, write_end)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as said:
        answer = said.read().strip()
    if answer != "ok":
        raise AgentError(answer or f"the daemon ended before it answered; see {directory.log}")


def _be_daemon(directory: Directory, mode: str, takes_over: bool, report: int) -> None:
    """In the grandchild: never returns."""
    status = 1
    try:
        lock = directory.take_lock()
        if lock is None:
            raise AgentError(f"{directory.path}: another daemon is running there; stop it first")
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        _leave_terminal(directory)
        service = Service(directory, mode, takes_over)
        os.write(report, b"ok\n")
        os.close(report)
        service.run()
        status = 0
    except (AgentError, OSError) as err:
        with suppress(OSError):  # nobody listens any more: the log has it
            os.write(report, f"{err}\n".encode())
        print(err, file=sys.stderr, flush=True)
    except BaseException:  # the last frame of this process: the log is the only place to say it
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def _leave_terminal(directory: Directory) -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for source, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
