"""A trial weighs the planted wait against a standard: what waiting itself does to an exchange must cancel."""

from __future__ import annotations

import numpy as np

from bench.analysis.yardstick import Windows
from bench.selftest.trials import BLOCKS, STANDARD, WITH, WITHOUT, judged

PLANTED_US, AFTER_US, EXCHANGE_US = 200.0, 5.0, 30.0


def visits(rng: np.random.Generator, planted_us: float) -> dict[str, list[Windows]]:
    """Blocks of windows on a machine that changes its speed by a half, and with it its yardstick."""
    def visit(more: float) -> Windows:
        speed = rng.uniform(1.0, 1.5)
        after = AFTER_US if more else 0.0
        values = (EXCHANGE_US + after) * speed + more + rng.normal(0, 1.0, 10)
        readings = 20 * speed + rng.normal(0, 0.05, (2, 10))
        return Windows.of(list(values), *readings)

    return {name: [visit(more) for _ in range(BLOCKS)]
            for name, more in ((WITHOUT, 0.0), (WITH, planted_us), (STANDARD, PLANTED_US))}


def found(planted_us: float, trials: int = 200) -> float:
    rng = np.random.default_rng(7)
    return sum(judged(visits(rng, planted_us), PLANTED_US).found for _ in range(trials)) / trials


def test_the_planted_wait_is_in_95_of_100_intervals_though_the_exchange_grows_by_more() -> None:
    trial = judged(visits(np.random.default_rng(1), PLANTED_US), PLANTED_US)
    assert trial.longer.low is not None and trial.longer.low > PLANTED_US + 2  # what `labctl run` would tell
    assert 0.91 <= found(PLANTED_US) <= 0.99


def test_another_wait_than_the_one_planted_is_not_found() -> None:
    assert found(PLANTED_US + 4) < 0.2 and found(0.0) == 0.0
