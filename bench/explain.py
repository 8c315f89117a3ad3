"""One flow under every arm: what the policy means, what the arm will do and why, and what it did where it was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lab.model import Approximation, Enforcer, Flow, Native, Observation, Policy, Scenario, Topology, Verdict
from lab.policy import decide, matches


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened to the flow when it was tried, and the native rules that its packets met, a line each."""

    observation: Observation
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnderArm:
    """One arm's word on a flow. `because` names the rule or the reason; `seen` is None where it was not tried."""

    arm: str
    allow: bool
    because: str
    seen: Seen | None = None

    @property
    def agrees(self) -> bool | None:
        """Whether what was observed is what the arm said; None where it was not tried."""
        if self.seen is None:
            return None
        seen = self.seen.observation
        return (seen.outcome == "OPEN") is self.allow and (self.allow or not seen.arrived)


@dataclass(frozen=True, slots=True)
class Explained:
    """`matching`: every rule of the policy that is about the flow, in file order, with its verdict."""

    flow: Flow
    intended: Verdict
    matching: tuple[str, ...]
    arms: tuple[UnderArm, ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)


def explain(flow: Flow, scenario: Scenario, enforcers: Mapping[str, Enforcer],
            natives: Mapping[str, Native], seen: Mapping[str, Seen]) -> Explained:
    """`natives` holds the compiled policy of every arm to be asked; `seen` what was observed, by arm."""
    topology, policy = scenario.topology, scenario.policy
    matching = tuple(f"{rule.name} ({rule.verdict})" for rule in policy.rules if matches(rule, flow, topology))
    arms = []
    for name, native in natives.items():
        allow, because = _expected(flow, topology, policy, enforcers[name], native)
        arms.append(UnderArm(name, allow, because, seen.get(name)))
    return Explained(flow, decide(policy, flow, topology), matching, tuple(arms))


def _expected(flow: Flow, topology: Topology, policy: Policy, enforcer: Enforcer, native: Native) -> tuple[bool, str]:
    if not native.count:
        return True, "it enforces nothing"
    if not enforcer.covers(flow, topology):
        return True, f"outside of what it covers: {_place(flow, topology)}"
    verdict = decide(native.effective, flow, topology)
    by = "no rule matches: default" if verdict.rule == "default" else f"rule '{verdict.rule}'"
    if verdict.allow is decide(policy, flow, topology).allow:
        return verdict.allow, by
    return verdict.allow, by + _difference(verdict.rule, native.approximations)


def _difference(rule: str, approximations: Sequence[Approximation]) -> str:
    own = [a for a in approximations if a.rule == rule] or list(approximations)
    return f" ({own[0].kind}: {own[0].reason})" if own else ""


def _place(flow: Flow, topology: Topology) -> str:
    source, target = topology.hosts[flow.source], topology.hosts[flow.target]
    if source is target:
        return "it stays inside one host"
    inside = [host.name for host in (source, target) if not host.takes_agent]
    if inside:
        return f"no agent on {' and '.join(inside)}"
    return "it stays inside one segment" if source.segment == target.segment else "it meets no enforcement point"
