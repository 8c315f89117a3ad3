"""A policy as tables that a switch looks things up in: address to group, port to class, triple to verdict. Pure.

Hosts that no rule tells apart are one group; ports that no rule tells apart are one class. A triple that is not listed
has the verdict of its pair of groups for all services, and that, where it is not listed either, is the default.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from enforcers.base import PORT_MAX, TRANSPORTS, Transport
from lab.model import FAMILIES, Family, Host, Policy, Rule, Service, Topology
from lab.policy import selects_host

OTHER, ICMP, FIRST_CLASS, WIDE = 0, 1, 2, 0xFFFF
EVERYTHING: Mapping[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}
Class = int
Judged = tuple[bool, int]  # allowed, and the rule's number: 0 is the default
Entry = tuple[int, int, Class, int, int]  # source group, target group, class, rule, allowed


@dataclass(frozen=True)
class Tables:
    """`policy` (without owners: `enforcers.base.effective`) for a topology's hosts. Raises ValueError if too big."""

    policy: Policy
    topology: Topology

    @property
    def rules(self) -> tuple[str, ...]:
        return ("default", *(rule.name for rule in self.policy.rules))

    @cached_property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Every host's addresses, with their groups."""
        return tuple((host.address(family), self._group(host, family))
                     for host in self.topology.hosts.values() for family in FAMILIES)

    @cached_property
    def prefixes(self) -> tuple[tuple[str, int], ...]:
        """Groups of all other addresses: by the longest prefix that a rule names, or everything."""
        return tuple((cidr, self._group(_stranger(cidr, family), family)) for cidr, family in self._cidrs)

    @cached_property
    def ports(self) -> Mapping[Transport, tuple[tuple[int, int, Class], ...]]:
        """All ports of each transport in ascending ranges, each a class of its own."""
        found, number = {}, FIRST_CLASS
        for proto in TRANSPORTS:
            spans = [s for rule in self.policy.rules for s in rule.services if s.proto == proto]
            cuts = sorted({0, PORT_MAX + 1, *(s.low for s in spans), *(s.high + 1 for s in spans)})
            found[proto] = tuple((low, high - 1, number + at)
                                 for at, (low, high) in enumerate(pairwise(cuts)))
            number += len(found[proto])
        if number >= WIDE:
            raise ValueError(f"the policy tells {number} classes of ports apart; a switch has room for {WIDE - 1}")
        return found

    @cached_property
    def verdicts(self) -> tuple[Entry, ...]:
        """Each verdict that the next wider level does not say anyhow."""
        return tuple(self._entries()) if self.addresses and self.prefixes else ()  # these number the groups

    # --- parts ---

    @cached_property
    def _cidrs(self) -> tuple[tuple[str, Family], ...]:
        named = {cidr for rule in self.policy.rules for end in (rule.source, rule.target)
                 for cidr in end.keys.get("cidr", ())}
        by_family: list[tuple[str, Family]] = [(cidr, 6 if ":" in cidr else 4) for cidr in sorted(named)]
        return (*((EVERYTHING[family], family) for family in FAMILIES if EVERYTHING[family] not in named), *by_family)

    @cached_property
    def _groups(self) -> dict[tuple[int, int, Family], int]:
        return {}

    def _group(self, host: Host, family: Family) -> int:
        """Who is in the same rules, on the same side, is in one group."""
        rules = list(enumerate(self.policy.rules))
        asking = sum(selects_host(rule.source, host, family) << at for at, rule in rules)
        asked = sum(selects_host(rule.target, host, family) << at for at, rule in rules)
        return self._groups.setdefault((asking, asked, family), len(self._groups) + 1)

    def _entries(self) -> Iterator[Entry]:
        default = (self.policy.default == "allow", 0)
        known: dict[tuple[int, Family], tuple[tuple[Class, Judged], ...]] = {}
        for (asking, _, family), source in self._groups.items():
            for (_, asked, other), target in self._groups.items():
                if family != other or not asking & asked:
                    continue
                key = (asking & asked, family)
                if key not in known:
                    rules = [(at + 1, rule) for at, rule in enumerate(self.policy.rules) if key[0] >> at & 1]
                    known[key] = tuple(self._services(rules, family, default))
                yield from ((source, target, service, rule, int(allow)) for service, (allow, rule) in known[key])

    def _services(self, rules: Sequence[tuple[int, Rule]], family: Family,
                  default: Judged) -> Iterator[tuple[Class, Judged]]:
        claims = [(number, rule.verdict == "allow", service) for number, rule in rules
                  for service in rule.services if service.family in (None, family)]
        wide = _judge([(allow, number) for number, allow, service in claims if service.proto == "any"], default)
        if wide != default:
            yield WIDE, wide
        touched: dict[Class, list[Judged]] = {}
        for number, allow, service in claims:
            for one in self._classes(service):
                touched.setdefault(one, []).append((allow, number))
        everywhere = [(allow, number) for number, allow, service in claims if service.proto == "any"]
        for one, judged in sorted(touched.items()):
            verdict = _judge([*judged, *everywhere], default)
            if verdict != wide:
                yield one, verdict

    def _classes(self, service: Service) -> Iterator[Class]:
        if service.proto == "icmp":
            yield ICMP
        elif service.proto != "any":
            ranges = self.ports[service.proto]
            at = bisect.bisect_left(ranges, (service.low, 0, 0))
            while at < len(ranges) and ranges[at][0] <= service.high:
                yield ranges[at][2]
                at += 1


def _judge(claims: Sequence[Judged], default: Judged) -> Judged:
    """Deny over allow over default; of several rules the first one."""
    for verdict in (False, True):
        numbers = [number for allow, number in claims if allow is verdict]
        if numbers:
            return verdict, min(numbers)
    return default


def _stranger(cidr: str, family: Literal[4, 6]) -> Host:
    """Somebody of whom nothing is known but that the address is in `cidr`."""
    address = cidr.partition("/")[0]
    return Host("", "", address if family == 4 else "", address if family == 6 else "", "")
