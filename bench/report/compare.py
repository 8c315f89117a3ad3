"""Several results side by side: what can be compared, and what differs by more than its intervals. Pure.

Only ratios to `none` of the same run are compared between runs: absolute times are a machine's. Two figures differ
where their 95 % intervals do not overlap, which is stricter than a test at 5 %. Counts of a whole matrix have no noise
of sampling: any difference is one. Shares of a sample get Wilson's interval. An attack is one trial: never judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.report.saved import Saved
from bench.report.summary import FIELDS, FIGURES, Arm, Figure, Recall, Summary
from bench.report.terminal import BASELINE, LABELS

Z = 1.959963984540054  # the normal quantile at 97.5 %
MACHINE = {"backend": "backend", "machine": "architecture", "cpu_model": "processor", "cpus": "number of processors",
           "memory_bytes": "memory", "kernel": "kernel", "system": "system"}
TUNING = {"bpf_jit_enable": "BPF JIT", "clocksource": "clock source", "governor": "CPU governor",
          "conntrack_max": "conntrack limit", "host_sysctls": "sysctls of hosts",
          "router_sysctls": "sysctls of the router", "several_users": "users told apart", "cgroup2": "cgroup v2"}
_BEFORE = {"backend": "mininet"}  # of results that do not say
VERSIONS = {"python": "Python", "tools": "", "packages": ""}


@dataclass(frozen=True, slots=True)
class Value:
    """One figure in one result: a number, its interval where it has one, and n. None: not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One figure over all results. `differs[i]`: result i differs from the first one; None: cannot be said."""

    section: str  # verdicts, cost, telemetry, attack
    name: str
    values: tuple[Value | None, ...]
    differs: tuple[bool | None, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results in the order given; the first is what the others are held against."""

    results: tuple[Saved, ...]
    warnings: tuple[str, ...]
    environment: tuple[str, ...]
    same_machine: bool
    arms: Mapping[str, tuple[Row, ...]]

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {
            "results": [{"path": str(one.path), "scenario": one.summary.scenario, "started": one.summary.started,
                         "seed": one.summary.seed, "quick": one.summary.quick, "blocks": one.summary.blocks,
                         "invalid": list(one.summary.invalid)} for one in self.results],
            "warnings": list(self.warnings), "environment": list(self.environment),
            "same_machine": self.same_machine,
            "arms": {name: [asdict(row) for row in rows] for name, rows in self.arms.items()}}


def compare(results: Sequence[Saved]) -> Comparison:
    """The comparison of at least two results."""
    summaries = [one.summary for one in results]
    names = dict.fromkeys(name for one in summaries for name in one.arms)
    machine = _environment(summaries, MACHINE)
    return Comparison(
        tuple(results), tuple(_warnings(results)),
        (*machine, *_environment(summaries, TUNING), *_environment(summaries, VERSIONS)),
        not machine, {name: tuple(_rows(name, summaries)) for name in names})


# --- what differs in the circumstances --------------------------------------------------------


def _warnings(results: Sequence[Saved]) -> Iterable[str]:
    first, summaries = results[0], [one.summary for one in results]
    for number, other in enumerate(results[1:], 2):
        if other.summary.scenario != first.summary.scenario:
            yield f"1 and {number} are of different scenarios: {first.summary.scenario}, {other.summary.scenario}"
        elif first.scenario_digest and other.scenario_digest and first.scenario_digest != other.scenario_digest:
            yield f"the scenario file changed between 1 and {number}"
        if other.summary.seed != first.summary.seed:
            yield f"the seed differs: {first.summary.seed} in 1, {other.summary.seed} in {number}"
        if other.summary.labctl != first.summary.labctl:
            yield f"labctl differs: {first.summary.labctl} in 1, {other.summary.labctl} in {number}"
    if len(backends := _backends(summaries)) > 1:
        yield f"the hosts are of different kinds ({', '.join(backends)}): costs are compared within one kind only"
    for number, one in enumerate(summaries, 1):
        if one.quick:
            yield f"{number} is quick: fewer blocks, wider intervals"
        if one.interrupted:
            yield f"{number} was interrupted: it has what was measured until then"
        yield from (f"{number} is INVALID: {reason}" for reason in one.invalid)
        if one.aa.differs:
            yield f"{number}: `none` differs from itself, so its costs are not judged"


def _backends(summaries: Sequence[Summary]) -> tuple[str, ...]:
    """What hosts were made of, each once; before there was a choice it was Mininet."""
    return tuple(dict.fromkeys(str(one.environment.get("backend", _BEFORE["backend"])) for one in summaries))


def _environment(summaries: Sequence[Summary], facts: Mapping[str, str]) -> tuple[str, ...]:
    """What differs among the circumstances named, as `kernel: 6.1 in 1, 6.12 in 2`; what none knows is left out."""
    found = []
    for key, label in facts.items():
        values = [one.environment.get(key, _BEFORE.get(key)) for one in summaries]
        inner = dict.fromkeys(part for value in values if isinstance(value, Mapping) for part in value)
        if inner:
            for part in inner:
                name = f"{label} {part}".strip()
                found += _differing(name, [v.get(part) if isinstance(v, Mapping) else None for v in values])
        else:
            found += _differing(label, values)
    return tuple(found)


def _differing(label: str, values: Sequence[object]) -> list[str]:
    if all(value == values[0] for value in values):
        return []
    return [f"{label}: " + ", ".join(f"{'unknown' if value is None else value} in {number}"
                                     for number, value in enumerate(values, 1))]


# --- what differs in the figures --------------------------------------------------------------


def _rows(name: str, summaries: Sequence[Summary]) -> Iterable[Row]:
    arms = [one.arms.get(name) for one in summaries]
    whole = not any(sampled(one) for one in summaries)
    for count, of in (("leaks", "denied"), ("breaks", "allowed"), ("gaps", "flows"), ("defects", "flows"),
                      ("inconclusive", "flows")):
        yield _row("verdicts", count, [_share(arm, count, of) for arm in arms],
                   _unlike if whole else _apart_shares)
    if name != BASELINE:
        for figure in FIGURES:
            judged = [None if arm is None else _ratio(arm.cost.get(figure)) for arm in arms]
            usable = not any(one.invalid or one.aa.differs for one in summaries) and len(_backends(summaries)) == 1
            yield _row("cost", LABELS[figure], judged, _apart if usable else _unsaid)
    for field in FIELDS:
        yield _row("telemetry", f"sees {field}", [None if arm is None else _seen(arm.visibility.get(field))
                                                  for arm in arms], _apart)
    yield from _attack(arms)


def _attack(arms: Sequence[Arm | None]) -> Iterable[Row]:
    attacks = [arm.attack if arm else None for arm in arms]
    for name, pick in (("goal reached", lambda a: float(a.reached)), ("blast radius", lambda a: a.blast_radius),
                       ("… no dropped binary", lambda a: a.blast_radius_by_process)):
        yield _row("attack", name, [None if a is None else Value(pick(a), n=1) for a in attacks], _unsaid)


def _row(section: str, name: str, values: Sequence[Value | None],
         differ: Callable[[Value, Value], bool | None]) -> Row:
    first = values[0]
    differs = [None if first is None or other is None or first.value is None or other.value is None
               else differ(first, other) for other in values[1:]]
    return Row(section, name, tuple(values), (False, *differs))


def _apart(a: Value, b: Value) -> bool | None:
    """Whether the intervals do not overlap."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    return a.high < b.low or b.high < a.low


def _unlike(a: Value, b: Value) -> bool | None:
    return (a.value, a.n) != (b.value, b.n)


def _apart_shares(a: Value, b: Value) -> bool | None:
    if not a.n or not b.n or a.value is None or b.value is None:
        return None
    (low_a, high_a), (low_b, high_b) = wilson(a.value / a.n, a.n), wilson(b.value / b.n, b.n)
    return high_a < low_b or high_b < low_a


def _unsaid(_a: Value, _b: Value) -> bool | None:
    return None


def sampled(summary: Summary) -> bool:
    """Whether the matrix was a sample of all flows, which its notes say."""
    return any(note.startswith("the matrix is a seeded") for note in summary.notes)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n (E. B. Wilson, JASA 22, 1927)."""
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(arm: Arm | None, count: str, of: str) -> Value | None:
    if arm is None or getattr(arm, count) is None:
        return None
    return Value(float(getattr(arm, count)), n=getattr(arm, of))


def _ratio(one: Figure | None) -> Value | None:
    return None if one is None or one.ratio is None else Value(one.ratio, one.low, one.high, one.n)


def _seen(one: Recall | None) -> Value | None:
    if one is None or one.recall is None or not one.n:
        return None
    return Value(one.recall, *wilson(one.recall, one.n), one.n)
