"""How fast 200 hosts stand up and go down, and 1,000 stand up: `make bench`. The gate is tests/e2e/test_standup.py."""

from __future__ import annotations

import os

import pytest

from tests.e2e.isolated import call
from tests.e2e.standup import ratio

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")


def test_against_stock_mininet(benchmark) -> None:  # type: ignore[no-untyped-def]
    """Times and ratios are in the extra information: a round holds five of stock and of ours, in turn."""
    argument = {"hosts": 200, "rounds": 5, "sides": ["stock", "one", "all"]}
    found = benchmark.pedantic(call, ("tests.e2e.standup", "in_turn", argument, 1800), rounds=1)
    for side in ("one", "all"):
        for place, what in enumerate(("up", "down")):
            pair = [[row[place] for row in found[name]] for name in ("stock", side)]
            benchmark.extra_info[f"{what}_{side}_times_faster"] = [round(value, 2) for value in ratio(*pair)]
    benchmark.extra_info["seconds_up_and_down"] = found


@pytest.mark.parametrize("segments", [5, 1])
def test_a_thousand_hosts(benchmark, segments: int) -> None:  # type: ignore[no-untyped-def]
    argument = {"hosts": 1000, "segments": segments, "pairs": 2000, "seed": 1}
    found = benchmark.pedantic(call, ("tests.e2e.standup", "thousand", argument), rounds=1)
    benchmark.extra_info.update({key: found[key] for key in ("up_s", "down_s", "pss_bytes", "machine_bytes")})
    assert found["outcomes"]["free"] == {"OPEN": found["attempts"] - found["planted"]}
