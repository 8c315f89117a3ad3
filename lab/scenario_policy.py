"""From the document to selectors and rules; one that selects nothing in the topology is a typo. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Literal

from lab.model import Host, Policy, Rule, Selector, Service
from lab.policy import DEFAULT, NOBODY, OWNER_KEYS, network, owner_user, selects_host, selects_owner
from lab.problems import Place, Report, shown, suggest
from lab.scenario_topology import Built
from lab.schema import RuleBody, RuleDoc
from lab.services import ServiceError, parse_service

_MEANT = {"host": "hosts", "segment": "segments", "process": "processes", "user": "users"}


class Selectors:
    """Makes selectors out of the document's, and says what is wrong with them."""

    def __init__(self, built: Built, report: Report) -> None:
        self.built, self.report = built, report
        self._empty: dict[tuple[tuple[str, tuple[str, ...]], ...], bool] = {}

    def end(self, place: Place, doc: Mapping[str, list[str]]) -> Selector:
        """One end of a rule."""
        before = len(self.report.problems)
        keys = {key: self._values((*place, key), key, values) for key, values in doc.items() if key != "any"}
        selector = Selector(keys)
        if len(self.report.problems) == before and self.built.certain and self._selects_nothing(selector):
            self.report.add(place, "no host fits all of it, or none of those runs the process; change one part")
        return selector

    def hosts(self, place: Place, doc: Mapping[str, list[str]]) -> tuple[str, ...]:
        """The hosts that a selector outside the policy names; it may not ask for a process or user."""
        for key in OWNER_KEYS:
            if key in doc:
                self.report.add((*place, key), f"'{key}' says nothing about hosts; write labels, host, segment or cidr")
                return ()
        before = len(self.report.problems)
        selector = self.end(place, doc)
        found = tuple(h.name for h in self.built.topology.hosts.values() if selects_host(selector, h))
        if not found and len(self.report.problems) == before and self.built.certain:
            self.report.add(place, "no host fits; change it")
        return found

    # --- values

    def _values(self, place: Place, key: str, values: list[str]) -> tuple[str, ...]:
        if key == "cidr":
            return tuple(self._cidr(place, value) for value in values)
        result: list[str] = []
        for value in values:
            if key == "host" and value in self.built.entries:
                result += self.built.entries[value]
                continue
            result.append(value)
            if value not in self._known(key) and (message := self._unknown(key, value)):
                self.report.add(place, message)
                break
        return tuple(dict.fromkeys(result))

    def _unknown(self, key: str, value: str) -> str | None:
        """What to say of a value that nothing has; None where it may be in a part of the file that is wrong."""
        built, options = self.built, self._known(key)
        if key == "process" and value in built.topology.processes:
            return f"process '{value}' runs on no host; write it under runs of one" if built.certain else None
        if key == "process":
            maybe, options = built.shaped.may_have(value, "processes"), built.topology.processes
        else:
            maybe = not (built.certain if key == "user" else built.shaped.whole("topology"))
        if maybe:
            return None
        if key == "host":
            options = {**built.entries, **options}
        if key in _MEANT:
            return f"there is no {key} {shown(value)}; {suggest(value, options, _MEANT[key])}"
        if options:
            return f"no host has {shown(value)} there; {suggest(value, options, 'values')}"
        labels = [*self._labels, "host", "segment", "cidr", "process", "user"]
        return f"no host has a label {shown(key)}; {suggest(key, labels, 'keys')}"

    def _cidr(self, place: Place, text: str) -> str:
        try:
            if "%" in text:
                raise ValueError
            return str(network(text))
        except ValueError:
            self.report.add(place, f"{shown(text)} is not a prefix; write one such as 10.10.1.0/24 or fd10:1::/64")
            return "0.0.0.0/32"

    def _known(self, key: str) -> Mapping[str, object]:
        topology = self.built.topology
        if key == "host":
            return topology.hosts
        if key == "segment":
            return self.built.shaped.document.topology.segments
        if key == "process":
            return self._running
        if key == "user":
            return dict.fromkeys([*(topology.processes[name].user for name in self._running), NOBODY])
        return self._labels.get(key, {})

    @cached_property
    def _running(self) -> Mapping[str, None]:
        return dict.fromkeys(name for host in self.built.topology.hosts.values() for name in host.runs)

    @cached_property
    def _labels(self) -> Mapping[str, dict[str, None]]:
        """The values of each label, in the order of the file."""
        found: dict[str, dict[str, None]] = {}
        for host in self.built.topology.hosts.values():
            for key, value in host.labels.items():
                found.setdefault(key, {})[value] = None
        return found

    # --- whether the whole selects anything

    def _selects_nothing(self, selector: Selector) -> bool:
        """No end that can exist fits. A cidr may name what is not there."""
        if "cidr" in selector.keys:
            return False
        known = tuple(selector.keys.items())
        if known not in self._empty:
            hosts = self.built.topology.hosts.values()
            self._empty[known] = not any(selects_host(selector, h) and self._owned(selector, h) for h in hosts)
        return self._empty[known]

    def _owned(self, selector: Selector, host: Host) -> bool:
        """Whether something on `host` fits: a process under its user or `nobody`, or an undeclared executable."""
        topology = self.built.topology
        owners = [(name, user) for name in host.runs for user in (owner_user(name, topology), NOBODY)]
        return any(selects_owner(selector, topology, *owner) for owner in [*owners, ("", NOBODY)])


def build_policy(selectors: Selectors) -> Policy:
    """The policy of the document, as far as it is right; `selectors` knows the document and takes what is wrong."""
    shaped = selectors.built.shaped
    doc = shaped.document.policy
    rules, seen = [], {DEFAULT: "what a verdict names when no rule decides"}
    for index, rule in zip(shaped.rules, doc.rules, strict=True):
        name = rule.name or f"rule-{index + 1}"
        if name in seen:
            selectors.report.add(("policy", "rules", index, "name"), f"{shown(name)} is {seen[name]}; write another")
        seen[name] = "another rule's name"
        rules.append(_rule(name, index, rule, selectors))
    return Policy(doc.default, tuple(rules), doc.loopback)


def _rule(name: str, index: int, doc: RuleDoc, selectors: Selectors) -> Rule:
    body = doc.deny if doc.allow is None else doc.allow
    assert body is not None, "the shape has exactly one of them"
    verdict: Literal["allow", "deny"] = "deny" if doc.allow is None else "allow"
    place = ("policy", "rules", index, verdict)
    source = selectors.end((*place, "from"), body.source)
    target = selectors.end((*place, "to"), body.target)
    return Rule(name, verdict, source, target, _services((*place, "service"), body, selectors))


def _services(place: Place, body: RuleBody, selectors: Selectors) -> tuple[Service, ...]:
    found: list[Service] = []
    for text in body.service:
        process = selectors.built.topology.processes.get(text)
        if process is not None and process.listens:
            found += [replace(service, family=body.family) for service in process.listens]
            continue
        try:
            found.append(parse_service(text, body.family))
        except ServiceError as err:
            selectors.report.add(place, str(err))
    return tuple(dict.fromkeys(found))
