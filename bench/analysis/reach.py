"""How far an attacker gets: the share of hosts taken, and what a matrix of open flows says could be taken. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lab.model import STRANGER, Flow, Observation, Outcome, Topology
from lab.policy import NOBODY, owner_user


@dataclass(frozen=True, slots=True)
class Reach:
    """What open flows offer an attacker: the hosts it could take (the foothold too), the fewest steps to each."""

    hosts: frozenset[str]
    steps: dict[str, int]


def blast_radius(taken: Collection[str], hosts: Collection[str], foothold: str) -> float:
    """The share of the other hosts that was taken, 0..1; 0 where there is no other host."""
    others = set(hosts) - {foothold}
    return len(others & set(taken)) / len(others) if others else 0.0


def reachable(observations: Iterable[Observation], topology: Topology, foothold_host: str, foothold_process: str, *,
              dropped_binary: bool = True) -> Reach:
    """Every host that open TCP flows to vulnerable processes lead to, step by step from the foothold.

    From a taken host the attacker acts as the processes it took, and as an undeclared binary under `nobody` if
    `dropped_binary`. A live campaign may take less (it stops at the first process of a host), never more: a host that
    it took and that is not here means that probe and attack disagree.
    """
    edges = _edges(observations, topology)
    positions = {(foothold_host, foothold_process)}
    steps, frontier, depth = {foothold_host: 0}, set(positions), 0
    while frontier:
        depth += 1
        found = {position for taken in frontier for position in _onward(taken, edges, topology, dropped_binary)}
        frontier = found - positions
        positions |= frontier
        for host, _process in frontier:
            steps.setdefault(host, depth)
    return Reach(frozenset(steps), steps)


Edges = dict[tuple[str, str, str], set[tuple[str, str]]]


def _edges(observations: Iterable[Observation], topology: Topology) -> Edges:
    """(host, process, user) of the source -> the vulnerable (host, process) that answered it."""
    edges: Edges = defaultdict(set)
    for seen in observations:
        if seen.outcome is Outcome.OPEN and seen.flow.proto == "tcp" and _vulnerable(seen.flow, topology):
            flow = seen.flow
            edges[(flow.source, flow.process, flow.user)].add((flow.target, flow.target_process))
    return edges


def _vulnerable(flow: Flow, topology: Topology) -> bool:
    process = topology.processes.get(flow.target_process)
    return process is not None and process.vulnerable


def _onward(taken: tuple[str, str], edges: Edges, topology: Topology, dropped_binary: bool) -> set[tuple[str, str]]:
    host, process = taken
    found = set(edges.get((host, process, owner_user(process, topology)), ()))
    if dropped_binary:
        found |= edges.get((host, STRANGER, NOBODY), set())
    return found
