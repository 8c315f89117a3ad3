"""What the compiled tables amount to, as a policy: the written one, but where an end's owner cannot be known. Pure.

Each agent knows the owner at its own end. Of TCP the owner that asks travels in the SYN, and within one host both are
known: there the policy holds as written. What is left:

- An end without an agent: an allow rule that names its owner takes any owner for it (widened), a deny rule is omitted.
- UDP between two hosts: each end judges by its own owner alone. A deny rule that names both is omitted; and where one
  rule names the owner that is asked and another the one that asks, what passes the first at the one end and the
  second at the other passes both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lab.model import FAMILIES, Approximation, Family, Host, Policy, Rule, Selector, Service, Topology
from lab.policy import OWNER_KEYS, names_owner, selects_host

_NO_AGENT = "no agent there to tell {keys} ({hosts})"
_UDP = "udp between hosts: a datagram does not tell who sent it"


def effective(policy: Policy, topology: Topology) -> tuple[Policy, tuple[Approximation, ...]]:
    """The policy that agents on every host that takes one can enforce, and each rule that had to change for it."""
    return _Bender(policy, topology).bent()


@dataclass(frozen=True)
class _Bender:
    policy: Policy
    topology: Topology

    def bent(self) -> tuple[Policy, tuple[Approximation, ...]]:
        rules: list[Rule] = []
        said: list[Approximation] = []
        for rule in self.policy.rules:
            for one, why in self._split(rule):
                rules += one
                said += why
        crossed = list(self._crossed())
        rules += [rule for rule, _ in crossed]
        said += [why for _, why in crossed]
        return replace(self.policy, rules=tuple(rules)), tuple(dict.fromkeys(said))

    # --- ends without an agent ---

    def _split(self, rule: Rule) -> Iterator[tuple[list[Rule], list[Approximation]]]:
        """The rule between agents as written; beside it, what is left of it where one end has none."""
        both_named = names_owner(rule.source) and names_owner(rule.target)
        if rule.verdict == "deny" and both_named and any(s.proto in ("udp", "any") for s in rule.services):
            told = Approximation(rule.name, "omitted", f"{_UDP}, so a rule that names both ends cannot be told there")
            yield self._without_udp(self._managed_ends(rule)), [told]
        else:
            yield ([rule] if rule.verdict == "allow" else self._managed_ends(rule)), []
        if names_owner(rule.target):
            yield self._unmanaged(rule, "target")
        if names_owner(rule.source):
            yield self._unmanaged(rule, "source")

    def _unmanaged(self, rule: Rule, end: str) -> tuple[list[Rule], list[Approximation]]:
        """The rule where `end` has no agent. It adds nothing where there is no such host."""
        selector: Selector = getattr(rule, end)
        hosts = [host for host in self._unmanaged_hosts if selects_host(selector, host)]
        if not hosts:
            return [], []
        keys = " and ".join(key for key in OWNER_KEYS if key in selector.keys)
        reason = _NO_AGENT.format(keys=keys, hosts=_few([host.name for host in hosts]))
        if rule.verdict == "deny":
            return [], [Approximation(rule.name, "omitted", f"{reason}; denied without it, others would be cut too")]
        services = rule.services if end == "source" else tuple(_without_icmp(rule.services))
        widened = replace(_with(rule, end, _at(_hosts_only(selector), hosts)), services=services)
        return ([widened] if services else []), [Approximation(rule.name, "widened", reason)]

    def _managed_ends(self, rule: Rule) -> list[Rule]:
        """A deny rule, wherever an agent can tell the owners that it names; none where it never can."""
        for end in ("source", "target"):
            selector: Selector = getattr(rule, end)
            if names_owner(selector) and any(selects_host(selector, host) for host in self._unmanaged_hosts):
                hosts = [host for host in self._managed if selects_host(selector, host)]
                if not hosts:
                    return []
                rule = _with(rule, end, _at(selector, hosts))
        return [rule]

    @property
    def _unmanaged_hosts(self) -> list[Host]:
        return [host for host in self.topology.hosts.values() if not host.takes_agent]

    @property
    def _managed(self) -> list[Host]:
        return [host for host in self.topology.hosts.values() if host.takes_agent]

    # --- datagrams between hosts ---

    def _without_udp(self, rules: list[Rule]) -> list[Rule]:
        """A deny that names both ends: as written, but of UDP only within each host."""
        return [part for rule in rules for part in self._one_without_udp(rule)]

    def _one_without_udp(self, rule: Rule) -> list[Rule]:
        rest = tuple(part for service in rule.services for part in _not_udp(service))
        udp = tuple(_only_udp(rule.services))
        within = [replace(rule, source=_at(rule.source, [host]), target=_at(rule.target, [host]), services=udp)
                  for host in self._managed if selects_host(rule.source, host) and selects_host(rule.target, host)]
        return ([replace(rule, services=rest)] if rest else []) + within

    def _crossed(self) -> Iterator[tuple[Rule, Approximation]]:
        """What two allow rules let through together: one names the owner that is asked, the other the one that asks."""
        allows = [rule for rule in self.policy.rules if rule.verdict == "allow" and any(_only_udp(rule.services))]
        asked = [rule for rule in allows if names_owner(rule.target)]
        asking = [rule for rule in allows if names_owner(rule.source)]
        for first in asked:
            for second in asking:
                if first is not second:
                    yield from self._together(first, second)

    def _together(self, first: Rule, second: Rule) -> Iterator[tuple[Rule, Approximation]]:
        """`first` passes where it is sent, with any owner asked; `second` where it arrives, with any owner asking."""
        for family in FAMILIES:
            services = tuple(_meet(first.services, second.services, family))
            sources = self._meeting(first.source, second.source, family)
            targets = self._meeting(first.target, second.target, family)
            if not services:
                continue
            for source in sources:
                others = [host for host in targets if host is not source]
                if others:
                    crossed = Rule(f"{first.name} + {second.name}"[:63], "allow",
                                   _at(_owner_only(first.source), [source]), _at(_owner_only(second.target), others),
                                   services)
                    yield crossed, Approximation(first.name, "widened", f"{_UDP}; passes with '{second.name}' too")

    def _meeting(self, one: Selector, two: Selector, family: Family) -> list[Host]:
        return [host for host in self._managed if selects_host(one, host, family) and selects_host(two, host, family)]


# --- parts of rules -----------------------------------------------------------------------------


def _with(rule: Rule, end: str, selector: Selector) -> Rule:
    return replace(rule, source=selector) if end == "source" else replace(rule, target=selector)


def _hosts_only(selector: Selector) -> Selector:
    return Selector({key: values for key, values in selector.keys.items() if key not in OWNER_KEYS})


def _owner_only(selector: Selector) -> Selector:
    return Selector({key: values for key, values in selector.keys.items() if key in OWNER_KEYS})


def _at(selector: Selector, hosts: Sequence[Host]) -> Selector:
    """The selector at these hosts alone, all of which it selects."""
    return Selector({**selector.keys, "host": tuple(host.name for host in hosts)})


def _without_icmp(services: Iterable[Service]) -> Iterator[Service]:
    """The kernel answers an echo: a target that names its owner never meant icmp."""
    for service in services:
        if service.proto == "any":
            yield replace(service, proto="tcp", low=0, high=65535)
            yield replace(service, proto="udp", low=0, high=65535)
        elif service.proto != "icmp":
            yield service


def _not_udp(service: Service) -> Iterator[Service]:
    if service.proto == "any":
        yield replace(service, proto="tcp", low=0, high=65535)
        yield replace(service, proto="icmp", low=0, high=65535)
    elif service.proto != "udp":
        yield service


def _only_udp(services: Iterable[Service]) -> Iterator[Service]:
    for service in services:
        if service.proto in ("udp", "any"):
            ports = (service.low, service.high) if service.proto == "udp" else (0, 65535)
            yield replace(service, proto="udp", low=ports[0], high=ports[1])


def _meet(one: Iterable[Service], two: Iterable[Service], family: Family) -> Iterator[Service]:
    """The UDP services that are in both, over `family`."""
    others = [service for service in _only_udp(two) if service.family in (None, family)]
    for service in _only_udp(one):
        for other in others:
            low, high = max(service.low, other.low), min(service.high, other.high)
            if service.family in (None, family) and low <= high:
                yield Service("udp", low, high, family)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
