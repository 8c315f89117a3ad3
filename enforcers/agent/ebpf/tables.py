"""One host's part of a policy, as the kernel looks it up: classes of owners, addresses, services; and verdicts. Pure.

    who(executable, uid)       (executable, uid), (executable, any), (any, uid), else OTHER
    where(address)             the host's own by family; an address; the longest prefix
    svc(protocol, port)        tcp and udp by range of ports; icmp; any other protocol
    verdict(direction, where of the peer, who here, who there, svc), else the default
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from enforcers.agent.ebpf.classes import (
    ANY_EXE,
    ANY_UID,
    FIRST_WHO,
    KERNEL,
    LOOPBACK,
    OTHER,
    UNKNOWN,
    Ends,
    Rules,
)
from lab.model import FAMILIES, Family, Host

IN, OUT = 0, 1
ICMP, OTHER_PROTOCOL, FIRST_SVC = 0, 1, 2


class Key(NamedTuple):
    """What a verdict is looked up by. `where` is the peer's; `who` the owner here, `peer` the one there."""

    direction: int
    where: int
    who: int
    peer: int
    svc: int


class Decision(NamedTuple):
    """`rule`: its place in the policy's file from 1; 0: the default. `claim`: the other end has to be told who asks."""

    allow: bool
    rule: int
    claim: bool = False


@dataclass
class Tables:
    """The tables of one host. `own`: the class of its own addresses, by family; `ports`: (protocol, first, last)."""

    host: str
    default: bool
    loopback: bool
    claims: bool = False  # whether a SYN can tell who asks
    own: dict[Family, int] = field(default_factory=dict)
    who: dict[tuple[int, int], int] = field(default_factory=dict)
    where: dict[str, int] = field(default_factory=dict)
    networks: dict[str, int] = field(default_factory=dict)
    ports: dict[tuple[str, int, int], int] = field(default_factory=dict)
    verdicts: dict[Key, Decision] = field(default_factory=dict)


def tables(host: Host, rules: Rules) -> Tables:
    """What `host` has to know of the policy."""
    return _Maker(host, rules).made


class _Maker:
    """Numbers are given out in the order in which things are met, so that equal policies make equal tables."""

    def __init__(self, host: Host, rules: Rules) -> None:
        self.host, self.rules = host, rules
        own = [rules.hosts[host.name, family] for family in FAMILIES]
        as_source, as_target = (own[0].source | own[1].source), (own[0].target | own[1].target)
        # A peer matters as the target of what we may send, and as the source of what we may get; and so an owner there.
        self._here4 = own[0]
        self.as_peer, self.here = Ends(as_target, as_source), Ends(as_source, as_target)
        self.made = Tables(host.name, rules.policy.default == "allow", rules.policy.loopback, rules.claims)
        self.whos: dict[int, Ends] = {}
        self.wheres: dict[int, tuple[Family, bool, Ends]] = {}
        self.svcs: dict[int, Mapping[Family, int]] = {}
        self._owners()
        self._addresses()
        self._services()
        self._verdicts()

    def _owners(self) -> None:
        whole = Ends(self.rules.all, self.rules.all)
        both = Ends(self.here.source | self.as_peer.source, self.here.target | self.as_peer.target).within(whole)
        self.whos = {number: ends.within(both) for number, ends in self.rules.special.items()}
        found = {(exe, uid): ends.within(both) for exe, uid, ends in self.rules.owners()}
        self.whos[OTHER] = found.pop((ANY_EXE, ANY_UID))
        numbers = {self.whos[OTHER]: OTHER}
        for (executable, uid), ends in found.items():
            if ends not in numbers:
                numbers[ends] = FIRST_WHO + len(numbers) - 1
                self.whos[numbers[ends]] = ends
            self.made.who[executable, uid] = numbers[ends]
        _drop_repeated(self.made.who)

    def _addresses(self) -> None:
        numbers: dict[tuple[Family | None, bool, Ends], int] = {}
        apart = any(service.family for rule in self.rules.order for service in rule.services)

        def number(family: Family, own: bool, ends: Ends) -> int:
            ends = ends.within(self.as_peer)
            here = self.rules.hosts[self.host.name, family]
            at = numbers.setdefault((family if apart or here != self._here4 else None, own, ends), len(numbers))
            self.wheres.setdefault(at, (family, own, ends))
            return at

        for family in FAMILIES:
            self.made.own[family] = number(family, True, self.rules.hosts[self.host.name, family])
            if self.made.loopback:
                self.made.networks[LOOPBACK[family]] = self.made.own[family]
        for prefix, ends in self.rules.networks.items():
            self.made.networks.setdefault(prefix, number(6 if ":" in prefix else 4, False, ends))
        for peer in self.rules.topology.hosts.values():
            for family in FAMILIES:
                own = peer.name == self.host.name
                self.made.where[peer.address(family)] = number(family, own, self.rules.hosts[peer.name, family])

    def _services(self) -> None:
        relevant = self.here.source | self.here.target
        for number, proto in ((ICMP, "icmp"), (OTHER_PROTOCOL, "other")):
            self.svcs[number] = {family: bits & relevant for family, bits in self.rules.served(proto).items()}
        numbers: dict[tuple[int, ...], int] = {}
        for proto, ranges in self.rules.ports.items():
            begun: tuple[int, int] | None = None  # where the current range begins, and its number
            for low, _, about in ranges:
                bits = {family: found & relevant for family, found in about.items()}
                number = numbers.setdefault(tuple(bits.values()), FIRST_SVC + len(numbers))
                self.svcs[number] = bits
                if begun is None or begun[1] != number:
                    if begun is not None:
                        self.made.ports[proto, begun[0], low - 1] = begun[1]
                    begun = (low, number)
            assert begun is not None, "port 0 always begins a range"
            self.made.ports[proto, begun[0], 65535] = begun[1]

    def _verdicts(self) -> None:
        for where, (family, own, peer) in self.wheres.items():
            here = self.rules.hosts[self.host.name, family]
            for direction, rules in ((OUT, here.source & peer.target), (IN, here.target & peer.source)):
                if rules:
                    self.made.verdicts.update(
                        (key, decision) for key, bits in self._keys(direction, where, family, own, rules)
                        if (decision := self._decision(key, bits, family, rules)) != (self.made.default, 0, False))

    def _decision(self, key: Key, matching: int, family: Family, rules: int) -> Decision:
        """What an allowed sender has to tell: who it is, where some rule names who is asked and some who asks."""
        allow, rule = self.rules.judge(matching)
        free, served = self.rules.free, rules & self.svcs[key.svc][family]
        crossed = bool(served & ~free.source) and bool(served & ~free.target)
        return Decision(allow, rule, allow and crossed and key.direction == OUT and key.peer == UNKNOWN)

    def _keys(self, direction: int, where: int, family: Family, own: bool, rules: int) -> Iterator[tuple[Key, int]]:
        """Every key that can be asked for, with the rules that match it."""
        for svc, of_family in self.svcs.items():
            served = rules & of_family[family]
            if not served:
                continue
            for who, peer in self._pairs(direction, own, svc):
                mine, theirs = self.whos[who], self.whos[peer]
                ends = mine.source & theirs.target if direction == OUT else mine.target & theirs.source
                if served & ends or self.made.default:
                    yield Key(direction, where, who, peer, svc), served & ends

    def _pairs(self, direction: int, own: bool, svc: int) -> Iterator[tuple[int, int]]:
        """(owner here, owner there) that can meet: an echo ends in the kernel; over there, only who asks us is told."""
        owners = [number for number in self.whos if number not in (UNKNOWN, KERNEL)]
        anyone = [UNKNOWN, *owners]
        if svc == ICMP:
            senders, targets = (owners if direction == OUT else anyone), [KERNEL]
        elif direction == OUT:
            senders, targets = owners, (anyone if own else [UNKNOWN])
        else:
            senders, targets = (anyone if own or self.rules.claims else [UNKNOWN]), owners
        for sender in senders:
            for target in targets:
                yield (sender, target) if direction == OUT else (target, sender)


def _drop_repeated(who: dict[tuple[int, int], int]) -> None:
    """Leave out what the next wider lookup says anyhow."""
    for executable, uid in [key for key in who if key[0] != ANY_EXE and key[1] != ANY_UID]:
        if who[executable, uid] == who.get((executable, ANY_UID)):
            del who[executable, uid]
    if all(uid == ANY_UID for _, uid in who):
        for key in [key for key, number in who.items() if number == OTHER]:
            del who[key]
