"""The lab stands up and goes down fast, against stock Mininet in the same run; 1,000 hosts stand up and are probed.

Only ratios gate; seconds and bytes are printed and recorded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.isolated import MARK, ROOT, call, needs_root
from tests.e2e.standup import ratio

Record = Callable[[str, object], None]
HOSTS, ROUNDS = 200, 3
UP_TIMES, DOWN_TIMES = 4, 10  # how much faster than stock Mininet at least


@needs_root
@pytest.mark.e2e
def test_up_and_down_against_stock_mininet(capsys: pytest.CaptureFixture[str], record_property: Record) -> None:
    argument = {"hosts": HOSTS, "rounds": ROUNDS, "sides": ["stock", "one", "all"]}
    found = call("tests.e2e.standup", "in_turn", argument, timeout_s=900)
    ratios = {(side, what): ratio([row[place] for row in found["stock"]], [row[place] for row in found[side]])
              for side in ("one", "all") for place, what in enumerate(("up", "down"))}
    with capsys.disabled():
        print(f"\n{HOSTS} hosts on one bridge, {ROUNDS} rounds in turn")
        for who, rows in found.items():
            print(f"  {who}: up {', '.join(f'{up:.2f}' for up, _ in rows)} s; "
                  f"down {', '.join(f'{down:.2f}' for _, down in rows)} s")
        for (side, what), (middle, low, high) in ratios.items():
            print(f"  {side}: {what} {middle:.1f} times faster [{low:.1f}–{high:.1f}]")
            record_property(f"{what}_{side}_times_faster", round(middle, 2))
    # On a busy machine three rounds tell little: the bound fails where the interval excludes it, or by far.
    for what, times in (("up", UP_TIMES), ("down", DOWN_TIMES)):
        middle, _low, high = ratios["one", what]
        assert high >= times and middle >= times / 2, ratios


def test_the_ratio_is_the_planted_one() -> None:
    assert ratio([8.0, 4.0, 16.0], [2.0, 1.0, 4.0]) == pytest.approx((4.0, 4.0, 4.0))
    middle, low, high = ratio([8.0, 4.0, 2.0], [2.0, 2.0, 2.0])
    assert middle == pytest.approx(2.0)
    assert low < 1 < 4 < high


@needs_root
@pytest.mark.e2e
@pytest.mark.parametrize(("hosts", "segments"), [(1000, 5)])
def test_a_thousand_hosts(hosts: int, segments: int, capsys: pytest.CaptureFixture[str],
                          record_property: Record) -> None:
    argument = {"hosts": hosts, "segments": segments, "pairs": 2000, "seed": 1}
    found = call("tests.e2e.standup", "thousand", argument)
    with capsys.disabled():
        print(f"\n{hosts} hosts in {segments} segments: up {found['up_s']:.1f} s, down {found['down_s']:.1f} s; "
              f"{found['processes']} processes with {found['pss_bytes'] / 1e6:.0f} MB, the machine's memory less by "
              f"{found['machine_bytes'] / 1e6:.0f} MB; {found['attempts']} attempts in {found['probed_s']:.1f} s")
    for key in ("up_s", "down_s", "pss_bytes", "machine_bytes"):
        record_property(key, found[key])
    free = found["attempts"] - found["planted"]
    assert found["outcomes"] == {"planted": {"TIMED_OUT": found["planted"]}, "free": {"OPEN": free}}


COUNTED = """
import json, os, sys
from lab.users import new_namespace
if os.geteuid() == 0:
    new_namespace()
from lab.isolation import run_isolated
from tests.e2e.standup import counted
sys.exit(run_isolated(lambda me: print(sys.argv[1] + json.dumps(counted(me, json.loads(sys.argv[2])))) or 0))
"""


def namespaces(blind: bool) -> dict[str, Any]:
    argv = [sys.executable, "-c", COUNTED, MARK, json.dumps({"hosts": 60, "spare": 2, "blind": blind})]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    found = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert found, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(found[0])
    return answer


@needs_root
@pytest.mark.e2e
def test_down_means_that_the_kernel_counts_the_namespaces_no_more() -> None:
    found = namespaces(blind=False)
    assert found["up"] - found["before"] >= 60  # 61 with the router's, less one that the first count had left
    assert not found["after_more"], found  # spare: the canary, and one that a count has made


@needs_root
@pytest.mark.e2e
def test_without_waiting_they_are_still_counted() -> None:
    """The check above can fail."""
    found = namespaces(blind=True)
    assert found["after_more"], found
