"""One daemon a switch: it takes orders on a socket, one after the other, and looks after the telemetry meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .switchd import DIRECTORY, Switch, abandon

SOCKET, LOCK = DIRECTORY / "switchd.sock", DIRECTORY / "lock"
TICK_S, SWEEP_S = 0.2, 10.0
SAMPLED_TICKS = 16  # of these, in one the kernel times the program
ORDER_TIMEOUT_S = 20.0


# --- the daemon ----------------------------------------------------------------------------------------


class Service:
    """The switch and who may ask it."""

    def __init__(self, program: bytes) -> None:
        self.switch = Switch(program)
        self.over = False

    def attach(self, interface: str, document: dict[str, Any]) -> Iterator[str]:
        if "policy" in document:
            yield json.dumps({"seconds": self.switch.policies.put(document["policy"])})
        self.switch.attach(interface, document["port"])

    def update(self, interface: str, document: dict[str, Any]) -> Iterator[str]:
        yield from self.attach(interface, document)

    def ready(self, interface: str, document: dict[str, Any]) -> Iterator[str]:
        if interface not in self.switch.ports or not self.switch.policies.holds(int(document["port"]["tenant"])):
            raise OSError(f"{interface}: its policy is not there yet")
        yield ""

    def collect(self, interface: str, document: dict[str, Any]) -> Iterator[str]:
        if "policy" in document:  # once for the whole switch
            yield self.switch.header()
        yield from self.switch.told(interface)

    def detach(self, interface: str, _document: dict[str, Any]) -> Iterator[str]:
        """With the last port the switch goes, before whoever asked is told: the next to come finds nothing of it."""
        self.switch.detach(interface)
        if not self.switch.ports:
            SOCKET.unlink(missing_ok=True)
            self.switch.close()
            self.over = True
        yield ""


Order = Callable[[str, dict[str, Any]], Iterator[str]]


def serve(program: Path) -> int:
    """Serve until the last port is detached. Status 0; 1 with the reason where the switch cannot be had."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        SOCKET.unlink(missing_ok=True)
        service = Service(program.read_bytes())
        listener.bind(str(SOCKET))
        SOCKET.chmod(0o600)
        listener.listen(64)
        os.write(1, b"ready\n")
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        with contextlib.ExitStack() as sampling:
            _loop(service, listener, sampling)
    return 0


def _loop(service: Service, listener: socket.socket, sampling: contextlib.ExitStack) -> None:
    switch, tick, swept = service.switch, 0, time.monotonic()
    while not service.over:
        if select.select([listener], [], [], TICK_S)[0]:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError, ValueError, KeyError):  # who asked may be gone, or mad
                _answer(service, connection)
            if not service.over:
                switch.policies.prepare()
            continue
        switch.drain()
        tick += 1
        if tick % SAMPLED_TICKS == 0:
            sampling.enter_context(switch.sampled())
        elif tick % SAMPLED_TICKS == 1:
            sampling.close()
        if time.monotonic() - swept > SWEEP_S:
            switch.sweep()
            swept = time.monotonic()


def _answer(service: Service, connection: socket.socket) -> None:
    connection.settimeout(ORDER_TIMEOUT_S)
    with connection.makefile("rwb") as stream:
        asked = json.loads(stream.readline())
        order: Order = getattr(service, asked["order"])
        try:
            said = list(order(asked["port"], json.loads(Path(asked["file"]).read_text())))
        except (OSError, ValueError, KeyError) as err:
            stream.write(f"error {err}\n".encode())
            return
        stream.write(b"ok\n")
        stream.writelines(line.encode() + b"\n" for line in said if line)


# --- who asks it ---------------------------------------------------------------------------------------


def ask(order: str, port: str, file: Path) -> int:
    """Give the daemon an order and print what it says. Status 0, or 1 with its reason."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ORDER_TIMEOUT_S)
            connection.connect(str(SOCKET))
            request = {"order": order, "port": port, "file": str(file)}
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answer:
                first = answer.readline().decode().rstrip("\n")
                sys.stdout.buffer.write(answer.read())
    except (FileNotFoundError, ConnectionError):
        first = ""
    if not first:  # the daemon was killed, also over this, or never was
        if order == "detach":
            abandon(port)
            return 0
        first = "error no daemon answers at the switch"
    if first != "ok":
        print(f"{port}: {first.removeprefix('error ')}", file=sys.stderr)
        return 1
    return 0


def ensure(archive: Path, program: Path) -> int:
    """See to it that the daemon runs; who comes second finds that of the first. Status 0, or why it does not."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers():
            return 0
        argv = [sys.executable, "-I", "-S", str(archive), "serve", "--program", str(program)]
        started = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        assert started.stdout is not None
        if started.stdout.readline() == b"ready\n":
            return 0
        return started.wait() or 1


def _answers() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(SOCKET)) == 0


def quiet_signals() -> None:
    """A terminal's Ctrl-C is for labctl, which tells the daemon in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
