"""softflowd at mirror ports, and who receives what it exports: datagrams as they came, each with when it came."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lab.isolation import tool_env

Kind = Literal["netflow-v9", "ipfix", "psamp"]
_VERSION: Mapping[Kind, tuple[str, ...]] = {"netflow-v9": ("-v", "9"), "ipfix": ("-v", "10", "-b"),
                                            "psamp": ("-v", "psamp")}
_SHIM = Path(__file__).with_name("immediate.c")
_SO_RXQ_OVFL = 40
_ROOM = 1 << 23  # bytes that a receiver's socket may hold
_SNAP = 128  # bytes of a packet: its headers, and what products that sample packets export by default
_START_S, _STOP_S = 10.0, 3.0
_MOST_FLOWS = 1 << 17


class ExporterError(OSError):
    """An exporter could not be started, or said nothing; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Export:
    """One softflowd: what it speaks, when a flow is told (silent for so long, or at most so long), 1 of N packets.

    `only`: a pcap filter; what it leaves out is not told.
    """

    kind: Kind
    idle_s: int = 1
    active_s: int = 60
    sampled: int = 1
    only: str = ""


@dataclass(slots=True)
class Stream:
    """What one exporter sent to its receiver. `dropped`: datagrams that the receiver's socket had no room for."""

    export: Export
    segment: str
    datagrams: list[tuple[float, bytes]] = field(default_factory=list)
    dropped: int = 0
    missed_packets: int = 0  # by softflowd's own count: it had no room for them
    still_open: int = 0  # flows that it had not told yet


def lacks() -> str | None:
    """Why there can be no exporter here and what to do, in one line; None if there can."""
    from lab import features
    from lab.model import Feature

    return features.missing((Feature("softflowd", "it exports what a mirror port hears"),
                             Feature("mirror", "a copy of all frames of a segment")))


@contextlib.contextmanager
def exporting(exports: Sequence[Export], spans: Mapping[str, str], place: Path) -> Iterator[Exporters]:
    """Every export at every span (segment → interface), each with a receiver of its own. `place`: for its small files.

    Raises ExporterError. When the block ends all of them have ended.
    """
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    running = Exporters(_shim(place), place)
    try:
        for segment, interface in spans.items():
            for export in exports:
                running.start(export, segment, interface)
        running.await_started()
        yield running
    finally:
        running.stop()


class Exporters:
    """Running softflowds and their receivers."""

    def __init__(self, shim: Path, place: Path) -> None:
        self.streams: list[Stream] = []
        self._shim, self._place = shim, place
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        self._over = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._receive, name="telemetry", daemon=True)

    def start(self, export: Export, segment: str, interface: str) -> None:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sockets.append(receiver)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        with contextlib.suppress(OSError):  # SO_RCVBUFFORCE: beyond the machine's limit, where we may
            receiver.setsockopt(socket.SOL_SOCKET, 33, _ROOM)
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        argv = arguments(export, interface, receiver.getsockname()[1], self._control(len(self.streams)))
        self._processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                                stderr=subprocess.DEVNULL,
                                                env={**tool_env(), "LD_PRELOAD": str(self._shim)}))
        self.streams.append(Stream(export, segment))

    def await_started(self) -> None:
        """Return when each answers at its control socket; from now on datagrams are received."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        for index, process in enumerate(self._processes):
            while not self._asked(index):
                if process.poll() is not None:
                    raise ExporterError(f"softflowd ended with status {process.returncode} at once "
                                        f"({self.streams[index].segment})")
                if time.monotonic() > deadline:
                    raise ExporterError(f"softflowd does not answer within {_START_S:g} s")
                time.sleep(0.02)

    def settle(self, timeout_s: float) -> None:
        """Return when no exporter has a flow that it has not told, or after `timeout_s`; keep what each counted."""
        deadline = time.monotonic() + timeout_s
        for index, stream in enumerate(self.streams):
            while True:
                counted = statistics(self._asked(index))
                stream.still_open = counted.get("active", 0)
                stream.missed_packets = counted.get("dropped", 0)
                if not stream.still_open or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        time.sleep(0.05)  # the last datagram is on its way through loopback

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.eventfd_write(self._over, 1)
        if self._thread.is_alive():
            self._thread.join()
        for receiver in self._sockets:
            receiver.close()
        os.close(self._over)

    # --- parts ---

    def _control(self, index: int) -> Path:
        return self._place / f"{index}.ctl"

    def _asked(self, index: int) -> str:
        """What softflowd answers to `statistics` at its control socket; "" where it does not."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
                control.settimeout(2.0)
                control.connect(str(self._control(index)))
                control.sendall(b"statistics\n")
                said = b""
                while piece := control.recv(65536):
                    said += piece
                return said.decode(errors="replace")
        except OSError:
            return ""

    def _receive(self) -> None:
        poll = select.epoll()
        poll.register(self._over, select.EPOLLIN)
        by_fd = {}
        for receiver, stream in zip(self._sockets, self.streams, strict=True):
            poll.register(receiver.fileno(), select.EPOLLIN)
            by_fd[receiver.fileno()] = receiver, stream
        with poll:
            while True:
                for fd, _mask in poll.poll():
                    if fd == self._over:
                        return
                    _drain(*by_fd[fd])


def _drain(receiver: socket.socket, stream: Stream) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            data, extra, _flags, _peer = receiver.recvmsg(65535, 64)
            stream.datagrams.append((time.monotonic(), data))
            for level, kind, value in extra:
                if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                    stream.dropped = struct.unpack("I", value[:4])[0]


def arguments(export: Export, interface: str, port: int, control: Path) -> list[str]:
    """softflowd's command line (softflowd(8), 1.1.0). Pure."""
    kinds = ("tcp", "udp", "icmp", "general", "tcp.fin", "tcp.rst")
    times = [word for kind in kinds for word in ("-t", f"{kind}={export.idle_s}")]
    times += ["-t", f"maxlife={export.active_s}", "-t", "expint=0"]
    argv = ["softflowd", "-d", "-i", interface, "-n", f"127.0.0.1:{port}", *_VERSION[export.kind], "-A", "milli",
            "-m", str(_MOST_FLOWS), "-p", os.devnull, "-c", str(control), *times]
    argv += ["-C", str(_SNAP)] if export.kind == "psamp" else []
    argv += ["-s", str(export.sampled)] if export.sampled > 1 else []
    return [*argv, export.only] if export.only else argv


def statistics(text: str) -> dict[str, int]:
    """Of softflowd's statistics: flows that it has not told (`active`), packets that it had no room for (`dropped`)."""
    found: dict[str, int] = {}
    for name, words in (("active", "Number of active flows"), ("dropped", "Packets dropped by libpcap")):
        said = re.search(rf"{words}: (\d+)", text)
        found |= {name: int(said[1])} if said else {}
    return found


def _shim(place: Path) -> Path:
    """What makes softflowd read packets as they come, compiled for this run. Raises ExporterError."""
    made = place / "immediate.so"
    try:
        done = subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(made), str(_SHIM)], capture_output=True,
                              env=tool_env(), check=False)
    except FileNotFoundError:
        raise ExporterError("gcc is not installed; apt-get install -y gcc libc6-dev") from None
    if done.returncode:
        raise ExporterError(f"gcc: {done.stderr.decode(errors='replace').strip()[:200]}")
    return made
