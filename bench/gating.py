"""`labctl gate`: a scenario run as a stored baseline was, and whether it came out worse. Ratios and counts alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import assemble, session
from bench.analysis import gate
from bench.analysis.gate import Baseline, Comparison, Judgement
from bench.costs import BASELINE, Costs
from bench.experiment import Options
from bench.report.summary import FIGURES, FigureName, Summary
from bench.report.terminal import LABELS
from bench.session import Finished
from lab.model import Scenario

COUNTS = ("leaks", "breaks", "gaps", "defects")
DOUBT = "inconclusive"
GATED: tuple[FigureName, ...] = tuple(f for f in FIGURES if f in gate.FIGURES)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate found, of verdicts (`worse`: in words) and of costs. `doubts`: why it cannot tell, if it cannot."""

    worse: tuple[str, ...]
    doubts: tuple[str, ...]
    costs: Judgement | None
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """130 interrupted, 1 a regression, 4 it cannot tell, 0 none: what was found outweighs what was not."""
        if self.interrupted:
            return 130
        if self.worse or (self.costs is not None and self.costs.outcome == "regression" and not self.doubts):
            return 1
        return 4 if self.doubts or self.costs is None else self.costs.exit_code

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        outcome = {0: "none", 1: "regression", 4: "noisy", 130: "interrupted"}[self.exit_code]
        return {"outcome": outcome, "exit_code": self.exit_code, "worse": list(self.worse), "doubts": list(self.doubts),
                "comparisons": [asdict(one) for one in self.costs.comparisons] if self.costs else []}


def digest(scenario: Scenario) -> str:
    """SHA-256 of a scenario as loaded: without its seed and where its files lie, with what its locustfile says."""
    document = asdict(scenario)
    for key in ("seed", "path", "arms", "invented"):
        del document[key]
    if scenario.traffic:
        document["traffic"]["locustfile"] = hashlib.sha256(Path(scenario.traffic.locustfile).read_bytes()).hexdigest()
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


def design(options: Options) -> dict[str, float]:
    """What makes two gates measured in one way."""
    one = options.design
    return {"blocks": options.block_count, "crr": one.crr, "rr": one.rr, "warmup": one.warmup, "window_s": one.window_s}


def baseline(finished: Finished, identity: str) -> Baseline:
    """What a gate needs of a run of the scenario with that digest. Nothing of it is a time."""
    collected, summary = finished.collected, finished.summary
    return Baseline(
        format=1, labctl=summary.labctl, scenario=summary.scenario, digest=identity,
        design=design(collected.options), seed=summary.seed, environment=json.loads(json.dumps(
            summary.environment, default=str)), ratios=_ratios(assemble.costs_of(collected)), verdicts=counts(summary))


def _ratios(costs: Costs) -> dict[str, dict[str, tuple[float | None, ...]]]:
    return {name: {figure: costs.shares(name, figure) for figure in GATED} for name in costs.arms if name != BASELINE}


def counts(summary: Summary) -> dict[str, dict[str, int]]:
    """Leaks and the like by arm that ran."""
    return {name: {count: getattr(arm, count) or 0 for count in (*COUNTS, DOUBT)}
            for name, arm in summary.arms.items() if arm.unsupported is None}


def gate_scenario(scenario: Scenario, options: Options, stored: Baseline, place: str, margin: float) -> int:
    """Run, print the verdict, return its exit status. Raises GateError before the run if the two cannot be compared."""
    gate.comparable(stored, digest(scenario), design(options), place)
    gate.judge(stored.ratios, stored.ratios, gate.FIGURES, margin)  # what is wrong with it shows now, not after the run

    def finish(finished: Finished) -> int:
        found = judge(stored, finished, margin)
        if options.as_json:
            print(json.dumps(found.as_data(), indent=1))
        else:
            print("\n".join(lines(found, finished.summary, margin)))
            print(f"saved in {session.shown(finished.directory)}")
        return found.exit_code

    return session.run_scenario(scenario, options, finish)


def store_baseline(scenario: Scenario, options: Options, place: Path) -> int:
    """Run and write what later gates are compared with. A run that does not count is not stored: 4."""
    identity = digest(scenario)

    def finish(finished: Finished) -> int:
        summary = finished.summary
        reasons = doubts(summary)
        if summary.interrupted or reasons:
            print("\n".join(f"not stored: {reason}" for reason in reasons or ["interrupted"]))
            return 130 if summary.interrupted else 4
        place.write_text(baseline(finished, identity).model_dump_json(indent=1) + "\n")
        print(f"stored in {session.shown(place)}: {summary.scenario}, {summary.blocks} blocks, "
              f"{', '.join(name for name in counts(summary) if name != BASELINE)}")
        return assemble.exit_status(summary)

    return session.run_scenario(scenario, options, finish)


def judge(stored: Baseline, finished: Finished, margin: float) -> Verdict:
    """The run against the baseline: counts that grew, and costs that grew by more than noise explains."""
    collected, summary = finished.collected, finished.summary
    now = counts(summary)
    absent = tuple(f"{name} cannot run on this machine: {summary.arms[name].unsupported}"
                   for name in stored.ratios if name not in now and name in summary.arms)
    if stored.environment.get("several_users") != summary.environment.get("several_users"):
        absent += ("one of the two runs was without root and had one user for all processes",)
    ratios = _ratios(assemble.costs_of(collected))
    wanted = {name: figures for name, figures in stored.ratios.items() if name in ratios}
    return Verdict(grown(stored.verdicts, now, COUNTS),
                   (*doubts(summary), *absent, *grown(stored.verdicts, now, (DOUBT,))),
                   gate.judge(wanted, ratios, gate.FIGURES, margin) if wanted and collected.cells else None,
                   summary.interrupted)


def doubts(summary: Summary) -> tuple[str, ...]:
    """Why the run itself cannot be trusted: it is invalid, or `none` differs from itself in what the gate is about.

    At the level of the gate, not at the 5 % at which a report says so: it would call every twentieth run noisy.
    """
    odd = [LABELS[name] for name in GATED
           if (one := summary.aa.cost.get(name)) is not None and one.p is not None and one.p <= gate.LEVEL]
    return (*summary.invalid, *(f"A/A differs: {name}: none is not equal to itself" for name in odd))


def grown(before: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]],
          names: Sequence[str]) -> tuple[str, ...]:
    """The counts that are larger than they were, in words."""
    return tuple(f"{arm}: {name}: {were[name]:,} before, {now[arm][name]:,} now"
                 for arm, were in before.items() if arm in now for name in names
                 if name in were and now[arm][name] > were[name])


# --- in words ---------------------------------------------------------------------------------


def lines(found: Verdict, summary: Summary, margin: float) -> list[str]:
    """The verdict for people: the outcome first, then what it rests on."""
    heads = {0: "no regression", 1: "REGRESSION", 4: "too noisy to tell", 130: "interrupted"}
    said = [f"gate {summary.scenario}: {heads[found.exit_code]} ({summary.blocks} blocks, margin {margin:.0%})"]
    said += [f"  worse  {text}" for text in found.worse]
    said += [f"  doubt  {text}" for text in found.doubts]
    return said + ([_line(one, found.costs, margin) for one in found.costs.comparisons] if found.costs else [])


def _line(one: Comparison, costs: Judgement, margin: float) -> str:
    name = f"{one.arm}: {LABELS[one.figure]}"  # type: ignore[index]
    if one.worse is None or one.low is None or one.high is None or one.detectable is None:
        return f"  noisy  {name}: too few blocks count"
    size = f"{one.worse:+.1%} [{one.low:+.1%} to {one.high:+.1%}]"
    if one in costs.regressions:
        return f"  worse  {name}: {size}, p = {one.p:.2g}"
    if one.detectable > margin:
        return f"  noisy  {name}: {size}; only {one.detectable:.1%} or more would be found"
    return f"  ok     {name}: {size}; {one.detectable:.1%} or more would be found"
