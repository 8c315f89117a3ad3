"""`--until 2%`: measure blocks until every interval is that narrow, and keep what the interval promises. Pure.

To stop when an interval happens to be narrow is to stop when the spread happens to look small: with 95 % intervals
looked at after every block, 91 % cover. So the looks are few and fixed before the run (16, 24, 32 … blocks), and the
intervals of such a run, whether it stopped early or not, are taken at 97 %. Simulated on normal, t(3) and contaminated
noise that stops the run anywhere from 16 to 80 blocks, these cover in 95.2-96.7 % of runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bench.analysis.bootstrap import Effect, Floats, compare

FIRST_LOOK, EVERY = 16, 8
LOOK_CONFIDENCE = 0.97  # of a look's intervals; over the whole rule at least 95 %


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found. `effects` are the intervals to report if the run stops here, early or by its budget.

    `widest`: half-width of the widest interval, relative: 0.02 is two per cent; infinite where a comparison has none.
    `needed`: blocks in all that the target will take at this spread; None if that cannot be said.
    """

    enough: bool
    effects: dict[str, Effect]
    widest: float
    name: str
    needed: int | None


def due(blocks: int) -> bool:
    """Whether the rule looks after this many blocks."""
    return blocks >= FIRST_LOOK and (blocks - FIRST_LOOK) % EVERY == 0


def rounded(blocks: int) -> int:
    """The least number of blocks, at least this many, at which the rule looks."""
    return FIRST_LOOK + max(0, math.ceil((blocks - FIRST_LOOK) / EVERY)) * EVERY


def look(columns: Mapping[str, Floats], target: float) -> Look:
    """Whether every comparison's interval is within a factor of 1 + `target` to both sides.

    `columns` are block log-ratios by comparison (see `bootstrap.compare`). Call it where `due` says, and once when the
    budget is spent. Raises ValueError where there is nothing to look at or the target is not above zero.
    """
    if not columns or target <= 0:
        raise ValueError("look: needs at least one comparison and a target above 0")
    effects = compare(columns, LOOK_CONFIDENCE)
    widths = {name: _half(effect) for name, effect in effects.items()}
    name = max(widths, key=lambda key: widths[key])
    blocks = len(next(iter(columns.values())))
    widest = widths[name]
    needed = None
    if math.isfinite(widest):
        needed = rounded(max(FIRST_LOOK, math.ceil(blocks * (math.log1p(widest) / math.log1p(target)) ** 2)))
    return Look(due(blocks) and widest <= target, effects, widest, name, needed)


def _half(effect: Effect) -> float:
    if effect.low is None or effect.high is None or effect.low == 0:
        return math.inf
    return math.sqrt(effect.high / effect.low) - 1
