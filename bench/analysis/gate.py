"""The regression gate: the ratios of a run against those of a stored one. Ratios only, never times of two machines.

A comparison is one arm in one figure. Both runs bring its block log-ratios to their own `none`; the machine's speed
and what it was busy with cancel within each block of each run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.special import stdtr, stdtrit

from bench.analysis.bootstrap import MIN_RESAMPLED, Floats, freedom, trimmed

LEVEL = 0.01  # false alarms of a whole gate, all comparisons together
POWER = 0.99  # with which a regression of the margin is found
MARGIN = 0.10
BLOCKS = 36  # with four arms and two figures: 10 % found in over 99 %, "too noisy" below 1 % of runs (recorded noise)
FIGURES = ("crr_p50_us", "rr_p50_us")  # what it is about unless told otherwise: the steadiest of either kind of cost
HIGHER_IS_BETTER = frozenset({"crr_rate", "bulk_bps"})
EXIT_CODES = {"none": 0, "regression": 1, "noisy": 4}

Ratios = Mapping[str, Mapping[str, Sequence[float | None]]]  # by arm, by figure, one a block


class GateError(ValueError):
    """The baseline cannot be compared with this run; the message says why and what to do."""


class Baseline(BaseModel):
    """A stored run, as far as a gate needs it. One JSON document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = Field(1, description="format version of this document")
    labctl: str = Field(description="version of labctl that measured it")
    scenario: str = Field(description="name of the scenario")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the scenario as loaded, without its seed")
    design: dict[str, float] = Field(description="window lengths and counts: what makes two runs comparable")
    seed: int = Field(description="seed of the run")
    environment: dict[str, Any] = Field(description="the machine; told, never compared")
    ratios: dict[str, dict[str, tuple[float | None, ...]]] = Field(
        description="arm / none by arm and figure, one a block in order; null where either was not measured")
    verdicts: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="leaks, breaks, gaps, defects and inconclusive flows by arm")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arm's figure against the baseline. `worse`: relative, above 0 is worse; `low`, `high`: 95 % of it.

    `p`: of "not worse", adjusted for all comparisons (Holm). `detectable`: the regression found with 99 % power.
    All None where either run has too few blocks.
    """

    arm: str
    figure: str
    worse: float | None
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """`outcome` of all comparisons: a found regression outweighs noise, noise outweighs silence."""

    outcome: Literal["none", "regression", "noisy"]
    regressions: tuple[Comparison, ...]
    noisy: tuple[Comparison, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


def read(text: str | bytes, place: str) -> Baseline:
    """A stored baseline. Raises GateError naming `place`, what is wrong there and the remedy."""
    try:
        return Baseline.model_validate_json(text)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise GateError(f"{place}: {where}: {first['msg']}; store a new baseline with this version") from None


def comparable(stored: Baseline, digest: str, design: Mapping[str, float], place: str) -> None:
    """Raise GateError unless the run is of the same scenario and measured in the same way."""
    if stored.digest != digest:
        raise GateError(f"{place}: is of another scenario ({stored.scenario}, digest {stored.digest[:12]}…, not "
                        f"{digest[:12]}…); store a new baseline after changing the scenario")
    if dict(stored.design) != dict(design):
        odd = sorted(k for k in stored.design.keys() | design.keys() if stored.design.get(k) != design.get(k))
        raise GateError(f"{place}: was measured in another way ({', '.join(odd)}); store a new baseline")


def judge(stored: Ratios, new: Ratios, figures: Sequence[str], margin: float = MARGIN) -> Judgement:
    """Compare every arm and figure of `stored`. `figures`, chosen before the run, are those that the gate is about.

    Raises GateError where the new run lacks an arm of the baseline. Regression: one-sided Welch test of two trimmed
    means (Yuen 1974), Holm over all comparisons, at 1 % together. Noisy: none found, and somewhere a regression of
    `margin` would be missed in more than 1 of 100 runs.
    """
    missing = sorted(stored.keys() - new.keys())
    if missing:
        raise GateError(f"baseline: arm {missing[0]} was not run; add it to --arms or store a new baseline")
    pairs = [(arm, figure) for arm in stored for figure in figures if figure in stored[arm]]
    if not pairs:
        raise GateError(f"baseline: none of {', '.join(figures)} is in it; store a new baseline")
    tests = [_compare(stored[arm][figure], new[arm].get(figure, ()), figure, len(pairs)) for arm, figure in pairs]
    adjusted = _holm([test.p for test in tests])
    found = tuple(Comparison(arm, figure, test.worse, test.low, test.high, p, test.detectable)
                  for (arm, figure), test, p in zip(pairs, tests, adjusted, strict=True))
    regressions = tuple(c for c in found if c.p is not None and c.p <= LEVEL)
    noisy = tuple(c for c in found if c.detectable is None or c.detectable > margin)
    return Judgement("regression" if regressions else "noisy" if noisy else "none", regressions, noisy, found)


@dataclass(frozen=True, slots=True)
class _Test:
    worse: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None


def _compare(stored: Sequence[float | None], new: Sequence[float | None], figure: str, tests: int) -> _Test:
    sign = -1.0 if figure in HIGHER_IS_BETTER else 1.0
    was, now = _logs(stored), _logs(new)
    if min(len(was), len(now)) < MIN_RESAMPLED:
        return _Test()
    (c0, e0), (c1, e1) = ((float(x) for x in trimmed(logs)) for logs in (was, now))
    error = math.hypot(e0, e1)
    distance = sign * (c1 - c0)
    if error == 0.0:
        return _Test(math.expm1(distance), math.expm1(distance), math.expm1(distance), float(distance <= 0), 0.0)
    df = error**4 / (e0**4 / float(freedom(len(was))) + e1**4 / float(freedom(len(now))))  # Welch and Satterthwaite
    reach = float(stdtrit(df, 0.975)) * error
    seen = (float(stdtrit(df, 1 - LEVEL / tests)) + float(stdtrit(df, POWER))) * error
    return _Test(math.expm1(distance), math.expm1(distance - reach), math.expm1(distance + reach),
                 float(stdtr(df, -distance / error)), math.expm1(seen))


def _logs(ratios: Sequence[float | None]) -> Floats:
    return np.log(np.array([r for r in ratios if r is not None and math.isfinite(r) and r > 0], dtype=np.float64))


def _holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (1979), None where there is none; an untestable comparison still counts as one."""
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    ranked = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    for rank, (p, i) in enumerate(ranked):
        largest = max(largest, min(1.0, p * (len(ps) - rank)))
        adjusted[i] = largest
    return adjusted
