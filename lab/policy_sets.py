"""The oracle over millions of flows: the same verdicts and deciding rules as `lab.policy.decide`, by sets of rules.

Each thing that a rule can ask about (source host, source process, ...) has a table with one bitset of rules for each
value: the rules that this value satisfies. The rules that match a flow are the intersection of six table rows, and
with denies numbered before allows, each in file order, the deciding rule is the lowest bit that is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

from lab.model import FAMILIES, STRANGER, Flow, Policy, Proto, Rule, Scenario, Selector, Service, Topology, Verdict
from lab.policy import DEFAULT, NOBODY, OWNER_KEYS, Offer, network, offered, owner_user, same_identity, sources

Bits = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]

PROTOS: tuple[Proto, ...] = ("tcp", "udp", "icmp")
_PORTS = 1 << 16
_CHUNK = 1 << 15  # flows at a time, so that the intermediate arrays stay in the second-level cache
_OTHER_USER = "(other user)"  # cannot be a user's name: stands for all that neither topology nor policy mentions
_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


@dataclass(frozen=True, slots=True)
class FlowArrays:
    """n flows as eight int32 columns of length n: numbers that only the `Oracle` that made them understands."""

    source: Ints
    process: Ints
    user: Ints
    target: Ints
    target_process: Ints
    proto: Ints  # index into PROTOS
    port: Ints
    family: Ints  # 4 or 6

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: NDArray[np.intp] | slice) -> FlowArrays:
        """The flows at `indices`, in that order."""
        return FlowArrays(*(column[indices] for column in self.columns()))

    def columns(self) -> tuple[Ints, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


class Oracle:
    """`decide` for one policy on one topology, compiled once; a million verdicts take a fraction of a second."""

    def __init__(self, policy: Policy, topology: Topology) -> None:
        self._policy, self._topology = policy, topology
        self._hosts = _numbered(topology.hosts)
        self._processes = _numbered((*topology.processes, STRANGER, ""))
        self._users = _numbered((*topology.users, NOBODY, "", *_users_named(policy), _OTHER_USER))
        self._order = sorted(range(len(policy.rules)), key=lambda i: (policy.rules[i].verdict != "deny", i))
        # rule index by bit; the extra last entry is what "no bit" finds
        self._rule_of_bit = np.array([*self._order, -1], dtype=np.int32)
        self._allows = np.array([*(r.verdict == "allow" for r in policy.rules), policy.default == "allow"])
        # the bits of the last word that stand for a rule; tables have ones beyond them
        self._full_words, rest = divmod(len(policy.rules), 64)
        self._last_word = np.uint64((1 << rest) - 1)
        self._atoms = _ServiceAtoms([policy.rules[i].services for i in self._order])
        self._tables = self._compile([policy.rules[i] for i in self._order])

    # --- flows to numbers and back

    def encode(self, flows: Iterable[Flow]) -> FlowArrays:
        """`flows` as columns, in their order."""
        flows = flows if isinstance(flows, Sequence) else tuple(flows)
        undeclared, unknown_user = self._processes[STRANGER], self._users[_OTHER_USER]
        hosts, processes, users, protos = self._hosts, self._processes, self._users, _numbered(PROTOS)

        def column(values: Iterable[int]) -> Ints:
            return np.fromiter(values, np.int32, len(flows))

        return FlowArrays(
            column(hosts[f.source] for f in flows),
            column(processes.get(f.process, undeclared) for f in flows),
            column(users.get(f.user, unknown_user) for f in flows),
            column(hosts[f.target] for f in flows),
            column(processes.get(f.target_process, undeclared) for f in flows),
            column(protos[f.proto] for f in flows),
            column(f.port for f in flows),
            column(f.family for f in flows),
        )

    def encode_all(self, scenario: Scenario) -> FlowArrays:
        """Every flow that could be tried, in the order of `lab.policy.iter_flows`, without making a `Flow` of each.

        `scenario` must have this oracle's topology. Gigabytes are avoided: 32 bytes a flow.
        """
        actors = sources(scenario)
        targets = _Targets(self, offered(self._topology))
        parts = [targets.tried_by(source, self._actors(who)) for source, who in actors.items()]
        return FlowArrays(*(np.concatenate(column) for column in zip(*(p.columns() for p in parts), strict=True)))

    def decode(self, arrays: FlowArrays) -> tuple[Flow, ...]:
        """The `Flow`s that `arrays` stand for; every undeclared process comes out as STRANGER."""
        hosts, users, processes = list(self._hosts), list(self._users), list(self._processes)
        rows = zip(*(column.tolist() for column in arrays.columns()), strict=True)
        return tuple(
            Flow(
                hosts[source], processes[process], users[user], hosts[target], processes[owner],
                PROTOS[proto], port, family,
            )
            for source, process, user, target, owner, proto, port, family in rows
        )  # fmt: skip

    def _actors(self, who: Iterable[tuple[str, str]]) -> list[tuple[int, int]]:
        return [(self._processes[process], self._users[user]) for process, user in who]

    def _offers(self, offers: Iterable[Offer]) -> list[tuple[int, int, int]]:
        return [(self._processes[process], PROTOS.index(proto), port) for process, proto, port in offers]

    # --- verdicts

    def decide_many(self, arrays: FlowArrays) -> tuple[Bools, Ints]:
        """For each flow: whether it is allowed, and the index in `policy.rules` of what decided (-1: the default)."""
        bits = np.empty(len(arrays), dtype=np.int32)
        for start in range(0, len(arrays), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            bits[chunk] = self._deciding_bits(arrays.take(chunk))
        rules = self._rule_of_bit[bits]
        return self._allows[rules], rules

    def verdicts(self, flows: Iterable[Flow]) -> list[Verdict]:
        """`decide` of each flow, in order."""
        allow, rules = self.decide_many(self.encode(flows))
        names = [*(rule.name for rule in self._policy.rules), DEFAULT]
        return [Verdict(a, names[r]) for a, r in zip(allow.tolist(), rules.tolist(), strict=True)]

    def _deciding_bits(self, flows: FlowArrays) -> Ints:
        six = flows.family == 6
        keys = (
            flows.source * 2 + six,
            flows.process,
            flows.user,
            flows.target * 2 + six,
            flows.target_process,
            self._atoms.of(flows.proto, flows.port) * 2 + six,
        )
        lowest = np.full(len(flows), -1, dtype=np.int32)
        for word, tables in enumerate(self._tables):
            matching = np.full(len(flows), _ALL if word < self._full_words else self._last_word)
            for key, table in zip(keys, tables, strict=True):
                if table is not None:
                    matching &= table.take(key)
            first = (matching != 0) & (lowest < 0)
            if first.any():
                found = matching[first]
                # the bits below the lowest set one, counted
                lowest[first] = np.bitwise_count((found & (~found + np.uint64(1))) - np.uint64(1)) + np.int32(64 * word)
        return lowest

    # --- compilation: by word of 64 rules, one column per table; None where the table constrains nothing

    def _compile(self, rules: Sequence[Rule]) -> list[tuple[Bits | None, ...]]:
        ends = _Ends(self._topology, list(self._processes), list(self._users))
        tables = (
            _table([ends.hosts(rule.source) for rule in rules]),
            _table([ends.processes(rule.source) for rule in rules]),
            _table([ends.users(rule.source) for rule in rules]),
            _table([ends.hosts(rule.target) for rule in rules]),
            _table([ends.receivers(rule.target) for rule in rules]),
            self._atoms.table,
        )
        words = (len(rules) + 63) // 64
        return [tuple(_column(table, word) for table in tables) for word in range(words)]


class _Ends:
    """Which hosts, processes and users satisfy a selector, as boolean vectors, each distinct constraint once."""

    def __init__(self, topology: Topology, processes: list[str], users: list[str]) -> None:
        self._topology, self._processes, self._users = topology, processes, users
        self._hosts = list(topology.hosts.values())
        self._addresses = {
            family: np.array([int(ip_address(host.address(family))) for host in self._hosts], dtype=object)
            for family in FAMILIES
        }
        self._known: dict[tuple[str, str], Bools] = {}

    def hosts(self, selector: Selector) -> Bools:
        """By host number * 2, + 1 for IPv6."""
        result = np.ones(2 * len(self._hosts), dtype=bool)
        for key, values in selector.keys.items():
            if key not in OWNER_KEYS:
                result &= np.any([self._host_value(key, value) for value in values], axis=0)
        return result

    def processes(self, selector: Selector) -> Bools:
        """By process number."""
        names = selector.keys.get("process")
        if names is None:
            return np.ones(len(self._processes), dtype=bool)
        declared = self._topology.processes
        return np.array(
            [
                name in declared and any(same_identity(declared[n], declared[name]) for n in names)
                for name in self._processes
            ]
        )

    def users(self, selector: Selector) -> Bools:
        """By user number."""
        users = selector.keys.get("user")
        return np.array([users is None or user in users for user in self._users])

    def receivers(self, selector: Selector) -> Bools:
        """By number of the receiving process, which fixes the user as well."""
        users = selector.keys.get("user")
        by_user = [users is None or owner_user(name, self._topology) in users for name in self._processes]
        allowed: Bools = self.processes(selector) & np.array(by_user)
        return allowed

    def _host_value(self, key: str, value: str) -> Bools:
        if (key, value) not in self._known:
            self._known[key, value] = self._cidr(value) if key == "cidr" else np.repeat(self._named(key, value), 2)
        return self._known[key, value]

    def _named(self, key: str, value: str) -> Bools:
        if key in ("host", "segment"):
            return np.array([(host.name if key == "host" else host.segment) == value for host in self._hosts])
        return np.array([host.labels.get(key) == value for host in self._hosts])

    def _cidr(self, value: str) -> Bools:
        net = network(value)
        low, high = int(net.network_address), int(net.broadcast_address)
        result = np.zeros(2 * len(self._hosts), dtype=bool)
        addresses = self._addresses[6 if net.version == 6 else 4]
        result[net.version == 6 :: 2] = ((addresses >= low) & (addresses <= high)).astype(bool)
        return result


class _ServiceAtoms:
    """The ranges of ports between which no rule distinguishes, numbered; `table` has a row per atom * 2 + IPv6."""

    def __init__(self, services_of_rules: Sequence[Sequence[Service]]) -> None:
        self._first, atoms = np.zeros((len(PROTOS), _PORTS), dtype=np.int32), 0
        starts: list[tuple[str, int]] = []
        for number, proto in enumerate(PROTOS):
            edges = {0}
            for service in (s for services in services_of_rules for s in services if s.proto == proto):
                edges.update(edge for edge in (service.low, service.high + 1) if edge < _PORTS)
            ordered = np.array(sorted(edges))
            self._first[number] = atoms + np.searchsorted(ordered, np.arange(_PORTS), side="right") - 1
            starts += [(proto, int(edge)) for edge in ordered]
            atoms += len(ordered)
        self.table = _table([self._row(services, starts) for services in services_of_rules])

    def of(self, proto: Ints, port: Ints) -> Ints:
        """The atom of each (proto, port)."""
        return self._first[proto, port]

    @staticmethod
    def _row(services: Sequence[Service], starts: Sequence[tuple[str, int]]) -> Bools:
        protos = np.array([proto for proto, _ in starts])
        ports = np.array([port for _, port in starts])
        result = np.zeros((len(starts), len(FAMILIES)), dtype=bool)
        for service in services:
            inside = (
                np.ones(len(starts), dtype=bool)
                if service.proto == "any"
                else (protos == service.proto) & (ports >= service.low) & (ports <= service.high)
            )
            for column, family in enumerate(FAMILIES):
                if service.family in (None, family):
                    result[:, column] |= inside
        return result.ravel()


class _Targets:
    """All that can be tried at all hosts, ready to be combined with the actors of one source after another."""

    def __init__(self, oracle: Oracle, offers: Mapping[str, Sequence[Offer]]) -> None:
        self._oracle = oracle
        self._offers = [(oracle._hosts[host], oracle._offers(of_host)) for host, of_host in offers.items()]
        topology = oracle._topology
        self._tenants = {oracle._hosts[name]: topology.tenant(name) for name in topology.hosts}
        self._patterns: dict[tuple[int, str], NDArray[np.int32]] = {}

    def tried_by(self, source: str, actors: Sequence[tuple[int, int]]) -> FlowArrays:
        """Every flow of one source host: by target, then actor, then offer, then family."""
        rows = self._pattern(len(actors), self._tenants[self._oracle._hosts[source]])
        who = np.array(actors, dtype=np.int32)[rows[0]]
        host = np.full(rows.shape[1], self._oracle._hosts[source], dtype=np.int32)
        return FlowArrays(host, who[:, 0], who[:, 1], *rows[1:])

    def _pattern(self, actors: int, tenant: str) -> NDArray[np.int32]:
        """Rows: number of the actor among the source's, target, target process, proto, port, family."""
        if (actors, tenant) not in self._patterns:
            blocks = []
            for target, offers in self._offers:
                if self._tenants[target] != tenant:
                    continue
                count = len(offers)
                actor = np.repeat(np.arange(actors, dtype=np.int32), count * len(FAMILIES))
                fixed = np.full(len(actor), target, dtype=np.int32)
                offered_there = np.tile(np.repeat(offers, len(FAMILIES), axis=0), (actors, 1)).T
                family = np.tile(np.array(FAMILIES, dtype=np.int32), actors * count)
                blocks.append(np.vstack([actor, fixed, offered_there, family]))
            self._patterns[actors, tenant] = np.hstack(blocks)
        return self._patterns[actors, tenant]


def _table(rows: Sequence[Bools]) -> Bits:
    """Bitsets of rules by value: `rows` has for each rule which values satisfy it; the result is [word, value].

    Bits beyond the last rule are ones, so that a table that constrains nothing is all ones.
    """
    if not rows:
        return np.zeros((0, 0), dtype=np.uint64)
    by_value = np.array(rows).T  # [value, rule]
    padded = np.ones((by_value.shape[0], -(-by_value.shape[1] // 64) * 64), dtype=bool)
    padded[:, : by_value.shape[1]] = by_value
    words = np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    return np.ascontiguousarray(words.T)


def _column(table: Bits, word: int) -> Bits | None:
    column = table[word]
    return None if bool((column == _ALL).all()) else column


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _users_named(policy: Policy) -> Iterable[str]:
    return (user for rule in policy.rules for end in (rule.source, rule.target) for user in end.keys.get("user", ()))
