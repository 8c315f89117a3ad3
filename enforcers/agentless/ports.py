"""Whose switch ports an arm guards, and which flows come by one. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from lab.model import Flow, Host, Topology


def guarded(topology: Topology) -> Iterator[Host]:
    """Every host of the site: those outside of it are at nobody's port."""
    return (host for host in topology.hosts.values() if not host.external)


def comes_by(flow: Flow, topology: Topology) -> bool:
    """The flow leaves its host, and one of its ends is at a guarded port."""
    if flow.source == flow.target:
        return False
    return not (topology.hosts[flow.source].external and topology.hosts[flow.target].external)
