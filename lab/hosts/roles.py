"""Who runs where, and what each service is told to do: pure, from the topology alone."""

from __future__ import annotations

from collections.abc import Iterable

from lab.hosts import scripts
from lab.hosts.attempts import Actor
from lab.model import STRANGER, Flow, Topology
from lab.policy import NOBODY, offered

OBSERVER = "(observer)"  # proves that echo requests arrived; sends nothing
STRANGER_PATH = "/run/host/stranger"
OBSERVER_PATH = "/run/host/observer"


def actors(topology: Topology, flows: Iterable[Flow] = ()) -> frozenset[Actor]:
    """Every process that has to run: as declared, an undeclared one and an observer a host, and who `flows` ask for."""
    wanted = {Actor(flow.source, flow.process, flow.user) for flow in flows}
    for host in topology.hosts.values():
        wanted.add(Actor(host.name, STRANGER, NOBODY))
        wanted.add(Actor(host.name, OBSERVER, "root"))
        wanted.update(Actor(host.name, name, topology.processes[name].user) for name in host.runs)
    return frozenset(wanted)


def path_of(topology: Topology, process: str) -> str:
    """The executable path of a process, declared or not."""
    special = {STRANGER: STRANGER_PATH, OBSERVER: OBSERVER_PATH}
    return special.get(process) or topology.processes[process].path


def command_of(topology: Topology, process: str) -> list[str]:
    """What a process is started with, before its own arguments."""
    declared = topology.processes.get(process)
    return scripts.command(declared) if declared else [path_of(topology, process)]


def listeners(topology: Topology) -> dict[Actor, dict[str, tuple[int, ...]]]:
    """What each service listens on, by protocol: its declared ports and its wrong port."""
    found: dict[Actor, dict[str, list[int]]] = {}
    for host, offers in offered(topology).items():
        for process, proto, port in offers:
            if proto == "icmp" or serves_itself(topology, process, proto, port):
                continue
            user = NOBODY if process == STRANGER else topology.processes[process].user
            found.setdefault(Actor(host, process, user), {}).setdefault(proto, []).append(port)
    return {actor: {proto: tuple(ports) for proto, ports in by.items()} for actor, by in found.items()}


def serves_itself(topology: Topology, process: str, proto: str, port: int) -> bool:
    """Whether a real program listens there, and no built-in service may."""
    declared = topology.processes.get(process)
    return declared is not None and declared.real and any(
        s.proto == proto and s.low <= port <= s.high for s in declared.listens)


def real_ports(topology: Topology) -> dict[str, tuple[tuple[str, int], ...]]:
    """By host, (protocol, port) that real programs serve there."""
    found = {host: tuple((o.proto, o.port) for o in offers if serves_itself(topology, o.process, o.proto, o.port))
             for host, offers in offered(topology).items()}
    return {host: ports for host, ports in found.items() if ports}


def calls(topology: Topology) -> dict[Actor, tuple[tuple[str, int], ...]]:
    """Whom each service calls when it serves a request: (IPv4 address, first TCP port) of every host of each callee."""
    found = {}
    for host in topology.hosts.values():
        for name in host.runs:
            process = topology.processes[name]
            targets = [(peer.v4, port) for callee in process.calls
                       for peer in topology.seen_by(host.name).hosts.values()
                       if callee in peer.runs and (port := _first_tcp(topology, callee)) is not None]
            if targets:
                found[Actor(host.name, name, process.user)] = tuple(targets)
    return found


def _first_tcp(topology: Topology, process: str) -> int | None:
    return next((s.low for s in topology.processes[process].listens if s.proto == "tcp"), None)
