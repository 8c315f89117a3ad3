"""Hosts that join, move and leave a lab that stands (Mininet backend).

Neighbours are permanent entries in this lab; whoever stays is told of a newcomer's, as ARP and neighbour discovery
would within a millisecond or two. Everything else about a newcomer is as if it had stood from the beginning.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_network

from lab.backends import mininet_net
from lab.backends import switch as switch_side
from lab.backends.mininet_lab import MininetTestbed
from lab.backends.served import LabDownError
from lab.hosts import init_client
from lab.hosts.attempts import Actor
from lab.hosts.roles import actors
from lab.isolation import tool_env
from lab.model import FAMILIES, Host, Point, Topology
from lab.runs import remove_cgroup

JOIN_TIMEOUT_S = 20.0
_AT_ONCE = 8


def without(topology: Topology, name: str) -> Topology:
    """The topology when a host is gone."""
    return replace(topology, hosts={n: host for n, host in topology.hosts.items() if n != name})


def with_host(topology: Topology, host: Host) -> Topology:
    """The topology with a host that is new, or other than it was. A new one comes last."""
    return replace(topology, hosts={**topology.hosts, host.name: host})


class Joined:
    """Hosts that joined after the lab stood up, by name: their makers, ports and processes.

    To be made in, and called from, one thread that lives as long as the lab: a host ends with the thread that made it.
    """

    def __init__(self, testbed: MininetTestbed) -> None:
        self._testbed = testbed
        self._herds: dict[str, subprocess.Popen[bytes]] = {}
        self._next = len(testbed.topology.hosts)

    def join(self, host: Host) -> None:
        """The host stands, wired, its services listening. Raises LabDownError."""
        testbed = self._testbed
        topology = with_host(testbed.topology, host)
        testbed.adopt(topology, host.name, f"p{self._next}")
        self._next += 1
        self._make(host, topology)
        # Where the switch keeps what is its own was mounted after the first hosts; a later one would see it.
        done = testbed.run(host.name, ["umount", "-l", str(switch_side.DIRECTORY)])
        if done.status:
            raise LabDownError(f"lab: {host.name}: {done.stderr.decode(errors='replace').strip()}")
        self._introduce(host, lambda device: _known(host, device))
        # Roles of the newcomer alone: the others serve already.
        testbed.serve_more(_serving(topology, host.name))

    def move(self, host: Host) -> None:
        """A host that is there takes the addresses that it has in `host`; its name, MAC and segment stay."""
        testbed = self._testbed
        before = testbed.topology.hosts[host.name]
        testbed.topology = with_host(testbed.topology, host)
        segment = testbed.topology.segments[host.segment]
        lines = ["addr flush dev eth0 scope global"]
        for family in FAMILIES:
            network = ip_network(segment.v4 if family == 4 else segment.v6)
            gateway = segment.gateway4 if family == 4 else segment.gateway6
            lines += [f"addr add {host.address(family)}/{network.prefixlen} dev eth0",
                      f"route replace {'0.0.0.0/0' if family == 4 else '::/0'} via {gateway} dev eth0"]
        # First the others: what the host sends from its new address is then answered at once.
        self._introduce(host, lambda device: [*_forgotten(before, device), *_known(host, device)])
        self._batch(host.name, lines)

    def leave(self, name: str) -> None:
        """End a host as a machine ends that is switched off and unplugged; returns when its port is gone."""
        testbed = self._testbed
        host = testbed.topology.hosts[name]
        port = testbed.port_of(Point("port", name))
        os.kill(testbed.pid(name), signal.SIGKILL)
        self._herds.pop(name).wait()
        # Not left to the end of its network namespace: an agent that serves the whole lab may hold that.
        subprocess.run(["ip", "link", "del", "dev", port], capture_output=True, check=False, env=tool_env())
        testbed.topology = without(testbed.topology, name)
        self._introduce(host, lambda device: _forgotten(host, device))
        for daemon in (False, True):
            if group := testbed.cgroup_of(name, daemon):
                remove_cgroup(group)
        testbed.socket(name).unlink(missing_ok=True)

    def close(self) -> None:
        """End all that joined."""
        for name, herd in self._herds.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._testbed.pid(name), signal.SIGKILL)
            herd.wait()
        self._herds.clear()

    # --- parts ---

    def _make(self, host: Host, topology: Topology) -> None:
        testbed = self._testbed
        port = testbed.port_of(Point("port", host.name))
        plan = "\n".join(mininet_net.plan_of(topology, host.name, port, testbed.socket(host.name)))
        herd = subprocess.Popen([str(testbed.labhost), "hosts"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)
        assert herd.stdin is not None
        assert herd.stdout is not None
        self._herds[host.name] = herd
        with contextlib.suppress(BrokenPipeError), herd.stdin:
            herd.stdin.write(plan.encode())
        said, deadline = b"", time.monotonic() + JOIN_TIMEOUT_S
        while not said.endswith(b"ready\n"):
            readable = select.select([herd.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
            got = os.read(herd.stdout.fileno(), 4096) if readable else b""
            if not got:
                herd.kill()
                assert herd.stderr is not None
                why = herd.stderr.read().decode(errors="replace").strip().splitlines()
                raise LabDownError(f"lab: {host.name} did not join: {'; '.join(why[:3]) or 'no answer in time'}")
            said += got
        _host, _name, pid = said.splitlines()[0].split()
        testbed.know_pid(host.name, int(pid))

    def _introduce(self, host: Host, lines: Callable[[str], list[str]]) -> None:
        """Everybody else in the segment and the router hear of it."""
        topology = self._testbed.topology
        told = [(other.name, "eth0") for other in topology.hosts.values()
                if other.segment == host.segment and other.name != host.name]
        told.append((topology.router, f"eth{list(topology.segments).index(host.segment)}"))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda one: self._batch(one[0], lines(one[1])), told):
                pass

    def _batch(self, host: str, lines: list[str]) -> None:
        done = init_client.run(self._testbed.socket(host), ["ip", "-force", "-batch", "-"],
                               "\n".join([*lines, ""]).encode())
        # A neighbour that is not there any more need not be forgotten.
        said = [line for line in done.stderr.decode(errors="replace").splitlines()
                if "No such file" not in line and "Command failed" not in line]
        if said:
            raise LabDownError(f"lab: {host}: {said[0]}")


def _known(host: Host, device: str) -> list[str]:
    return [f"neigh replace {host.address(family)} lladdr {host.mac} dev {device} nud permanent" for family in FAMILIES]


def _forgotten(host: Host, device: str) -> list[str]:
    return [f"neigh del {host.address(family)} dev {device}" for family in FAMILIES]


def _serving(topology: Topology, name: str) -> frozenset[Actor]:
    return frozenset(actor for actor in actors(topology) if actor.host == name)


@contextlib.contextmanager
def joining(testbed: MininetTestbed) -> Iterator[Joined]:
    """Hosts may join and leave in the block; whoever is still there at its end is ended."""
    joined = Joined(testbed)
    try:
        yield joined
    finally:
        joined.close()
