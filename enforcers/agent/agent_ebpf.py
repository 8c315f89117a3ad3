"""The host agent in the kernel: who asks and who is asked, told by executable and user, on both sides of a connection.

What it cannot know is said: the owner at an end without an agent, and, of a datagram between two hosts, the other end's
owner (enforcers.agent.ebpf.effective). Everything else is enforced as the policy is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from enforcers.agent.ebpf import bundle
from enforcers.agent.ebpf.classes import Rules
from enforcers.agent.ebpf.document import document, files
from enforcers.agent.ebpf.effective import effective
from enforcers.agent.ebpf.tables import tables
from enforcers.agent.records import sightings
from enforcers.base import recording_only
from lab.model import (
    Deployment,
    Feature,
    Flow,
    Native,
    Point,
    Policy,
    Sighting,
    Topology,
)

Mode = Literal["off", "monitor", "enforce"]
OnSilence = Literal["ignored", "opens", "closes"]


class AgentEbpf:
    """Process and user on both sides, enforced in the kernel by eBPF, with telemetry by flow."""

    name = "agent-ebpf"
    knows_tenants = True  # a host's tables are of its own tenant's addresses

    def __init__(self, mode: Mode = "enforce", on_silence: OnSilence = "ignored") -> None:
        self.mode: Mode = mode
        self.on_silence: OnSilence = on_silence

    def needs(self) -> tuple[Feature, ...]:
        return (
            Feature("bpf", "verdicts are reached by programs in the kernel"),
            Feature("btf", "the programs find the kernel's own fields by its type information"),
            Feature("cgroup2", "the programs are attached to the hosts' control groups"),
            Feature("cgroup-bpf", "sockets and packets are judged by the control group they belong to"),
            Feature("host-tc-bpf", "echoes, and frames of packet sockets, are judged at the hosts' interfaces"),
            Feature("libbpf", "the agent loads its programs with it"),
            Feature("clang", "the programs are compiled on this machine"),
            Feature("python3", "the agent is a Python 3.11 program without dependencies"),
        )

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """The tables of every host that takes an agent; an owner is approximated only where no end can know it."""
        meant, approximations = effective(policy, topology)
        by_tenant = {tenant: Rules(policy, topology.of_tenant(tenant)) for tenant in topology.tenants or ("",)}
        texts, count = {}, 0
        for host in topology.hosts.values():
            if host.takes_agent:
                rules = by_tenant[topology.tenant(host.name)]
                made = tables(host, rules)
                texts[Point("host", host.name)] = document(host, made, rules, self._settings())
                count += len(made.verdicts)
        return Native(texts, meant, approximations, count)

    def render(self, native: Native, topology: Topology) -> Deployment:
        """The agent, its kernel program and the host's tables on every host that takes an agent."""
        program, client = bundle.program(), bundle.client()
        return {point: bundle.plan(point.host, *files(text), program, client) for point, text in native.rules.items()}

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """Either end has an agent: the one that asks decides at its host, the one that is asked at its own."""
        return topology.hosts[flow.source].takes_agent or topology.hosts[flow.target].takes_agent

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        return sightings(point, lines)

    def ask(self, host: str, verb: str, *words: str) -> tuple[str, ...]:
        """The command by which the agent of `host` answers `labctl agent`."""
        return bundle.command(host, verb, *words)

    def failing(self, way: Literal["open", "closed"]) -> AgentEbpf | None:
        """The same agent, whose programs pass or refuse new flows once it has been silent for 5 s."""
        return AgentEbpf(self.mode, "opens" if way == "open" else "closes")

    def _settings(self) -> dict[str, str]:
        return {"mode": self.mode, "on_silence": self.on_silence}


class AgentEbpfNode(AgentEbpf):
    """The same agent once on the machine that carries the hosts as containers, instead of in each of them."""

    name = "agent-ebpf-node"
    asked_at = "node"

    def needs(self) -> tuple[Feature, ...]:
        return (*super().needs(), Feature("container-host", "it looks into every container from the machine below"))

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """The tables of every host, kept on the machine."""
        native = super().compile(policy, topology)
        return replace(native, rules={Point("node", point.host): text for point, text in native.rules.items()})

    def render(self, native: Native, topology: Topology) -> Deployment:
        """The agent and every host's tables on the machine; nothing in any container."""
        program = bundle.program()
        return {point: bundle.node_plan(point.host, *files(text), program) for point, text in native.rules.items()}

    def ask(self, host: str, verb: str, *words: str) -> tuple[str, ...]:
        """The command by which the agent answers `labctl agent` about `host`."""
        return bundle.command(host, verb, *words, directory=bundle.on_node(host))

    def failing(self, way: Literal["open", "closed"]) -> AgentEbpfNode | None:
        """The same agent, whose programs pass or refuse new flows once it has been silent for 5 s."""
        return AgentEbpfNode(self.mode, "opens" if way == "open" else "closes")


class AgentEbpfMonitor(AgentEbpf):
    """The same agent before anyone dares to enforce: it records what it would deny, and lets it pass."""

    name = "agent-ebpf-monitor"

    def __init__(self) -> None:
        super().__init__("monitor")

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """The agent's own tables, whose effect is that everything passes."""
        return recording_only(super().compile(policy, topology))

    def failing(self, way: Literal["open", "closed"]) -> None:
        """A monitor refuses nothing, so there is nothing to set."""

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """Nothing: a monitor decides nothing."""
        return False
