"""Agent and virtual switch together: one policy, told to both, each enforcing what it can.

The switch guards what leaves a host, devices without an agent among them, and stops who sends as another. The agents
guard what stays on a host, and tell processes and users apart wherever they stand at an end. Both tell of the flows
that they see; as a flow is the same for both, what one cannot say the other fills in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from enforcers.agent.agent_ebpf import AgentEbpf
from enforcers.agent.agent_nft import AgentNft
from enforcers.agentless.virtual_switch import VirtualSwitch
from enforcers.agentless.virtual_switch_nft import VirtualSwitchNft
from enforcers.base import hosts_only, without_icmp
from lab.model import (
    Approximation,
    Deployment,
    Enforcer,
    Feature,
    Flow,
    Native,
    Point,
    Policy,
    Rule,
    Selector,
    Sighting,
    Topology,
)
from lab.policy import names_owner, selects_host


class Unified:
    """agent-ebpf on every host that takes an agent, and virtual-switch at every port: one policy, told to both."""

    name = "unified"
    stops_spoofing = True  # as the switch does

    def __init__(self, agent: Enforcer | None = None, switch: Enforcer | None = None) -> None:
        self._agent: Enforcer = agent or AgentEbpf()
        self._switch: Enforcer = switch or VirtualSwitch()

    @property
    def knows_tenants(self) -> bool:
        """Only where both do: whichever goes by address alone takes two tenants for one."""
        return all(getattr(part, "knows_tenants", False) is True for part in (self._agent, self._switch))

    def needs(self) -> tuple[Feature, ...]:
        found = {feature.name: feature for feature in (*self._switch.needs(), *self._agent.needs())}
        return tuple(found.values())

    def needs_at(self, point: Point) -> tuple[Feature, ...]:
        """What only the agent or only the switch needs, where it stands."""
        return (self._agent if point.kind == "host" else self._switch).needs()

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """Both compile it. A flow has to pass all who claim it, and wherever an agent does, it is the stricter."""
        agent, switch = self._agent.compile(policy, topology), self._switch.compile(policy, topology)
        added, said = _switch_alone(policy, topology) if agent.effective != switch.effective else ([], [])
        meant = replace(agent.effective, rules=(*agent.effective.rules, *added))
        return Native({**agent.rules, **switch.rules}, meant, (*agent.approximations, *said),
                      agent.count + switch.count)

    def render(self, native: Native, topology: Topology) -> Deployment:
        """The agent on hosts, the switch at their ports."""
        return {**self._agent.render(_part(native, "host"), topology),
                **self._switch.render(_part(native, "port"), topology)}

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """Either of them claims it: all but what a device without an agent says to itself."""
        return self._agent.covers(flow, topology) or self._switch.covers(flow, topology)

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        """Whoever stands at the point tells; flows that both saw are joined by what they are."""
        return (self._agent if point.kind == "host" else self._switch).sightings(point, lines)

    def ask(self, host: str, verb: str, *words: str) -> tuple[str, ...]:
        """The command by which the agent of `host` answers `labctl agent`."""
        asks = getattr(self._agent, "ask", None)
        if asks is None:
            raise LookupError(f"the agents of {self.name} cannot be asked; those of unified can")
        return tuple(asks(host, verb, *words))

    def failing(self, way: Literal["open", "closed"]) -> Unified | None:
        """The same, whose agents pass or refuse new flows once they are silent; the switch goes on as it is."""
        offers = getattr(self._agent, "failing", None)
        agent = offers(way) if offers else None
        return Unified(agent, self._switch) if agent else None


class UnifiedNft(Unified):
    """agent-nft on every host that takes an agent, and virtual-switch-nft at every port: unified without BPF."""

    name = "unified-nft"

    def __init__(self) -> None:
        super().__init__(AgentNft(), VirtualSwitchNft())


def _part(native: Native, kind: str) -> Native:
    return replace(native, rules={point: text for point, text in native.rules.items() if point.kind == kind})


def _switch_alone(policy: Policy, topology: Topology) -> tuple[list[Rule], list[Approximation]]:
    """What a rule that names both owners amounts to between devices without an agent, where the switch judges alone."""
    bare = [host.name for host in topology.hosts.values() if not host.takes_agent]
    rules, said = [], []
    for rule in policy.rules:
        if rule.verdict == "allow" and names_owner(rule.source) and names_owner(rule.target):
            sources, targets = (_among(end, bare, topology) for end in (rule.source, rule.target))
            services = tuple(part for service in rule.services for part in without_icmp(service))
            if sources and targets and services:
                rules.append(replace(rule, source=_at(rule.source, sources), target=_at(rule.target, targets),
                                     services=services))
                said.append(Approximation(rule.name, "widened", "no agent on either end, and a switch knows no owner"))
    return rules, said


def _among(selector: Selector, names: Sequence[str], topology: Topology) -> list[str]:
    return [name for name in names if selects_host(selector, topology.hosts[name])]


def _at(selector: Selector, names: Sequence[str]) -> Selector:
    return Selector({**hosts_only(selector).keys, "host": tuple(names)})
