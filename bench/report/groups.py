"""Hosts that are alike, so that a large scenario can be shown; and what one group may ask of another. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.report.words import some
from lab.model import Flow, Host, Scenario
from lab.policy import selects_host
from lab.policy_sets import Oracle
from lab.services import service_text


@dataclass(frozen=True, slots=True)
class Group:
    """Hosts that every rule treats alike. `marks` tells the foothold and the crown jewels by host name."""

    segment: str
    hosts: tuple[Host, ...]
    marks: dict[str, str]

    @property
    def name(self) -> str:
        """The host's own name, or what the names have in common; else the labels, or two of the names."""
        names = [host.name for host in self.hosts]
        if len(names) == 1:
            return names[0]
        stems = {name.rstrip("0123456789") for name in names}
        common = stems.pop()
        if not stems and common.endswith("-"):
            return common.rstrip("-")
        return ", ".join(f"{key}={value}" for key, value in self.labels.items()) or some(names, 2)

    @property
    def labels(self) -> dict[str, str]:
        """The labels that all of them have."""
        return {k: v for k, v in self.hosts[0].labels.items() if all(h.labels.get(k) == v for h in self.hosts)}


@dataclass(frozen=True, slots=True)
class Edge:
    """What hosts of one group may ask of those of another, by the rules that say so. Indices into the groups."""

    source: int
    target: int
    services: tuple[str, ...]
    rules: tuple[str, ...]


def singles(scenario: Scenario) -> tuple[Group, ...]:
    """Every host for itself."""
    return tuple(Group(host.segment, (host,), _marks(scenario, [host])) for host in scenario.topology.hosts.values())


def by_labels(scenario: Scenario) -> tuple[Group, ...]:
    """Hosts of one segment with the same labels, whatever they run. A crown jewel's own label sets nobody apart."""
    goals = set(scenario.attack.goals) if scenario.attack else set()
    told = {value for host in scenario.topology.hosts.values() for value in host.labels.items()
            if all(h.name in goals for h in scenario.topology.hosts.values() if value in h.labels.items())}
    return _grouped(scenario, lambda host: tuple(sorted(set(host.labels.items()) - told)))


def by_policy(scenario: Scenario) -> tuple[Group, ...]:
    """Hosts of one segment that labels, services and every rule treat alike: one speaks for its whole group."""
    ends = {tuple(sorted(end.keys.items())): end for rule in scenario.policy.rules
            for end in (rule.source, rule.target)}.values()
    return _grouped(scenario, lambda host: (
        tuple(sorted(host.labels.items())), tuple(_shape(scenario, name) for name in host.runs), host.agent,
        host.external, tuple(selects_host(end, host) for end in ends)))


def _grouped(scenario: Scenario, key: Callable[[Host], object]) -> tuple[Group, ...]:
    """Segments in their order, each group at the place of its first host."""
    found: dict[tuple[str, object], list[Host]] = {}
    for host in scenario.topology.hosts.values():
        found.setdefault((host.segment, key(host)), []).append(host)
    order = list(scenario.topology.segments)
    made = [Group(segment, tuple(hosts), _marks(scenario, hosts)) for (segment, _), hosts in found.items()]
    return tuple(sorted(made, key=lambda group: order.index(group.segment)))


def merged(found: tuple[Edge, ...], fine: tuple[Group, ...], coarse: tuple[Group, ...]) -> tuple[Edge, ...]:
    """Edges between fine groups as edges between the coarse ones that hold them."""
    place = {host.name: number for number, group in enumerate(coarse) for host in group.hosts}
    of = [place[group.hosts[0].name] for group in fine]
    together: dict[tuple[int, int], tuple[dict[str, None], dict[str, None]]] = {}
    for edge in found:
        services, rules = together.setdefault((of[edge.source], of[edge.target]), ({}, {}))
        services.update(dict.fromkeys(edge.services))
        rules.update(dict.fromkeys(edge.rules))
    return tuple(Edge(a, b, tuple(services), tuple(rules)) for (a, b), (services, rules) in together.items())


def edges(scenario: Scenario, of: tuple[Group, ...]) -> tuple[Edge, ...]:
    """The declared services that a declared process of one group may ask of another, as the oracle says, over IPv4.

    A group of several hosts may have an edge to itself.
    """
    topology, policy = scenario.topology, scenario.policy
    tried: list[tuple[int, int, str, Flow]] = []
    for a, source in enumerate(of):
        for b, target in enumerate(of):
            if a == b and len(source.hosts) == 1:
                continue
            asker, asked = source.hosts[0], target.hosts[-1]
            for name in asker.runs:
                who = topology.processes[name]
                for owner in asked.runs:
                    tried += [(a, b, service_text(s), Flow(asker.name, who.name, who.user, asked.name, owner,
                                                           s.proto, s.low, 4))
                              for s in topology.processes[owner].listens if s.proto in ("tcp", "udp")]
    verdicts = Oracle(policy, topology).verdicts([flow for *_, flow in tried])
    found: dict[tuple[int, int], tuple[dict[str, None], dict[str, None]]] = {}
    for (a, b, service, _), verdict in zip(tried, verdicts, strict=True):
        if verdict.allow:
            services, rules = found.setdefault((a, b), ({}, {}))
            services[service] = None
            rules[verdict.rule] = None
    return tuple(Edge(a, b, tuple(services), tuple(rules)) for (a, b), (services, rules) in found.items())


def _shape(scenario: Scenario, name: str) -> tuple[object, ...]:
    """What a process looks like from outside, whatever it is called: importers give every host processes of its own."""
    process = scenario.topology.processes[name]
    return process.listens, process.vulnerable, process.user


def _marks(scenario: Scenario, hosts: list[Host]) -> dict[str, str]:
    attack = scenario.attack
    if attack is None:
        return {}
    foothold = {attack.foothold_host: "foothold"}
    goals = dict.fromkeys(attack.goals, "crown jewel")
    return {host.name: (foothold | goals)[host.name] for host in hosts if host.name in foothold | goals}
