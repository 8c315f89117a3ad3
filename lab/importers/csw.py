"""A real enterprise's traffic as a scenario: hosts, a policy learnt from the first hours, the later hours kept apart.

What the data does not say (ports, processes, segments, vulnerability, foothold, goal) is invented by rules that are
seeded, and listed in the file under `invented`. Pure but for reading the data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from lab.importers.csw_data import CswError, Graph, Triple, read_graph

__all__ = ["CswError", "ImportedScenario", "import_csw"]

PORT_BASE = 10000
SEGMENTS = 6
VULNERABLE_SHARE = 0.1
PROTOCOLS = {6: "tcp", 17: "udp"}
UNGROUPED = "none"
_MAX_CODE = 50000  # port 60000: what is above belongs to the probe


@dataclass(frozen=True, slots=True)
class ImportedScenario:
    """The scenario file's text, and how much is in it. `left_out`: what was not taken over, as sentences."""

    text: str
    hosts: int
    rules: int
    foreseen: int
    unforeseen: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is taken from the data, and all that was invented beside it."""

    name: str
    nodes: tuple[int, ...]
    group_of: Mapping[int, str]  # UNGROUPED for a node without one
    hours: Mapping[Triple, tuple[int, ...]]
    train_hours: int
    segment_of: Mapping[int, str]
    vulnerable: frozenset[int]
    foothold: int | None
    goal: int | None

    def learnt(self, triple: Triple) -> bool:
        return self.hours[triple][0] < self.train_hours


def import_csw(
    directory: Path,
    *,
    nodes: Literal["grouped", "all"] = "grouped",
    train_hours: int = 24,
    seed: int = 1,
    arms: Collection[str] = ("none", "agent-nft", "chokepoint"),
    policy_level: Literal["group", "host"] = "group",
) -> ImportedScenario:
    """The scenario of the graph in `directory`. Raises CswError.

    `nodes`: those with a known group, active or not; or all that are active. `train_hours`: the policy is learnt from
    so many first hours.
    `policy_level`: rules between groups (nodes without one by host), or between hosts.
    """
    graph = read_graph(directory)
    if not 1 <= train_hours < graph.hour_count:
        raise CswError(f"{directory}: has {graph.hour_count} hours; train on 1 to {graph.hour_count - 1} of them")
    plan, left_out = _planned(graph, nodes, train_hours, seed)
    rules = tuple(_rules(plan, policy_level))
    text = "\n".join([*_head(plan), *_topology(plan), *_processes(plan), *_policy(rules), *_rest(plan, seed, arms),
                      *_invented(plan, policy_level, left_out), ""])  # fmt: skip
    learnt = sum(map(plan.learnt, plan.hours))
    return ImportedScenario(text, len(plan.nodes), len(rules), learnt, len(plan.hours) - learnt, left_out)


# --- what is taken, what is invented ----------------------------------------------------------


def _planned(graph: Graph, nodes: str, train_hours: int, seed: int) -> tuple[_Plan, tuple[str, ...]]:
    named = {node: f"g{number:02d}" for number, group in enumerate(graph.groups, 1) for node in group}
    active = {node for triple in graph.hours for node in triple[:2]}
    taken = tuple(sorted(named if nodes == "grouped" else active))
    members = set(taken)
    hours = {t: seen for t, seen in graph.hours.items() if {t.client, t.server} <= members and _usable(t)}
    rng = random.Random(seed)
    group_of = {node: named.get(node, UNGROUPED) for node in taken}
    segment_of = _segments(taken, group_of, rng)
    servers = sorted({triple.server for triple in hours})
    vulnerable = rng.sample(servers, max(1, round(VULNERABLE_SHARE * len(servers)))) if servers else []
    goal = _busiest(hours)
    starts = sorted({t.client for t, seen in hours.items() if seen[0] < train_hours and t.client != goal})
    foothold = rng.choice(starts) if starts and goal is not None else None
    plan = _Plan(
        f"{graph.name}-{nodes}", taken, group_of, hours, train_hours, segment_of,
        frozenset([*vulnerable, *([] if goal is None else [goal])]), foothold, goal,
    )  # fmt: skip
    return plan, tuple(_left_out(graph, members, named))


def _usable(triple: Triple) -> bool:
    return triple.protocol in PROTOCOLS and 1 <= triple.code <= _MAX_CODE


def _left_out(graph: Graph, taken: Collection[int], named: Collection[int]) -> Iterator[str]:
    """What the data has and the scenario has not; nothing is said of what was complete."""
    counts = {
        "triples of protocols other than 6 (tcp) and 17 (udp)": sum(t.protocol not in PROTOCOLS for t in graph.hours),
        f"triples with a service code outside 1 to {_MAX_CODE}": sum(not 1 <= t.code <= _MAX_CODE for t in graph.hours),
        "triples with an end among the nodes not taken": sum(
            not (t.client in taken and t.server in taken) for t in graph.hours
        ),
        "nodes that have a group and no traffic": len(set(named) - set(taken)),
    }
    return (f"left out: {count} {what}" for what, count in counts.items() if count)


def _segments(nodes: Sequence[int], group_of: Mapping[int, str], rng: random.Random) -> dict[int, str]:
    """Whole groups, and ungrouped nodes one by one, each dealt in a shuffled order over the segments."""
    groups = sorted(set(group_of.values()) - {UNGROUPED})
    loose = [node for node in nodes if group_of[node] == UNGROUPED]
    rng.shuffle(groups)
    rng.shuffle(loose)
    of_group = {group: f"s{number % SEGMENTS + 1}" for number, group in enumerate(groups)}
    of_loose = {node: f"s{number % SEGMENTS + 1}" for number, node in enumerate(loose)}
    return {node: of_loose[node] if node in of_loose else of_group[group_of[node]] for node in nodes}


def _busiest(hours: Iterable[Triple]) -> int | None:
    """The server with the most clients; among several the lowest number."""
    clients: dict[int, set[int]] = {}
    for triple in hours:
        if triple.client != triple.server:
            clients.setdefault(triple.server, set()).add(triple.client)
    return min(clients, key=lambda node: (-len(clients[node]), node), default=None)


# --- the learnt policy ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class _End:
    """One end of a rule: the label or the host, by name."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class _LearntRule:
    sources: tuple[_End, ...]  # all with one key
    target: _End
    services: tuple[str, ...]


def _rules(plan: _Plan, level: str) -> Iterator[_LearntRule]:
    """Least privilege: per pair of ends exactly the services seen; sources with the same ones are merged."""
    used: dict[tuple[_End, _End], set[tuple[str, int]]] = {}
    for triple in filter(plan.learnt, plan.hours):
        pair = (_end(triple.client, plan, level), _end(triple.server, plan, level))
        used.setdefault(pair, set()).add((PROTOCOLS[triple.protocol], PORT_BASE + triple.code))
    merged: dict[tuple[_End, str, tuple[str, ...]], list[_End]] = {}
    for (source, target), services in sorted(used.items(), key=lambda item: item[0]):
        merged.setdefault((target, source.key, tuple(_ranges(services))), []).append(source)
    for (target, _key, ports), sources in merged.items():
        yield _LearntRule(tuple(sources), target, ports)


def _end(node: int, plan: _Plan, level: str) -> _End:
    group = plan.group_of[node]
    return _End("host", f"n{node}") if level == "host" or group == UNGROUPED else _End("group", group)


def _ranges(services: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Ports as they are written, neighbours as one range; exact."""
    for (proto, _), run in groupby(enumerate(sorted(services)), key=lambda item: (item[1][0], item[1][1] - item[0])):
        ports = [port for _, (_, port) in run]
        yield f"{ports[0]}/{proto}" if len(ports) == 1 else f"{ports[0]}-{ports[-1]}/{proto}"


# --- the file ---------------------------------------------------------------------------------


def _head(plan: _Plan) -> Iterator[str]:
    yield "# Traffic of a real enterprise, with a policy learnt from its first hours."
    yield '# Data: "A Dataset of Networks of Computing Hosts" (Madani, Averineni, Gandham; IWSPA 2022). Cite it.'
    yield "# What the data does not say is invented; see the end of this file."
    yield "version: 1"
    yield f"name: {plan.name}"


def _topology(plan: _Plan) -> Iterator[str]:
    used = sorted(set(plan.segment_of.values()))
    yield "topology:"
    yield f"  segments: {{{', '.join(f'{segment}: {{}}' for segment in used)}}}"
    yield "  hosts:"
    for node in plan.nodes:
        value = ", value: crown-jewel" if node == plan.goal else ""
        labels = f"{{group: {plan.group_of[node]}{value}}}"
        yield f"    n{node}: {{segment: {plan.segment_of[node]}, labels: {labels}, runs: [n{node}d]}}"


def _processes(plan: _Plan) -> Iterator[str]:
    listens: dict[int, set[tuple[str, int]]] = {node: set() for node in plan.nodes}
    for triple in plan.hours:
        listens[triple.server].add((PROTOCOLS[triple.protocol], PORT_BASE + triple.code))
    yield "processes:"
    directory = plan.name.split("-", maxsplit=1)[0]
    for node in plan.nodes:
        group = plan.group_of[node]
        ports = f", listens: [{', '.join(_ranges(listens[node]))}]" if listens[node] else ""
        vulnerable = ", vulnerable: true" if node in plan.vulnerable else ""
        user = "ungrouped" if group == UNGROUPED else group
        yield f"  n{node}d: {{exe: /opt/{directory}/n{node}d, user: {user}{ports}{vulnerable}}}"


def _policy(rules: Sequence[_LearntRule]) -> Iterator[str]:
    yield "policy:"
    yield "  default: deny"
    yield "  rules:" if rules else "  rules: []"
    numbers: dict[_End, int] = {}
    for rule in rules:
        numbers[rule.target] = numbers.get(rule.target, 0) + 1
        source = f"{{{rule.sources[0].key}: [{', '.join(end.value for end in rule.sources)}]}}"
        target = f"{{{rule.target.key}: {rule.target.value}}}"
        name = f"to {rule.target.value} {numbers[rule.target]}"
        yield f"    - {{name: {name}, allow: {{from: {source}, to: {target}, service: [{', '.join(rule.services)}]}}}}"


def _rest(plan: _Plan, seed: int, arms: Collection[str]) -> Iterator[str]:
    if plan.foothold is not None:
        foothold = f"{{host: n{plan.foothold}, process: n{plan.foothold}d}}"
        yield f"attack: {{foothold: {foothold}, goal: {{value: crown-jewel}}}}"
    yield f"arms: [{', '.join(arms)}]"
    yield f"seed: {seed}"
    yield "replay: # client, server, service, hours in which it was seen"
    for key, wanted in (("foreseen", True), ("unforeseen", False)):
        rows = [(triple, seen) for triple, seen in plan.hours.items() if plan.learnt(triple) == wanted]
        yield f"  {key}:" if rows else f"  {key}: []"
        for triple, seen in rows:
            service = f"{PORT_BASE + triple.code}/{PROTOCOLS[triple.protocol]}"
            yield f"    - [n{triple.client}, n{triple.server}, {service}, {len(seen)}]"


def _invented(plan: _Plan, level: str, left_out: Iterable[str]) -> Iterator[str]:
    between = "groups (nodes without a group: hosts)" if level == "group" else "hosts"
    yield "invented:"
    for text in (
        f"ports: service code c is port {PORT_BASE} + c; the data has anonymised codes",
        "processes: each node N runs one process nNd, as client and as server, under its group's user",
        "processes: each listens on all that its node served in any hour, so that later flows find a server",
        "policy: rules name no process and no user, since the data knows none",
        f"policy: learnt from the first {plan.train_hours} hours: what was seen, as rules between {between}",
        "replay: foreseen is what was seen in those hours at least once, unforeseen what came first later",
        "replay: an edge with zero packets counts as seen, since the attempt was recorded; counts are hours",
        "replay: all over IPv4; the data does not say",
        f"segments: groups shuffled by the seed and dealt over {SEGMENTS}; nodes without a group likewise, one by one",
        f"vulnerable: {VULNERABLE_SHARE:.0%} of the serving processes, at least one, drawn by the seed; and the goal's",
        "goal: the server with the most clients; foothold: drawn by the seed among the clients of the first hours",
        *left_out,
    ):
        yield f"  - {json.dumps(text)}"
