"""The host agent on nftables: every host that takes an agent guards its own input and output.

A host's rule set is keyed by the peer's address; a host is a peer of itself too, since its flows to its own address
cross output and then input. Flows over 127.0.0.0/8 and ::1 are left alone unless the policy says `loopback: true`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from enforcers.agent.bundle import agent_plan
from enforcers.agent.records import sightings
from enforcers.base import Resolver, effective, recording_only
from enforcers.nft import DROP, MAX_USERS, REJECT, Hook, Lookup, Mode, Question, ruleset
from lab.model import (
    FAMILIES,
    Deployment,
    Family,
    Feature,
    Flow,
    Host,
    Native,
    Point,
    Policy,
    Sighting,
    Topology,
)
from lab.policy import NOBODY, NOBODY_UID

LOOPBACK: dict[Family, str] = {4: "127.0.0.0/8", 6: "::1"}
# Connection tracking does not follow these (RFC 4861, RFC 3810), so they are accepted by type. No redirects: a host of
# the lab has no use for them, an attacker has.
_NEIGHBOUR_DISCOVERY = (
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, "
    "mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept"
)


class AgentNft:
    """Host firewall by address, with process attribution in its telemetry. `mode="monitor"` only records."""

    name = "agent-nft"
    knows_tenants = True  # a host's rules are of its own tenant's addresses

    def __init__(self, mode: Mode = "enforce") -> None:
        self.mode: Mode = mode

    def needs(self) -> tuple[Feature, ...]:
        return (
            Feature("nftables", "the policy is enforced in nftables maps on each host"),
            Feature("conntrack-events", "flow records come from connection tracking"),
            Feature("nflog", "denied packets are reported through NFLOG"),
            Feature("sock-diag", "flows are attributed to the process that owns their socket"),
            Feature("python3", "the agent is a Python 3.11 program without dependencies"),
        )

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """One rule set per host that takes an agent; process and user are approximated away (enforcers.base)."""
        reduced, approximations = effective(policy)
        resolvers = {tenant: Resolver(reduced, topology.of_tenant(tenant)) for tenant in topology.tenants or ("",)}
        rules, count = {}, 0
        for host in topology.hosts.values():
            if host.takes_agent:
                asked, asking = _lookups(host, resolvers[topology.tenant(host.name)])
                rules[Point("host", host.name)] = _text(asked, asking, reduced.loopback, self.mode)
                count += asked.count + asking.count
        return Native(rules, reduced, approximations, count)

    def render(self, native: Native, topology: Topology) -> Deployment:
        """The agent, its policy file and its rule set on every host that takes one."""
        return {
            point: agent_plan("agent", rules, self._policy_file(topology, topology.hosts[point.host]))
            for point, rules in native.rules.items()
        }

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """Either end has an agent: the source's output or the target's input decides."""
        return topology.hosts[flow.source].takes_agent or topology.hosts[flow.target].takes_agent

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        return sightings(point, lines)

    def _policy_file(self, topology: Topology, host: Host) -> bytes:
        content = {
            "version": 1,
            "mode": self.mode,
            "hooks": ["input", "output"],
            "addresses": [host.v4, host.v6],
            "users": {str(uid): user for uid, user in _users(topology).items()},
            "marks": list(_users(topology))[:MAX_USERS],  # the uid of mark 1, of mark 2, ...
        }
        return json.dumps(content, indent=1).encode() + b"\n"


class AgentNftMonitor(AgentNft):
    """The same agent before anyone dares to enforce: it records what it would deny, and lets it pass."""

    name = "agent-nft-monitor"

    def __init__(self) -> None:
        super().__init__("monitor")

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """The agent's own rules, whose effect is that everything passes."""
        return recording_only(super().compile(policy, topology))

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """Nothing: a monitor decides nothing."""
        return False


def _users(topology: Topology) -> dict[int, str]:
    """User names by uid: the scenario's, and those of executables that it does not declare."""
    declared = {uid: user for user, uid in topology.users.items()}
    return dict(sorted(({0: "root", NOBODY_UID: NOBODY} | declared).items()))


def _lookups(host: Host, resolver: Resolver) -> tuple[Lookup, Lookup]:
    """Keyed by whom this host asks, and by who asks this host."""
    default = resolver.policy.default == "allow"
    users = tuple(_users(resolver.topology))[:MAX_USERS]
    asked, asking = Lookup("to", 1, default, users), Lookup("from", 1, default)
    for peer in resolver.topology.hosts.values():
        for family in FAMILIES:
            for address in _addresses(host, peer, family, resolver.policy.loopback):
                asked.add([address], resolver.services(host, peer, family), family)
                asking.add([address], resolver.services(peer, host, family), family)
    return asked, asking


def _addresses(host: Host, peer: Host, family: Family, loopback: bool) -> Iterator[str]:
    yield peer.address(family)
    if loopback and peer is host:
        yield LOOPBACK[family]


def _text(asked: Lookup, asking: Lookup, loopback: bool, mode: Mode) -> str:
    """A reply belongs to the flow it answers: it is looked up the other way round, by its source port."""
    hooks = [
        Hook("input", "in", Question(asking, "{ip} saddr", "th dport"), Question(asked, "{ip} saddr", "th sport"),
             DROP, _exempt("iif", "saddr", loopback)),
        Hook("output", "out", Question(asked, "{ip} daddr", "th dport"), Question(asking, "{ip} daddr", "th sport"),
             REJECT, _exempt("oif", "daddr", loopback)),
    ]
    return ruleset([asked, asking], hooks, mode)


def _exempt(interface: str, address: str, loopback: bool) -> tuple[str, ...]:
    """Loopback addresses on the loopback interface; the host's own address there is judged like any peer."""
    if loopback:
        return (_NEIGHBOUR_DISCOVERY,)
    return (
        _NEIGHBOUR_DISCOVERY,
        f'{interface} "lo" ip {address} {LOOPBACK[4]} accept',
        f'{interface} "lo" ip6 {address} {LOOPBACK[6]} accept',
    )
