"""What is planted at an enforcement point, put there and taken away. Runs on the point; standard library only.

    python3 fault.py start|ready|collect|stop DIRECTORY

`fault.json` in DIRECTORY says what: "nft" (a rule set), "cap" (a queue with a rate towards an address), "delay" (a
busy wait on packets towards an address, delay.bpf.c), and the commands of an honest enforcer underneath ("base").
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TABLE = "labctl_liar"
BUCKETS, BUCKET_NS = 16384, 100  # as in delay.bpf.c
_WHAT = {"syn": 0, "request": 1}
# bpf(2): numbers and layouts of include/uapi/linux/bpf.h
_SYSCALL = {"x86_64": 321, "aarch64": 280}
_UPDATE, _PROG_BY_ID, _MAP_BY_ID, _INFO, _LOOKUP_BATCH = 2, 13, 14, 15, 24
_libc = ctypes.CDLL(None, use_errno=True)


def start(directory: Path, fault: dict[str, Any]) -> None:
    for argv in fault["base"].get("up", ()):
        _run(argv)
    if nft := fault.get("nft"):
        _run(["nft", "-f", "-"], nft)
    if cap := fault.get("cap"):
        # A bucket of less than 64 KiB would cut the large packets of virtual links into wire-sized ones.
        _run(["tc", "qdisc", "replace", "dev", device(cap["address"]), "root", "tbf", "rate", cap["rate"],
              "burst", "256k", "latency", "100ms"])
    if wait := fault.get("delay"):
        dev = device(wait["address"])
        _run(["tc", "qdisc", "replace", "dev", dev, "clsact"])
        _run(["tc", "filter", "replace", "dev", dev, "egress", "pref", "1", "handle", "1", "bpf", "da", "obj",
              str(directory / "delay.o"), "sec", "tc"])
        plan = struct.pack("<QQQII", wait["wait_ns"], wait["ramp_ns"], time.monotonic_ns(), wait["port"],
                           _WHAT[wait["what"]])
        with _map(dev, b"plans") as plans:
            plans.put(plan)


def ready(_directory: Path, fault: dict[str, Any]) -> None:
    if argv := fault["base"].get("ready"):
        _run(argv)


def collect(directory: Path, fault: dict[str, Any]) -> None:
    """The honest telemetry underneath, then one header line of what was really planted until now."""
    if argv := fault["base"].get("collect"):
        print(_run(argv), end="", flush=True)
    print(json.dumps({"t": "header", **planted(directory, fault)}))


def stop(directory: Path, fault: dict[str, Any]) -> None:
    if fault.get("delay"):
        sums(directory, fault).write_text(json.dumps(_waits(directory, fault)))
        _run(["tc", "qdisc", "del", "dev", device(fault["delay"]["address"]), "clsact"])
    if cap := fault.get("cap"):
        _run(["tc", "qdisc", "del", "dev", device(cap["address"]), "root"])
    if fault.get("nft"):
        _run(["nft", "delete", "table", "inet", TABLE])
    for argv in fault["base"].get("down", ()):
        _run(argv)


def planted(directory: Path, fault: dict[str, Any]) -> dict[str, Any]:
    """How many packets the rule set dropped, how many waits there were, and their median as the kernel timed them."""
    found: dict[str, Any] = {"planted": fault["name"]}
    if fault.get("nft"):
        listing = json.loads(_run(["nft", "-j", "list", "table", "inet", TABLE]))
        found["dropped"] = sum(part["counter"]["packets"] for one in listing["nftables"] if "rule" in one
                               for part in one["rule"]["expr"] if "counter" in part)
    if fault.get("delay"):
        waits = {int(bucket): count for bucket, count in _waits(directory, fault).items()}
        found["waits"], found["wait_p50_ns"] = sum(waits.values()), _median_ns(waits)
    return found


def sums(directory: Path, fault: dict[str, Any]) -> Path:
    return directory / f"{fault['name']}.waits"


def device(address: str) -> str:
    """The interface that leads to `address`."""
    (route,) = json.loads(_run(["ip", "-j", "route", "get", address]))
    return str(route["dev"])


def _waits(directory: Path, fault: dict[str, Any]) -> dict[str, int]:
    """Waits by bucket: those of earlier times that this was in place, and those since."""
    kept = sums(directory, fault)
    waits: dict[str, int] = json.loads(kept.read_text()) if kept.exists() else {}
    try:
        opened = _map(device(fault["delay"]["address"]), b"waited")
    except LookupError:  # it is not in place now
        return waits
    with opened as waited:
        for bucket, count in enumerate(waited.all()):
            if count:
                waits[str(bucket)] = waits.get(str(bucket), 0) + count
    return waits


def _median_ns(waits: dict[int, int]) -> float | None:
    half, seen = sum(waits.values()) / 2, 0
    for bucket in sorted(waits):
        seen += waits[bucket]
        if seen >= half:
            return float(bucket * BUCKET_NS + BUCKET_NS / 2)
    return None


def _run(argv: list[str], text: str = "") -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(argv)[:80]}: {(done.stderr or done.stdout).strip()[:200]}")
    return done.stdout


class _Map:
    """An open map with 32-bit keys."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> _Map:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def put(self, value: bytes) -> None:
        key, data = ctypes.create_string_buffer(4), ctypes.create_string_buffer(value, len(value))
        _bpf(_UPDATE, struct.pack("<IIQQQ", self.fd, 0, ctypes.addressof(key), ctypes.addressof(data), 0))

    def all(self) -> tuple[int, ...]:
        token, keys = ctypes.create_string_buffer(4), ctypes.create_string_buffer(4 * BUCKETS)
        values = ctypes.create_string_buffer(8 * BUCKETS)
        attr = struct.pack("<QQQQIIQQ", 0, ctypes.addressof(token), ctypes.addressof(keys), ctypes.addressof(values),
                           BUCKETS, self.fd, 0, 0)
        _bpf(_LOOKUP_BATCH, attr)
        return struct.unpack(f"<{BUCKETS}Q", values.raw)


def _map(dev: str, name: bytes) -> _Map:
    """The map `name` of the program that sends through `dev` pass. Raises LookupError where there is none."""
    listing = json.loads(_run(["tc", "-j", "filter", "show", "dev", dev, "egress"]) or "[]")
    programs = [one["options"]["prog"]["id"] for one in listing if "prog" in one.get("options", {})]
    for program in programs:
        for identifier in _map_ids(program):
            fd = _bpf(_MAP_BY_ID, struct.pack("<III", identifier, 0, 0))
            info = _info(fd, 80)
            if info[24:40].rstrip(b"\0") == name:
                return _Map(fd)
            os.close(fd)
    raise LookupError(f"no program on {dev} has a map {name.decode()}")


def _map_ids(program: int) -> tuple[int, ...]:
    fd = _bpf(_PROG_BY_ID, struct.pack("<III", program, 0, 0))
    try:
        ids = ctypes.create_string_buffer(4 * 8)
        # struct bpf_prog_info: nr_map_ids at 52, map_ids at 56
        info = _info(fd, 80, struct.pack("<IQ", 8, ctypes.addressof(ids)), 52)
        return struct.unpack(f"<{(count := struct.unpack_from('<I', info, 52)[0])}I", ids.raw[:4 * count])
    finally:
        os.close(fd)


def _info(fd: int, size: int, given: bytes = b"", at: int = 0) -> bytes:
    info = ctypes.create_string_buffer(bytes(at) + given, size)
    _bpf(_INFO, struct.pack("<IIQ", fd, size, ctypes.addressof(info)))
    return info.raw


def _bpf(command: int, attributes: bytes) -> int:
    attr = ctypes.create_string_buffer(attributes, 128)
    got: int = _libc.syscall(_SYSCALL[platform.machine()], command, attr, 128)
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got


def main() -> int:
    verb, directory = sys.argv[1], Path(sys.argv[2])
    fault = json.loads((directory / "fault.json").read_text())
    {"start": start, "ready": ready, "collect": collect, "stop": stop}[verb](directory, fault)
    return 0


if __name__ == "__main__":
    sys.exit(main())
