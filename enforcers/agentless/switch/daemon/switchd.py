"""The switch as the daemon holds it: the program, its ports, its policies, what was seen at each port.

All that has to outlive it is in the kernel, pinned, or in files: who kills it and starts another cuts nothing and opens
nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.bpf import syscall
from lab.bpf.libbpf import BpfObject
from lab.bpf.ring import Ring
from lab.bpf.ring import joined as joined_ring
from lab.bpf.ring import split as split_ring
from lab.bpf.syscall import Map

from . import layout
from .spool import Spool
from .tables import Policies

DIRECTORY = Path("/run/switch")
PINS = DIRECTORY / "bpf"
MAPS = ("ports", "tenants", "flows", "openings", "closings", "turns", "fragments", "records", "counters", "addresses",
        "prefixes", "service_classes", "verdicts")
PROGRAMS = ("from_host", "to_host")
SPOOL_BYTES = 32 << 20
_AT_ONCE = 16384  # records in a portion of the spool
_INDEX = struct.Struct("=I")
_LOOKUP = 1
_MNT_DETACH = 2
_SOURCE = "switch"  # what our mount says it is of
_libc = ctypes.CDLL(None, use_errno=True)


class Switch:
    """Every port of this switch that is guarded. What it does to the kernel outlives it: a new one takes over."""

    def __init__(self, program: bytes) -> None:
        PINS.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.ismount(PINS):
            _mount_bpf(PINS)
        again = (PINS / "flows").exists()
        if not again:
            _forget_files()
            _load(program)
        self.maps = {name: Map.at(PINS / name) for name in MAPS}
        self.programs = {name: syscall.pinned(PINS / name) for name in PROGRAMS}
        self.ring = Ring(self.maps["records"].fd)
        self.policies = Policies(self.maps, DIRECTORY)
        self.ports: dict[str, int] = {}
        self._spool = Spool(DIRECTORY, SPOOL_BYTES)
        self._by_port: dict[int, list[layout.Seen]] = {}
        self._runs = self._run_ns = 0
        if again:
            self.ring.skip(self._spool.last())  # who was killed may have kept it and not have said so
            self._adopt()

    # --- ports ---

    def attach(self, interface: str, port: dict[str, Any]) -> None:
        """Guard a port: from now on nothing passes there unjudged."""
        index = socket.if_nametoindex(interface)
        if index >= layout.PORTS:
            raise OSError(f"{interface}: its index {index} is beyond {layout.PORTS}: so many interfaces were made here "
                          "since this machine started; start it again")
        self.maps["ports"].put(_INDEX.pack(index), layout.port_value(port, int(port["tenant"])))
        _link(interface, index, self.programs)
        self.ports[interface] = index

    def detach(self, interface: str) -> None:
        """Leave a port as it was, and forget its flows."""
        index = self.ports.pop(interface, None)
        _unlink(interface)
        if index is not None:
            self.maps["ports"].put(_INDEX.pack(index), layout.NOBODYS_PORT)
            flows = self.maps["flows"]
            for key, _flow in flows.items():
                if _INDEX.unpack_from(key)[0] == index:
                    flows.delete(key)

    def close(self) -> None:
        """Take everything away: the last port is gone."""
        self.ring.close()
        self._spool.clear()
        self.policies.forget()
        for one in self.maps.values():
            one.close()
        for fd in self.programs.values():
            os.close(fd)
        _clear()

    # --- telemetry ---

    def drain(self) -> None:
        """Move what has ended from the kernel's ring to ours; the oldest goes where there is no room."""
        with contextlib.suppress(OSError):  # a full disk: it waits in the ring, where what has no room is counted
            self.ring.drain(self._spool.append)

    def sweep(self) -> None:
        """Forget flows that have been silent for too long; those that nobody was told of are told now."""
        now, flows = time.clock_gettime_ns(time.CLOCK_MONOTONIC), self.maps["flows"]
        silent = [(key, value) for key, value in flows.items() if struct.unpack_from("=Q", value, 8)[0] < now]
        records = [layout.record(key, value) for key, value in silent if not layout.seen(key, value).told]
        try:
            for at in range(0, len(records), _AT_ONCE):
                self._spool.append(joined_ring(records[at : at + _AT_ONCE]))
        except OSError:  # a full disk: they stay in the table, and are told again, rather than lost
            return
        for key, _value in silent:
            flows.delete(key)

    def sort(self) -> None:
        """By port: what has ended since the last time."""
        self.drain()
        for content in self._spool.take():
            for record in split_ring(content):
                one = layout.seen(*layout.split(record))
                self._by_port.setdefault(one.port, []).append(one)

    def told(self, interface: str) -> Iterator[str]:
        """Lines of telemetry: what ended at a port since the last call, and what goes on there."""
        index = self.ports[interface]
        self.sort()
        for one in self._by_port.pop(index, []):
            yield self._line(one)
        for key, value in self.maps["flows"].items():
            if _INDEX.unpack_from(key)[0] == index:
                one = layout.seen(key, value)
                if not one.told:
                    yield self._line(one)

    def header(self) -> str:
        """What the switch as a whole counted. `kernel_s`: time in the program, inside of the senders' own CPU time."""
        counted = {name: self._count(index) for index, name in enumerate(layout.COUNTERS)}
        each = self._run_ns / self._runs if self._runs else None
        lost = self._spool.lost // (layout.RECORD_BYTES + 8)
        return json.dumps({"t": "header", "counters": counted, "lost": lost, "sampled_runs": self._runs,
                           "ns_per_run": each, "kernel_s": counted["seen"] * each / 1e9 if each else None})

    @contextlib.contextmanager
    def sampled(self) -> Iterator[None]:
        """While it lasts the kernel times the program's runs. Without the right to that, nothing is known."""
        before = [syscall.run_cost(fd) for fd in self.programs.values()]
        try:
            with syscall.run_statistics():
                yield
        except PermissionError:
            yield
            return
        for (runs, spent), fd in zip(before, self.programs.values(), strict=True):
            count, total = syscall.run_cost(fd)
            self._runs += count - runs
            self._run_ns += total - spent

    # --- parts ---

    def _line(self, one: layout.Seen) -> str:
        names = self.policies.rules.get(one.generation, [])
        rule = names[one.rule] if one.rule < len(names) else None
        return json.dumps({"t": "flow", "time": one.start_ns / 1e9, "proto": one.proto, "source": one.source,
                           "sport": one.sport, "target": one.target, "dport": one.dport, "bytes": one.bytes,
                           "packets": one.packets, "verdict": "allow" if one.allowed else "deny", "rule": rule})

    def _count(self, index: int) -> int:
        key = ctypes.create_string_buffer(_INDEX.pack(index), 4)
        values = ctypes.create_string_buffer(8 * _possible_cpus())
        syscall.bpf(_LOOKUP, struct.pack("<IIQQQ", self.maps["counters"].fd, 0, syscall.address(key),
                                         syscall.address(values), 0))
        return sum(struct.unpack(f"={len(values) // 8}Q", values.raw))

    def _adopt(self) -> None:
        self.policies.adopt()
        for interface in _guarded():
            with contextlib.suppress(OSError):  # the port went while nobody looked
                self.ports[interface] = socket.if_nametoindex(interface)


# --- the kernel's side ---------------------------------------------------------------------------------


def _load(program: bytes) -> None:
    with BpfObject(program) as loaded:
        loaded.load()
        for name in PROGRAMS:
            syscall.pin(loaded.program(name), PINS / name)
        for name in MAPS:
            syscall.pin(loaded.map(name), PINS / name)


def _link(interface: str, index: int, programs: dict[str, int]) -> None:
    """As a link of the interface (Linux 6.6), which costs a packet less, else as a filter of clsact.

    What an earlier daemon left there stays: a port that is let go for a moment passes what nobody judges, and cuts what
    is being opened then.
    """
    for suffix, name, where in (("in", "from_host", syscall.TCX_INGRESS), ("out", "to_host", syscall.TCX_EGRESS)):
        pin = PINS / f"{suffix}_{interface}"
        if _stands(pin, index, programs[name]):
            continue
        pin.unlink(missing_ok=True)
        try:
            fd = syscall.link(programs[name], index, where)
        except OSError:
            return _filter(interface)
        syscall.pin(fd, pin)
        os.close(fd)
    return None


def _stands(pin: Path, index: int, program: int) -> bool:
    """Whether a link is pinned there that runs this program at this interface; one whose interface went has index 0."""
    try:
        held = syscall.pinned(pin)
    except OSError:
        return False
    try:
        runs, there = struct.unpack_from("=8xI4xI", syscall.info(held))
    finally:
        os.close(held)
    return bool((runs, there) == (struct.unpack_from("=4xI", syscall.info(program))[0], index))


def _filter(interface: str) -> None:
    _tc("qdisc", "replace", "dev", interface, "clsact")
    for direction, name in (("ingress", "from_host"), ("egress", "to_host")):
        _tc("filter", "replace", "dev", interface, direction, "pref", "1", "handle", "1", "bpf", "direct-action",
            "object-pinned", str(PINS / name))


def _unlink(interface: str) -> None:
    pins = [PINS / f"{suffix}_{interface}" for suffix in ("in", "out")]
    if any(pin.exists() for pin in pins):
        for pin in pins:
            pin.unlink(missing_ok=True)
    else:
        subprocess.run(["tc", "qdisc", "del", "dev", interface, "clsact"], capture_output=True, check=False)


def abandon(interface: str) -> None:
    """Take a port back from a daemon that is no more, and the program with the last."""
    _unlink(interface)
    if os.path.ismount(PINS) and not _guarded():
        _clear()
        _forget_files()


def _guarded() -> list[str]:
    return [pin.name.removeprefix("in_") for pin in PINS.glob("in_*")]


def _clear() -> None:
    """In a container the file system is the engine's, which mounted it, and stays."""
    for name in (*MAPS, *PROGRAMS):  # no port's are left; two files there are the kernel's own
        (PINS / name).unlink(missing_ok=True)
    if _mounted_by_us():
        _libc.umount2(os.fsencode(PINS), _MNT_DETACH)


def _forget_files() -> None:
    """What a switch that is no more has kept says nothing of the next one, whose generations begin anew."""
    for pattern in ("spool.*", "in-force.*"):
        for path in DIRECTORY.glob(pattern):
            path.unlink(missing_ok=True)


def _mounted_by_us() -> bool:
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return any(words[4] == str(PINS) and words[words.index("-") + 2] == _SOURCE for words in lines)


def _tc(*words: str) -> None:
    done = subprocess.run(["tc", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"tc {' '.join(words)}: {done.stderr.strip()}")


def _mount_bpf(where: Path) -> None:
    if _libc.mount(_SOURCE.encode(), os.fsencode(where), b"bpf", ctypes.c_ulong(0x2 | 0x4 | 0x8), b"mode=700"):
        err = ctypes.get_errno()
        raise OSError(err, f"a bpf file system cannot be mounted: {os.strerror(err)}", str(where))


def _possible_cpus() -> int:
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().rpartition("-")[2]
    return int(last) + 1
