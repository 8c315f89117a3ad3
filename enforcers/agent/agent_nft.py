"""The host agent on nftables: every host that takes an agent guards its own input and output.

A host's rule set is keyed by the peer's address; a host is a peer of itself too, since its flows to its own address
cross output and then input. Flows over 127.0.0.0/8 and ::1 are left alone unless the policy says `loopback: true`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from enforcers.agent.bundle import agent_plan
from enforcers.agent.records import sightings
from enforcers.base import Resolver, effective
from enforcers.nft import DROP, REJECT, Hook, Lookup, Mode, ruleset
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

LOOPBACK: dict[Family, str] = {4: "127.0.0.0/8", 6: "::1"}
# Connection tracking does not follow these (RFC 4861, RFC 3810), so they are accepted by type. No redirects: a host of
# the lab has no use for them, an attacker has.
_NEIGHBOUR_DISCOVERY = (
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, "
    "mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept"
)
_CHAINS = (  # chain, lookup, address, port: "to" is keyed by whom we ask, "from" by who asks us
    ("to_peer", "to", "{ip} daddr", "th dport"),
    ("to_peer_reply", "to", "{ip} saddr", "th sport"),
    ("from_peer", "from", "{ip} saddr", "th dport"),
    ("from_peer_reply", "from", "{ip} daddr", "th sport"),
)


class AgentNft:
    """Host firewall by address, with process attribution in its telemetry. `mode="monitor"` only records."""

    name = "agent-nft"

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
        resolver = Resolver(reduced, topology)
        rules, count = {}, 0
        for host in topology.hosts.values():
            if host.takes_agent:
                lookups = _lookups(host, resolver)
                rules[Point("host", host.name)] = _text(lookups, reduced.loopback, self.mode)
                count += sum(lookup.count for lookup in lookups.values())
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
        users = {str(uid): user for user, uid in sorted(topology.users.items())}
        content = {
            "version": 1,
            "mode": self.mode,
            "hooks": ["input", "output"],
            "addresses": [host.v4, host.v6],
            "users": users,
        }
        return json.dumps(content, indent=1).encode() + b"\n"


def _lookups(host: Host, resolver: Resolver) -> dict[str, Lookup]:
    default = resolver.policy.default == "allow"
    lookups = {name: Lookup(name, 1, default) for name in ("to", "from")}
    for peer in resolver.topology.hosts.values():
        for family in FAMILIES:
            for address in _addresses(host, peer, family, resolver.policy.loopback):
                lookups["to"].add([address], resolver.services(host, peer, family), family)
                lookups["from"].add([address], resolver.services(peer, host, family), family)
    return lookups


def _addresses(host: Host, peer: Host, family: Family, loopback: bool) -> Iterator[str]:
    yield peer.address(family)
    if loopback and peer is host:
        yield LOOPBACK[family]


def _text(lookups: dict[str, Lookup], loopback: bool, mode: Mode) -> str:
    chains = [line for name, lookup, address, port in _CHAINS for line in lookups[lookup].chain(name, address, port)]
    hooks = [
        Hook("input", "from_peer", "to_peer_reply", DROP, _exempt("iif", "saddr", loopback), "in"),
        Hook("output", "to_peer", "from_peer_reply", REJECT, _exempt("oif", "daddr", loopback), "out"),
    ]
    return ruleset(list(lookups.values()), chains, hooks, mode)


def _exempt(interface: str, address: str, loopback: bool) -> tuple[str, ...]:
    """Loopback addresses on the loopback interface; the host's own address there is judged like any peer."""
    if loopback:
        return (_NEIGHBOUR_DISCOVERY,)
    return (
        _NEIGHBOUR_DISCOVERY,
        f'{interface} "lo" ip {address} {LOOPBACK[4]} accept',
        f'{interface} "lo" ip6 {address} {LOOPBACK[6]} accept',
    )
