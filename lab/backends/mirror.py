"""Mirror ports: a copy of every frame that enters a segment's bridge, at an interface where a collector can listen.

A SPAN of the whole VLAN, receiving side: each frame once, where it comes in, behind the port's own firewall if one is
there. By nftables at the ports' ingress (`dup`), since not every kernel can mirror with tc. Hosts see nothing of it.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Collection, Iterator, Mapping

from lab.backends.mininet_net import bridge_of, port_of
from lab.isolation import tool_env
from lab.model import Topology

TABLE = "labctl_mirror"


class MirrorError(OSError):
    """A mirror port could not be made; the message says what refused it."""


@contextlib.contextmanager
def mirrored(topology: Topology, segments: Collection[str] | None = None) -> Iterator[Mapping[str, str]]:
    """By segment, the interface that hears a copy of all; for all, or `segments`. Raises MirrorError.

    When the block ends nothing of it is left. Stands in the run's own namespaces, where the bridges are.
    """
    chosen = [name for name in topology.segments if segments is None or name in segments]
    pairs = {name: tuple(f"{end}{bridge_of(topology, name)[1:]}" for end in ("mirror", "span")) for name in chosen}
    try:
        links = [f"link add {out} type veth peer name {heard}" for out, heard in pairs.values()]
        links += [f"link set {device} arp off up" for pair in pairs.values() for device in pair]
        _tool(["ip", "-batch", "-"], "\n".join(["link set lo up", *links]))
        _tool(["nft", "-f", "-"], "\n".join(rules(topology, {name: pair[0] for name, pair in pairs.items()})))
        yield {name: pair[1] for name, pair in pairs.items()}
    finally:
        undo = [["ip", "link", "del", out] for out, _heard in pairs.values()]
        for argv in [["nft", "delete", "table", "netdev", TABLE], *undo]:
            subprocess.run(argv, capture_output=True, env=tool_env(), check=False)


def rules(topology: Topology, outlets: Mapping[str, str]) -> Iterator[str]:
    """The nftables script that copies what enters each port of a segment to its outlet. Pure."""
    yield f"add table netdev {TABLE}"
    for index, segment in enumerate(topology.segments):
        if segment not in outlets:
            continue
        ports = [port_of(topology, host.name) for host in topology.hosts.values() if host.segment == segment]
        devices = ", ".join([*ports, f"r{index}"])
        chain = bridge_of(topology, segment)
        yield (f"add chain netdev {TABLE} {chain} "
               f"{{ type filter hook ingress devices = {{ {devices} }} priority 0; policy accept; }}")
        yield f"add rule netdev {TABLE} {chain} dup to {outlets[segment]}"


def _tool(argv: list[str], text: str) -> None:
    done = subprocess.run(argv, input=(text + "\n").encode(), capture_output=True, env=tool_env(), check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().split("\n", maxsplit=1)[0]
        raise MirrorError(f"mirror port: {argv[0]}: {why}")
