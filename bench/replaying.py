"""`labctl replay`: a saved result run again with its own scenario, seed and arms, and whether the outcome agrees."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.special import ndtri, stdtrit

from bench import registry, session, store
from bench.analysis.bootstrap import freedom
from bench.experiment import Options, quickly
from bench.report import compare
from bench.report.saved import Saved, SavedError
from bench.report.saved import read as read_saved
from bench.report.summary import FIELDS, FIGURES, Arm, Figure, Recall, Summary
from bench.report.terminal import BASELINE, LABELS
from bench.session import Finished
from lab.model import Scenario
from lab.scenario import ScenarioError, loads

COUNTS = ("flows", "denied", "allowed", "leaks", "breaks", "gaps", "defects", "inconclusive")
ALPHA = 0.05  # of an honest replay to be told that some cost, or some recall, disagrees
SLACK = 0.02  # of a recall: flows that one connection makes are seen or missed together, which its error leaves out
SHOWN = 3  # flows that came out otherwise, told one by one


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing compared. `agrees` None: it cannot be said."""

    arm: str
    what: str
    agrees: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """A result against its replay. `invalid`: why the replay does not count. `around`: what else differs."""

    findings: tuple[Finding, ...]
    invalid: tuple[str, ...]
    around: tuple[str, ...]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """130 interrupted, 4 invalid, 1 something disagrees, 4 no cost could be judged, 0 all agrees."""
        if self.interrupted:
            return 130
        if self.invalid:
            return 4
        if any(one.agrees is False for one in self.findings):
            return 1
        costs = [one.agrees for one in self.findings if one.what == "cost"]
        return 4 if costs and all(agrees is None for agrees in costs) else 0

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {"exit_code": self.exit_code, "invalid": list(self.invalid), "environment": list(self.around),
                "findings": [asdict(one) for one in self.findings]}


# --- running it again -------------------------------------------------------------------------


def scenario_of(saved: Saved) -> Scenario:
    """The scenario of a result, as it was run: from the copy beside it, with its seed. Raises SavedError."""
    file = saved.path / "scenario.yaml"
    try:
        text = file.read_text()
    except OSError as err:
        raise SavedError(f"{file}: cannot be read ({err.strerror}); a replay needs what was run") from None
    try:
        loaded = loads(text, str(file), registry.names())
    except ScenarioError as err:
        raise SavedError(f"{err.problems[0]}; this labctl cannot run the result's scenario again") from None
    return replace(loaded, seed=saved.summary.seed, backend=saved.summary.environment.get("backend", loaded.backend))


def replay(saved: Saved, scenario: Scenario, results: Path, *, quick: bool, as_json: bool) -> int:
    """Run it, print what agrees, return the exit status."""
    was = saved.summary
    options = Options(arms=tuple(was.arms), as_json=as_json, results=results, seed=was.seed,
                      blocks=None if quick and not was.quick else was.blocks)
    if quick or was.quick:
        options = quickly(options)

    def finish(finished: Finished) -> int:
        again = read_saved(finished.directory)
        found = Agreement(tuple(compared(saved, again)), again.summary.invalid, around(saved, again),
                          again.summary.interrupted)
        if as_json:
            print(json.dumps(found.as_data(), indent=1))
        else:
            print("\n".join(lines(found, saved, again)))
            print(f"saved in {session.shown(finished.directory)}")
        return found.exit_code

    return session.run_scenario(scenario, options, finish)


# --- comparing --------------------------------------------------------------------------------


def compared(saved: Saved, again: Saved) -> Iterator[Finding]:
    """Everything in which a replay can agree or not, arm by arm."""
    was, now = saved.summary, again.summary
    then, since = outcomes(saved.path), outcomes(again.path)
    for name, old in was.arms.items():
        new = now.arms.get(name)
        if old.unsupported is not None or new is None or new.unsupported is not None:
            if old.unsupported is None:
                reason = new.unsupported if new else "it was not reached"
                yield Finding(name, "support", None if new is None else False, f"ran then, not now: {reason}")
            continue
        yield _verdicts(name, old, new)
        yield _flows(name, then.get(name, {}), since.get(name, {}))
        if old.attack or new.attack:
            yield _attack(name, old, new)
        yield _recalls(name, old, new)
    yield from _costs(was, now)


def outcomes(directory: Path) -> dict[str, dict[str, tuple[bool, bool]]]:
    """(open, arrived) of every flow of the matrix, by arm and flow, from a result's raw data."""
    found: dict[str, dict[str, tuple[bool, bool]]] = {}
    file = directory / "observations.jsonl.gz"
    for record in store.read(file) if file.exists() else ():
        if record["phase"] in ("matrix", "held"):  # in this order: what the second look held comes after
            flow = " ".join(map(str, record["flow"].values()))
            found.setdefault(record["arm"], {})[flow] = (record["outcome"] == "OPEN", record["arrived"])
    return found


def _verdicts(name: str, old: Arm, new: Arm) -> Finding:
    odd = [f"{count} {getattr(old, count)} then, {getattr(new, count)} now" for count in COUNTS
           if getattr(old, count) != getattr(new, count)]
    reasons = [{gap.reason: gap.flows for gap in arm.gap_classes} for arm in (old, new)]
    if reasons[0] != reasons[1]:
        odd.append("the reasons of its gaps differ")
    return Finding(name, "verdicts", not odd, "; ".join(odd) or f"{new.leaks} leaks, {new.breaks} breaks, "
                   f"{new.gaps} gaps, {new.defects} defects in {new.flows} flows, as then")


def _flows(name: str, then: Mapping[str, tuple[bool, bool]], now: Mapping[str, tuple[bool, bool]]) -> Finding:
    if not then or not now:
        return Finding(name, "flows", None, "the raw observations were not kept")
    odd = sorted(flow for flow in then.keys() | now.keys() if then.get(flow) != now.get(flow))
    shown = "; ".join(odd[:SHOWN])
    return Finding(name, "flows", not odd, f"{len(odd)} of {len(then)} flows came out otherwise, first: {shown}" if odd
                   else f"each of {len(then)} flows came out as then")


def _attack(name: str, old: Arm, new: Arm) -> Finding:
    (reached, taken), (reaches, takes) = (
        (one.attack.reached, set(one.attack.taken)) if one.attack else (None, set()) for one in (old, new))
    odd = [] if reached == reaches else [f"goal {_goal(reached)} then, {_goal(reaches)} now"]
    if taken != takes:
        odd.append(f"took {', '.join(sorted(taken)) or 'none'} then, {', '.join(sorted(takes)) or 'none'} now")
    same = f"goal {_goal(reaches)}, {len(takes)} hosts taken, as then"
    return Finding(name, "attack", not odd, "; ".join(odd) or same)


def _goal(reached: bool | None) -> str:
    return "not tried" if reached is None else "reached" if reached else "not reached"


def _recalls(name: str, old: Arm, new: Arm) -> Finding:
    pairs = [(f, old.visibility[f], new.visibility[f]) for f in FIELDS if f in old.visibility and f in new.visibility]
    odd = [f"{field} {a.recall:.1%} then, {b.recall:.1%} now" for field, a, b in pairs
           if a.recall is not None and b.recall is not None and not alike(a, b, len(pairs))]
    return Finding(name, "telemetry", not odd, "; ".join(odd) or f"recall of {len(pairs)} fields within sampling error")


def alike(a: Recall, b: Recall, tests: int) -> bool:
    """Whether two shares differ by no more than chance, in one of so many tests, and a slack."""
    if a.recall is None or b.recall is None or not a.n or not b.n:
        return (a.recall is None) == (b.recall is None)
    both = (a.recall * a.n + b.recall * b.n) / (a.n + b.n)
    error = math.sqrt(both * (1 - both) * (1 / a.n + 1 / b.n))
    return abs(a.recall - b.recall) <= SLACK + float(ndtri(1 - ALPHA / 2 / tests)) * error


def _costs(was: Summary, now: Summary) -> Iterator[Finding]:
    """Ratios of both runs, at ALPHA for all together. Not judged where a run says that its own are not to be."""
    pairs = [(name, f, old.cost[f], now.arms[name].cost[f]) for name, old in was.arms.items() for f in FIGURES
             if name != BASELINE and name in now.arms and f in old.cost and f in now.arms[name].cost]
    tested = [(name, f, a, b) for name, f, a, b in pairs if a.low is not None and b.low is not None]
    if not pairs:
        return
    why = "the result was invalid" if was.invalid else next(
        (f"A/A differs {when}" for when, one in (("in the result", was), ("now", now)) if one.aa.differs), "")
    for name in dict.fromkeys(name for name, *_ in pairs):
        mine = [(f, a, b) for arm, f, a, b in tested if arm == name]
        if why or not mine:
            yield Finding(name, "cost", None, f"not judged: {why or 'too few blocks'}")
            continue
        odd = [f"{LABELS[f]} ×{a.ratio:.2f} then, ×{b.ratio:.2f} now" for f, a, b in mine if apart(a, b, len(tested))]
        yield Finding(name, "cost", not odd, "; ".join(odd) or f"{len(mine)} ratios within their intervals")


def apart(a: Figure, b: Figure, tests: int) -> bool:
    """Whether two ratios differ by more than their errors explain, in one of so many tests.

    Their 95 % intervals tell the errors; the quantile is Student's of the run with fewer blocks.
    """
    if None in (a.ratio, a.low, a.high, b.ratio, b.low, b.high):
        return False
    reach = math.hypot(*(math.log(one.high / one.low) / 2 for one in (a, b)))  # type: ignore[operator]
    df = max(1, int(min(freedom(a.n), freedom(b.n))))
    wider = float(stdtrit(df, 1 - ALPHA / 2 / tests) / stdtrit(df, 0.975))
    return abs(math.log(b.ratio / a.ratio)) > reach * wider  # type: ignore[operator]


def around(saved: Saved, again: Saved) -> tuple[str, ...]:
    """What differs in the machine, its tuning, its tools and labctl: what could explain another outcome."""
    found = compare.compare([saved, again])
    versions = [f"labctl: {saved.summary.labctl} in 1, {again.summary.labctl} in 2"] if (
        saved.summary.labctl != again.summary.labctl) else []
    return (*versions, *found.environment)


# --- in words ---------------------------------------------------------------------------------


def lines(found: Agreement, saved: Saved, again: Saved) -> list[str]:
    """For people: the outcome first, then what it rests on, then what differs around."""
    heads = {0: "the outcome agrees", 1: "the outcome DOES NOT AGREE", 4: "cannot be told", 130: "interrupted"}
    quick = ", quick: fewer blocks, wider intervals" if again.summary.quick else ""
    said = [f"replay of {session.shown(saved.path)}: {heads[found.exit_code]} "
            f"(seed {again.summary.seed}, {again.summary.blocks} blocks{quick})"]
    said += [f"  INVALID  {reason}" for reason in found.invalid]
    marks = {True: "agrees ", False: "DIFFERS", None: "unsaid "}
    said += [f"  {marks[one.agrees]}  {one.arm}: {one.what}: {one.text}" for one in found.findings]
    if found.around:
        return [*said, "what differs around them (1: the result, 2: this run):", *(f"  {one}" for one in found.around)]
    return [*said, "machine, kernel, tuning and tools are the same"]
