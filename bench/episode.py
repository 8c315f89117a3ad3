"""One episode of `labctl failure`: an arm that stands, one fault, its repair, while somebody else probes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from threading import Event

from bench import drill
from bench.analysis import watched
from bench.analysis.failures import Design, Meant, Times
from bench.contract import Guarded
from bench.drill import Drill
from bench.instruments.flood import flooding
from lab import faults
from lab.deploy import live
from lab.deploy.live import LiveEnforcement
from lab.faults import FaultError
from lab.model import Deployment, Flow, Point, Policy, Rule, Scenario, Selector, Service
from lab.policy import decide

FAULTS = ("kill", "restart", "overload", "partition", "unplug")


@dataclass(frozen=True, slots=True)
class Subject:
    """An arm set to fail in one way, and what it makes of the policy."""

    arm: str
    way: str
    enforcer: Guarded
    deployment: Deployment
    asked: bool  # Native.neighbours
    meant: Meant
    points: tuple[Point, ...]


@dataclass(slots=True)
class Episode:
    """Done by `run`; then `times`, `after` (what is meant from the fault on) and `acted` (what was done) are there."""

    it: Drill
    subject: Subject
    arm: LiveEnforcement
    design: Design
    acted: list[str] = field(default_factory=list)
    times: Times = field(default_factory=lambda: Times(0, 0, 0, 0, 0))
    after: Meant = field(default_factory=lambda: Meant({}, {}))
    _marks: list[float] = field(default_factory=list)

    def run(self, fault: str) -> None:
        """The fault and the repair, with the waits between. Raises FaultError where it cannot be done here."""
        self.after = self.subject.meant
        self._mark()
        carry_out: Mapping[str, Callable[[], None]] = {
            "kill": self._kill, "restart": self._restart, "overload": self._overload, "partition": self._partition,
            "unplug": self._unplug}
        carry_out[fault]()
        _wait(self.design.after_s)
        self._mark()
        self.times = Times(*self._marks)

    def as_data(self, numbers: Mapping[Flow, int]) -> dict[str, object]:
        """For the raw record: seconds since the fault; flows by number."""
        begin = self.times.fault
        return {"moments": {name: round(getattr(self.times, name) - begin, 6) for name in Times.__slots__},
                "clock": begin, "acted": self.acted,
                "guarded": [numbers[f] for f in self.after.guarded()],
                "by_design": [numbers[f] for f in self.after.unguarded()],
                "served": [numbers[f] for f in self.after.served()]}

    # --- the faults: each marks its moment, when its repair began and when that was done ---

    def _kill(self) -> None:
        """kill -9 to all that runs of the arm; nobody starts it again for the time of the fault."""
        victims = self._victims()
        self._begin()
        faults.kill(victims)
        _wait(self.design.hold_s)
        self._repair(lambda: self.arm.restart(self.subject.points))

    def _restart(self) -> None:
        """kill -9, and started again at once, as a supervisor does."""
        victims = self._victims()
        self._begin()
        faults.kill(victims)
        self._repair(lambda: self.arm.restart(self.subject.points))

    def _overload(self) -> None:
        """More new flows than it likes, half of them allowed, half denied; the repair is that they end."""
        along = self._flooded()
        self._begin()
        with flooding(self.it.testbed, along, self.design.flood, self.design.hold_s) as flood:
            self.acted += flood.told()
        self._repair(lambda: None)

    def _partition(self) -> None:
        """The policy changes while the points cannot be told; then they are. What counts is the new policy."""
        if self.subject.deployment and (reason := live.updatable(self.subject.deployment)):
            raise FaultError(reason)
        scenario, enforcer = self.it.scenario, self.subject.enforcer
        topology, watching = scenario.topology, list(self.subject.meant.intended)
        changed = other_policy(scenario, self.subject.meant.intended)
        self.acted.append(changed.told)
        new = enforcer.render(enforcer.compile(changed.policy, topology), topology)
        self.after = Meant(drill.intended(changed.policy, topology, watching),
                           drill.announced(enforcer, changed.policy, topology, watching))
        self._begin()
        self.arm.update(new, unreachable=self.subject.points)
        _wait(self.design.hold_s)
        self._repair(lambda: self.arm.update(new))

    def _unplug(self) -> None:
        """The links of the points go down, those on hosts excepted: such a point fails with its host."""
        names = faults.links(self.it.testbed, self.subject.points)
        if self.subject.points and not names:
            raise FaultError("its points are the hosts themselves: they have no link of their own to lose")
        self.acted.append(f"unplugged {', '.join(names)}" if names else "nothing of it has a link: none was unplugged")
        self._begin()
        faults.set_links(names, up=False)
        try:
            _wait(self.design.hold_s)
        finally:
            self._repair(lambda: faults.set_links(names, up=True))

    # --- parts ---

    def _victims(self) -> tuple[faults.Daemon, ...]:
        found = faults.daemons(self.it.testbed, self.subject.points) if self.subject.points else ()
        if not found and self.design.point and self.subject.deployment:
            raise FaultError(f"nothing of it runs at {self.design.point}")
        listed = ", ".join(f"{one.cgroup.name}: {one.pid}" for one in found)
        self.acted.append(f"killed {len(found)} processes ({listed})" if found else "nothing of it runs to be killed")
        return found

    def _flooded(self) -> list[Flow]:
        """One allowed flow and one denied, the same for every arm; datagrams rather, and across segments."""
        meant, topology = self.subject.meant.intended, self.it.scenario.topology
        order = list(meant)

        def rank(flow: Flow) -> tuple[bool, bool, int]:
            return watched.place(flow, topology) != "across segments", flow.proto != "udp", order.index(flow)

        pair = [min((f for f, allow in meant.items() if allow is wanted and f.proto != "icmp"), key=rank, default=None)
                for wanted in (True, False)]
        return [flow for flow in pair if flow is not None]

    def _begin(self) -> None:
        _wait(self.design.before_s)
        self._mark()

    def _repair(self, action: Callable[[], object]) -> None:
        self._mark()
        action()
        self._mark()

    def _mark(self) -> None:
        self._marks.append(time.monotonic())


def _wait(seconds: float) -> None:
    """An episode's own length: what is measured is what happens in it."""
    Event().wait(seconds)


# --- a policy that changes --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changed:
    """Another policy, and what is other about it."""

    policy: Policy
    told: str


def other_policy(scenario: Scenario, meant: Mapping[Flow, bool]) -> Changed:
    """One rule less, that allows a watched flow, and one more, that allows one which is denied. Raises FaultError."""
    policy, topology = scenario.policy, scenario.topology
    for flow, allow in meant.items():
        rule = decide(policy, flow, topology).rule
        left = replace(policy, rules=tuple(r for r in policy.rules if r.name != rule))
        if not allow or flow.source == flow.target or len(left.rules) == len(policy.rules):
            continue
        if decide(left, flow, topology).allow:
            continue
        told = f"revoked: rule '{rule}'"
        for other, allowed in meant.items():
            grown = replace(left, rules=(*left.rules, _granting(other)))
            if not allowed and other.source != other.target and decide(grown, other, topology).allow:
                return Changed(grown, f"{told}; granted: {other.source} to {other.target}")
        return Changed(left, told)
    raise FaultError("no rule allows a flow that is watched, so that there is none to revoke")


def _granting(flow: Flow) -> Rule:
    service = Service(flow.proto) if flow.proto == "icmp" else Service(flow.proto, flow.port, flow.port)
    return Rule("(granted while cut off)", "allow", Selector({"host": (flow.source,)}),
                Selector({"host": (flow.target,)}), (service,))
