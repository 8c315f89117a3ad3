"""Asking the agents of a standing lab, on their hosts: what is loaded, in which mode, what they decided and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.contract import Guarded
from lab.backends.served import ServedTestbed
from lab.hosts.roles import path_of
from lab.model import Flow, Point, Scenario
from lab.policy import NOBODY_UID, owner_user

QUESTIONS = ("status", "policy", "flows")


class AskError(RuntimeError):
    """An agent cannot be asked, or had no answer; one line that says which and why."""


class Agents:
    """The agents of the arm that stands, one a host that takes an agent."""

    def __init__(self, scenario: Scenario, enforcer: Guarded, testbed: ServedTestbed) -> None:
        self._scenario, self._enforcer, self._testbed = scenario, enforcer, testbed

    def tell(self, what: str, host: str | None) -> dict[str, Any]:
        """Every agent's answer, or that of `host`, by host. Raises AskError."""
        if what not in QUESTIONS:
            raise AskError(f"labctl: an agent cannot be asked '{what}'; ask for one of: {', '.join(QUESTIONS)}")
        return {"arm": self._enforcer.name, "hosts": {one: self._ask(one, what) for one in self._hosts(host)}}

    def mode(self, words: Sequence[str], host: str | None) -> dict[str, Any]:
        """Put agents in a mode, with services that are enforced whatever it is; then what they say of themselves."""
        for one in self._hosts(host):
            self._say(one, "mode", *words)
        return self.tell("status", host)

    def explain(self, flow: Flow, host: str | None) -> dict[str, Any]:
        """What the agents at the ends of `flow` (or the one at `host`) decide, by the tables in force."""
        ends: list[dict[str, Any]] = []
        there = set(self._hosts(None))
        for name, words in self._questions(flow):
            if host in (None, name) and name in there:
                told = bool(ends) and ends[0].get("claims") and words[1] == "tcp"
                ends.append(self._ask(name, "explain", *_claimed(words, self._owner(flow)) if told else words))
        if not ends:
            raise AskError(f"labctl: {host or flow.source}: no agent there to ask about this flow")
        denied = next((end for end in ends if end["verdict"] == "deny"), None)
        enforced = all(end["mode"] == "enforce" for end in ends if end["verdict"] == "deny")
        return {"arm": self._enforcer.name, "flow": str(flow), "verdict": "deny" if denied else "allow",
                "because": (denied or ends[-1])["rule"], "enforced": enforced, "ends": ends}

    def _hosts(self, host: str | None) -> list[str]:
        topology = self._scenario.topology
        if host is not None and host not in topology.hosts:
            raise AskError(f"labctl: there is no host '{host}'; there are: {', '.join(list(topology.hosts)[:12])}")
        if host is not None and not topology.hosts[host].takes_agent:
            raise AskError(f"labctl: {host} takes no agent")
        return [host] if host else [one.name for one in topology.hosts.values() if one.takes_agent]

    def _questions(self, flow: Flow) -> Iterator[tuple[str, list[str]]]:
        topology = self._scenario.topology
        source, target = topology.hosts[flow.source], topology.hosts[flow.target]
        asking, asked = self._owner(flow), ["", "0"]
        if flow.target_process:
            asked = [path_of(topology, flow.target_process), self._uid(owner_user(flow.target_process, topology))]
        local = source is target
        service = [flow.proto, str(flow.port)]
        yield source.name, ["out", *service, target.address(flow.family), *asking, *(asked if local else ["-", "0"])]
        if not local:
            yield target.name, ["in", *service, source.address(flow.family), *asked, "-", "0"]

    def _owner(self, flow: Flow) -> list[str]:
        return [path_of(self._scenario.topology, flow.process), self._uid(flow.user)]

    def _uid(self, user: str) -> str:
        return str({"root": 0, **self._scenario.topology.users}.get(user, NOBODY_UID))

    def _ask(self, host: str, verb: str, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._say(host, verb, *words))
        return answer

    def _say(self, host: str, verb: str, *words: str) -> bytes:
        done = self._testbed.run_at(Point(self._enforcer.asked_at, host), self._enforcer.ask(host, verb, *words))
        if done.status:
            raise AskError(f"labctl: {host}: {(done.stderr or done.stdout).decode(errors='replace').strip()[:300]}")
        return done.stdout


def _claimed(words: list[str], owner: list[str]) -> list[str]:
    """The question at the other end, where the SYN says who asks."""
    return [*words[:-2], *owner]


def from_request(request: Mapping[str, Any]) -> tuple[str, str | None]:
    return str(request.get("what", "status")), request.get("host")
