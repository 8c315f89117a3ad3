"""The agentless chokepoint: nftables on the router that the segments must cross.

It sees addresses and ports of what crosses segments, and nothing of what stays inside one: flows within a segment and
within a host are outside its coverage, and it says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from enforcers.agent.bundle import agent_plan
from enforcers.agent.records import sightings
from enforcers.base import Resolver, effective
from enforcers.nft import DROP, Hook, Lookup, Mode, Question, ruleset
from lab.model import FAMILIES, Deployment, Feature, Flow, Host, Native, Point, Policy, Sighting, Topology


class Chokepoint:
    """Firewall on the router, flow records from its connection tracking. `mode="monitor"` only records."""

    name = "chokepoint"

    def __init__(self, mode: Mode = "enforce") -> None:
        self.mode: Mode = mode

    def needs(self) -> tuple[Feature, ...]:
        return (
            Feature("nftables", "the policy is enforced in nftables maps on the router"),
            Feature("conntrack-events", "flow records come from connection tracking"),
            Feature("nflog", "denied packets are reported through NFLOG"),
            Feature("python3", "the collector on the router is a Python 3.11 program without dependencies"),
        )

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """One rule set, keyed by source and target address, for every ordered pair whose traffic comes by."""
        reduced, approximations = effective(policy)
        lookup = self._lookup(Resolver(reduced, topology), topology)
        original = Question(lookup, "{ip} saddr . {ip} daddr", "th dport")
        reply = Question(lookup, "{ip} daddr . {ip} saddr", "th sport")
        text = ruleset([lookup], [Hook("forward", "forward", original, reply, DROP)], self.mode)
        return Native({Point("router", topology.router): text}, reduced, approximations, lookup.count)

    def render(self, native: Native, topology: Topology) -> Deployment:
        """The same daemon as a host agent's, in router mode: nothing on any host."""
        return {Point("router", topology.router): agent_plan("router", rules, forwarding(self.mode))
                for rules in native.rules.values()}

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """The flow crosses the router."""
        return self._crosses(topology.hosts[flow.source], topology.hosts[flow.target])

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        return sightings(point, lines)

    def _crosses(self, source: Host, target: Host) -> bool:
        return source.segment != target.segment

    def _lookup(self, resolver: Resolver, topology: Topology) -> Lookup:
        lookup = Lookup("pair", 2, resolver.policy.default == "allow")
        for source in topology.hosts.values():
            for target in topology.hosts.values():
                if self._crosses(source, target):
                    for family in FAMILIES:
                        pair = [source.address(family), target.address(family)]
                        lookup.add(pair, resolver.services(source, target, family), family)
        return lookup


def forwarding(mode: Mode) -> bytes:
    """The daemon's policy file where it looks after what is forwarded."""
    known = {"version": 1, "mode": mode, "hooks": ["forward"]}
    nobody: dict[str, object] = {"addresses": [], "users": {}, "marks": []}  # no user's socket is there
    return json.dumps(known | nobody, indent=1).encode() + b"\n"
