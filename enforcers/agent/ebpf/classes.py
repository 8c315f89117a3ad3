"""Numbers for whoever can ask or be asked on one host: the kernel compares classes, never names. Pure.

A rule is a bit: the lower the bit, the earlier it decides (denies in file order, then allows in file order). Whatever a
rule can ask about (an owner, an address, a service) has two sets of bits: the rules it satisfies as source and as
target. Things with equal sets are one class, so a verdict is one lookup whatever the policy asks about.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from ipaddress import ip_network
from typing import NamedTuple

from lab.model import FAMILIES, Family, Host, Policy, Rule, Selector, Service, Topology
from lab.policy import NOBODY, NOBODY_UID, OWNER_KEYS, network, selects_host

# Owners that no table names. UNKNOWN: an owner that cannot be known here (another host's, and nothing told); allow
# rules take it for the one they name, deny rules do not. KERNEL: who answers an echo. OTHER: none that a rule names.
UNKNOWN, KERNEL, OTHER, FIRST_WHO = 0, 1, 2, 3  # the first two are the kernel's own: kernel/abi.h
ANY_EXE, ANY_UID = 0, 0xFFFFFFFF
_LAST_PORT = 65535
EVERYWHERE: dict[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}
LOOPBACK: dict[Family, str] = {4: "127.0.0.0/8", 6: "::1/128"}


class Ends(NamedTuple):
    """The rules that something satisfies as source, and as target."""

    source: int
    target: int

    def within(self, rules: Ends) -> Ends:
        return Ends(self.source & rules.source, self.target & rules.target)


class Executable(NamedTuple):
    """What a rule can name: a path, and where `sha256` is given, that content alone."""

    path: str
    sha256: str | None

    @property
    def id(self) -> int:
        """The number that every agent gives to it without asking another: 31 bits of SHA-256, never 0."""
        digest = hashlib.sha256(f"{self.path}\0{self.sha256 or ''}".encode()).digest()
        return int.from_bytes(digest[:4]) & 0x7FFFFFFF or 1


@dataclass(frozen=True)
class Rules:
    """The policy's rules in the order in which they decide, with what each end asks for."""

    policy: Policy
    topology: Topology

    @cached_property
    def order(self) -> tuple[Rule, ...]:
        return tuple(sorted(self.policy.rules, key=lambda rule: rule.verdict != "deny"))

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The place in the policy's file of each rule of `order`, from 1; 0 is the default."""
        places = {id(rule): place for place, rule in enumerate(self.policy.rules, 1)}
        return tuple(places[id(rule)] for rule in self.order)

    @cached_property
    def all(self) -> int:
        return (1 << len(self.order)) - 1

    @cached_property
    def denies(self) -> int:
        return self.bits(rule.verdict == "deny" for rule in self.order)

    def bits(self, flags: Iterable[bool]) -> int:
        return sum(1 << index for index, flag in enumerate(flags) if flag)

    def judge(self, matching: int) -> tuple[bool, int]:
        """The verdict, and the number of the rule that decides, where the rules `matching` match."""
        if not matching:
            return self.policy.default == "allow", 0
        first = (matching & -matching).bit_length() - 1
        return self.order[first].verdict == "allow", self.numbers[first]

    # --- owners ---

    @cached_property
    def executables(self) -> tuple[Executable, ...]:
        """Every executable that some rule names."""
        named = {name for rule in self.policy.rules for end in (rule.source, rule.target)
                 for name in end.keys.get("process", ())}
        return tuple(dict.fromkeys(Executable(p.path, p.sha256) for name, p in self.topology.processes.items()
                                   if name in named))

    @cached_property
    def users(self) -> dict[str, int]:
        """The users that some rule names and that have a uid here."""
        known = {"root": 0, NOBODY: NOBODY_UID, **self.topology.users}
        named = {user for rule in self.policy.rules for end in (rule.source, rule.target)
                 for user in end.keys.get("user", ())}
        return {user: known[user] for user in sorted(named) if user in known}

    def owners(self) -> Iterator[tuple[int, int, Ends]]:
        """Every (executable, uid) that rules tell from others; ANY_EXE and ANY_UID stand for the rest."""
        executables: list[Executable | None] = [*self.executables, None]
        users: list[str | None] = [*self.users, None]
        for executable in executables:
            for user in users:
                uid = self.users[user] if user is not None else ANY_UID
                ends = self._both(partial(self._owned, executable, user))
                yield (executable.id if executable else ANY_EXE), uid, ends

    @cached_property
    def special(self) -> dict[int, Ends]:
        """UNKNOWN and KERNEL."""
        free, allows = self.free, self.all & ~self.denies
        return {UNKNOWN: Ends(free.source | allows, free.target | allows), KERNEL: free}

    @cached_property
    def claims(self) -> bool:
        """Whether some verdict can need both owners: some rule names who asks, and some who is asked."""
        return self.all not in (self.free.source, self.free.target)

    @cached_property
    def free(self) -> Ends:
        """The rules whose end names no owner."""
        return self._both(lambda end: not any(key in end.keys for key in OWNER_KEYS))

    def _owned(self, executable: Executable | None, user: str | None, end: Selector) -> bool:
        users, names = end.keys.get("user"), end.keys.get("process")
        if users is not None and user not in users:
            return False
        if names is None:
            return True
        named = [Executable(p.path, p.sha256) for name in names if (p := self.topology.processes.get(name))]
        return executable is not None and any(
            one.path == executable.path and one.sha256 in (None, executable.sha256) for one in named)

    def _both(self, matches: Callable[[Selector], bool]) -> Ends:
        return Ends(*(sum(bits for end, bits in ends if matches(end)) for ends in self._distinct))

    @cached_property
    def _distinct(self) -> tuple[list[tuple[Selector, int]], list[tuple[Selector, int]]]:
        """Each end as it is written, once, with the rules that write it so: thousands of rules share a few."""
        found: tuple[dict[object, tuple[Selector, int]], ...] = ({}, {})
        for index, rule in enumerate(self.order):
            for ends, end in zip(found, (rule.source, rule.target), strict=True):
                key = tuple(sorted(end.keys.items()))
                ends[key] = (end, ends.get(key, (end, 0))[1] | 1 << index)
        return list(found[0].values()), list(found[1].values())

    # --- addresses ---

    @cached_property
    def hosts(self) -> dict[tuple[str, Family], Ends]:
        """By host and family."""
        return {(host.name, family): self._both(partial(_selected, host, family))
                for host in self.topology.hosts.values() for family in FAMILIES}

    @cached_property
    def networks(self) -> dict[str, Ends]:
        """Addresses of no host of the topology, by the longest prefix that holds them: rules by cidr, or by nothing."""
        prefixes = {*EVERYWHERE.values()} | {str(network(cidr)) for rule in self.policy.rules
                                             for end in (rule.source, rule.target) for cidr in end.keys.get("cidr", ())}
        return {prefix: self._both(partial(_takes_in, prefix)) for prefix in sorted(prefixes)}

    # --- services ---

    def served(self, proto: str) -> dict[Family, int]:
        """The rules about a protocol without ports, by family."""
        return {family: self.bits(any(_serves(service, proto, family) for service in rule.services)
                                  for rule in self.order) for family in FAMILIES}

    @cached_property
    def ports(self) -> dict[str, list[tuple[int, int, dict[Family, int]]]]:
        """By protocol: (first port, last, rules about them by family), ascending; together they are all ports."""
        return {proto: list(self._ranges(proto)) for proto in ("tcp", "udp")}

    def _ranges(self, proto: str) -> Iterator[tuple[int, int, dict[Family, int]]]:
        """Port by port where rules begin and end, as far as any does: each change touches the rules that change."""
        changes: dict[int, list[tuple[int, int, Family]]] = {0: []}
        for index, rule in enumerate(self.order):
            for service in rule.services:
                if service.proto in (proto, "any"):
                    low, high = (service.low, service.high) if service.proto == proto else (0, _LAST_PORT)
                    for family in FAMILIES if service.family is None else (service.family,):
                        changes.setdefault(low, []).append((1, index, family))
                        changes.setdefault(high + 1, []).append((-1, index, family))
        held: Counter[tuple[int, Family]] = Counter()  # a rule may name a port twice
        bits: dict[Family, int] = dict.fromkeys(FAMILIES, 0)
        edges = sorted(edge for edge in changes if edge <= _LAST_PORT)
        for edge, following in zip(edges, [*edges[1:], _LAST_PORT + 1], strict=True):
            for step, index, family in changes[edge]:
                before = held[index, family]
                held[index, family] = before + step
                if (before == 0) != (before + step == 0):
                    bits[family] ^= 1 << index
            yield edge, following - 1, dict(bits)


def _selected(host: Host, family: Family, end: Selector) -> bool:
    return selects_host(end, host, family)


def _takes_in(prefix: str, end: Selector) -> bool:
    """Whether a host part takes in an address within `prefix` that no host has and no longer prefix holds."""
    if any(key not in ("cidr", *OWNER_KEYS) for key in end.keys):
        return False
    inner = ip_network(prefix)
    return "cidr" not in end.keys or any(
        inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
        for outer in map(network, end.keys["cidr"]))


def _serves(service: Service, proto: str, family: Family) -> bool:
    return service.family in (None, family) and service.proto in ("any", proto)
