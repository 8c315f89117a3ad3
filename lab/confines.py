"""Whether anything that hosts of a lab send could leave it: every device of every namespace, with its other end.

The namespaces of a run are new, and labctl alone makes their devices. This asks the kernel, not labctl's memory: what
is up must be loopback, a bridge, or one end of a pair whose other end is in a namespace of the same lab.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lab.backends.served import ServedTestbed
from lab.isolation import tool_env

_SHOW = ("ip", "-j", "-d", "link", "show")
_INWARD = frozenset({"bridge", "ifb", "dummy", "ovs-system"})  # they have no other end
_WORKERS = 8


class EscapeError(RuntimeError):
    """Something could leave the lab; the message names the device and the host."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device: `kind` is what made it, empty for one of hardware; `peer` the index of a pair's other end."""

    name: str
    index: int
    kind: str
    up: bool
    peer: int = 0


def devices(shown: Sequence[Mapping[str, Any]]) -> tuple[Device, ...]:
    """What `ip -j -d link show` says."""
    return tuple(Device(one["ifname"], one["ifindex"], _kind(one), "UP" in one["flags"], one.get("link_index", 0))
                 for one in shown if one)


def _kind(one: Mapping[str, Any]) -> str:
    return "loopback" if one.get("link_type") == "loopback" else str(one.get("linkinfo", {}).get("info_kind", ""))


def strays(places: Mapping[str, Iterable[Device]]) -> list[str]:
    """Devices that lead out, as `device of place (why)`; `places`: the devices of every namespace of the lab. Pure."""
    every = [(place, device) for place, listed in places.items() for device in listed if device.up]
    ends = Counter((device.index, device.peer) for _place, device in every if device.kind == "veth")
    found = []
    for place, device in every:
        if device.kind in _INWARD or device.kind == "loopback":
            continue
        if device.kind != "veth":
            found.append(f"{device.name} of {place} ({device.kind or 'hardware'})")
        elif ends[device.peer, device.index] < ends[device.index, device.peer]:
            found.append(f"{device.name} of {place} (its other end is in no namespace of the lab)")
    return found


def check(testbed: ServedTestbed) -> int:
    """How many devices there are, none of which leads out of the lab. Raises EscapeError."""
    def on(host: str) -> tuple[Device, ...]:
        return devices(json.loads(testbed.run(host, _SHOW).stdout or b"[]"))

    names = [testbed.topology.router, *testbed.topology.hosts]
    with ThreadPoolExecutor(_WORKERS) as pool:
        places = dict(zip(names, pool.map(on, names), strict=True))
    shown = subprocess.run(_SHOW, capture_output=True, check=True, env=tool_env())
    places["the switch"] = devices(json.loads(shown.stdout))
    if blind := [name for name in names if not any(device.kind == "loopback" for device in places[name])]:
        raise EscapeError(f"attack: the devices of {blind[0]} could not be read, so no packet is sent")
    if out := strays(places):
        raise EscapeError(f"attack: {out[0]} leads out of the lab, so no packet is sent")
    return sum(len(listed) for listed in places.values())
