"""From a written policy to what an address-based enforcer can do with it. Pure.

Two steps that every address-based arm shares: `effective` drops what addresses cannot say and owns up to it, and
`Resolver` turns the rules that are left into disjoint verdicts per ordered pair of host addresses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from lab.model import FAMILIES, Approximation, Family, Host, Native, Policy, Rule, Selector, Service, Topology
from lab.policy import OWNER_KEYS, names_owner, selects_host

PORT_MAX = 65535
Transport = Literal["tcp", "udp"]
TRANSPORTS: tuple[Transport, ...] = ("tcp", "udp")


# --- what addresses cannot say ----------------------------------------------------------------


def effective(policy: Policy) -> tuple[Policy, tuple[Approximation, ...]]:
    """The policy that addresses, protocols and ports can express, and each rule that had to change for it.

    An allow rule that names a process or a user is widened to every owner of a socket on the same hosts: the flows it
    was written for still pass. A deny rule so widened would cut flows that nobody meant, so it is omitted.
    """
    rules, approximations = [], []
    for rule in policy.rules:
        keys = _owner_keys(rule)
        if not keys:
            rules.append(rule)
        elif rule.verdict == "allow":
            rules.append(_widened(rule))
            approximations.append(Approximation(rule.name, "widened", _cannot(keys)))
        else:
            reason = f"{_cannot(keys)}; denied without it, the flows of others would be cut too"
            approximations.append(Approximation(rule.name, "omitted", reason))
    return replace(policy, rules=tuple(rules)), tuple(approximations)


def recording_only(native: Native) -> Native:
    """The same rules at an enforcer that records what they would deny and lets it pass."""
    passed = Approximation("(all)", "omitted", "monitor mode: what would be denied is recorded, and passes")
    return replace(native, effective=Policy("allow", ()), approximations=(passed,))


def _owner_keys(rule: Rule) -> tuple[str, ...]:
    return tuple(key for key in OWNER_KEYS if key in rule.source.keys or key in rule.target.keys)


def _cannot(keys: tuple[str, ...]) -> str:
    return f"{' and '.join(keys)}: an address-based rule cannot name one"


def _widened(rule: Rule) -> Rule:
    services = rule.services
    if names_owner(rule.target):
        # The kernel answers an echo: a target that names a process never meant icmp, so that is not opened.
        services = tuple(part for service in services for part in without_icmp(service))
    return replace(rule, source=hosts_only(rule.source), target=hosts_only(rule.target), services=services)


def hosts_only(selector: Selector) -> Selector:
    """The same hosts, whoever is on them."""
    return Selector({key: values for key, values in selector.keys.items() if key not in OWNER_KEYS})


def without_icmp(service: Service) -> Iterator[Service]:
    """What is left of a service that icmp is taken out of."""
    if service.proto == "any":
        for transport in TRANSPORTS:
            yield replace(service, proto=transport, low=0, high=PORT_MAX)
    elif service.proto != "icmp":
        yield service


# --- verdicts per pair of addresses -----------------------------------------------------------


class Ports(NamedTuple):
    """`low`..`high` of one protocol, and what becomes of them."""

    proto: Transport
    low: int
    high: int
    allow: bool


@dataclass(frozen=True, slots=True)
class Services:
    """The verdict on every service from one address to another.

    `ports` are disjoint and ascending per protocol; what they leave out falls to `protocols`, and a protocol that is
    not in there to `other`. Nothing is listed that the next wider level would say anyhow.
    """

    ports: tuple[Ports, ...]
    protocols: tuple[tuple[Literal["tcp", "udp", "icmp"], bool], ...]
    other: bool


@dataclass(frozen=True)
class Resolver:
    """Rules without owners (`effective`), resolved to the hosts of one topology. `services` is the one question.

    A rule is a bit: a host's address has one set of bits as source and one as target, so that a pair's rules are one
    AND, and pairs with the same rules share one answer (59 hosts of recorded traffic have a few dozen).
    """

    policy: Policy
    topology: Topology

    def __post_init__(self) -> None:
        owned = [rule.name for rule in self.policy.rules if _owner_keys(rule)]
        if owned:
            raise ValueError(f"rule '{owned[0]}' names a process or a user; pass the policy through effective() first")

    def services(self, source: Host, target: Host, family: Family) -> Services:
        """What is allowed from `source` to `target` over `family`, by the policy."""
        bits = self._ends[source.name, family][0] & self._ends[target.name, family][1]
        key = (bits, family)
        if key not in self._answers:
            rules = [rule for index, rule in enumerate(self.policy.rules) if bits >> index & 1]
            self._answers[key] = resolve(rules, family, self.policy.default == "allow")
        return self._answers[key]

    @cached_property
    def _answers(self) -> dict[tuple[int, Family], Services]:
        return {}

    @cached_property
    def _ends(self) -> dict[tuple[str, Family], tuple[int, int]]:
        rules = self.policy.rules
        return {
            (host.name, family): (
                sum(selects_host(rule.source, host, family) << index for index, rule in enumerate(rules)),
                sum(selects_host(rule.target, host, family) << index for index, rule in enumerate(rules)),
            )
            for host in self.topology.hosts.values()
            for family in FAMILIES
        }


def resolve(rules: Sequence[Rule], family: Family, default: bool) -> Services:
    """One verdict for every service, from rules whose ends match already: deny over allow over `default`."""
    claims = [
        (service, rule.verdict == "allow")
        for rule in rules
        for service in rule.services
        if service.family in (None, family)
    ]
    other = _judge([allow for service, allow in claims if service.proto == "any"], default)
    icmp = _judge([allow for service, allow in claims if service.proto in ("any", "icmp")], default)
    ports: list[Ports] = []
    protocols: list[tuple[Literal["tcp", "udp", "icmp"], bool]] = []
    for proto in TRANSPORTS:
        spans = [_span(service, allow) for service, allow in claims if service.proto in ("any", proto)]
        rest = _judge([allow for low, high, allow in spans if (low, high) == (0, PORT_MAX)], default)
        ports += [Ports(proto, *atom) for atom in _atoms(spans, default) if atom[2] != rest]
        if rest != other:
            protocols.append((proto, rest))
    if icmp != other:
        protocols.append(("icmp", icmp))
    return Services(tuple(ports), tuple(protocols), other)


def _judge(verdicts: Sequence[bool], default: bool) -> bool:
    return all(verdicts) if verdicts else default


def _span(service: Service, allow: bool) -> tuple[int, int, bool]:
    return (0, PORT_MAX, allow) if service.proto == "any" else (service.low, service.high, allow)


def _atoms(spans: Sequence[tuple[int, int, bool]], default: bool) -> Iterator[tuple[int, int, bool]]:
    """All ports in ascending disjoint ranges of one verdict each; neighbours differ."""
    cuts = sorted({0, PORT_MAX + 1, *(low for low, _, _ in spans), *(high + 1 for _, high, _ in spans)})
    start, current = 0, None
    for low in cuts[:-1]:
        verdict = _judge([allow for first, last, allow in spans if first <= low <= last], default)
        if current is not None and verdict != current:
            yield start, low - 1, current
            start = low
        current = verdict
    assert current is not None, "port 0 always starts a range"
    yield start, PORT_MAX, current
