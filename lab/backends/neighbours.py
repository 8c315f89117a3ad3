"""Whom the hosts of a segment know without asking, as lines of `ip -batch`. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from lab.model import FAMILIES, Host, Topology


def forgotten(host: Host, topology: Topology) -> Iterator[str]:
    """Let `host` forget the others of its segment, so that it asks for them; it still knows the router."""
    return (f"neigh del {address} dev eth0" for address, _ in _others(host, topology))


def known(host: Host, topology: Topology) -> Iterator[str]:
    """Let `host` know the others of its segment again, for good, as when the lab stood up."""
    return (f"neigh replace {address} lladdr {mac} dev eth0 nud permanent" for address, mac in _others(host, topology))


def _others(host: Host, topology: Topology) -> Iterator[tuple[str, str]]:
    for other in topology.hosts.values():
        if other.segment == host.segment and other is not host:
            yield from ((other.address(family), other.mac) for family in FAMILIES)
