"""The self-test on real packets, and 200 µs found time after time (slow: pytest -m slow)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.isolated import ROOT, call, needs_root

pytestmark = [needs_root, pytest.mark.e2e]
TRIALS, LEAST = 20, 18
PLANTED_US = 200.0


def labctl(*argv: str, timeout_s: float = 600) -> tuple[int, Any, str]:
    done = subprocess.run([sys.executable, "-m", "bench.cli", *argv, "--json"], cwd=ROOT, capture_output=True,
                          text=True, timeout=timeout_s, check=False)
    return done.returncode, json.loads(done.stdout or "null"), done.stderr


def test_verdicts_and_telemetry_come_out_as_planted() -> None:
    names = ("leaked-port", "silent-leak", "dropped-rule", "dead-server", "loss", "lost-telemetry")
    status, found, said = labctl("selftest", *(f"--only={name}" for name in names))
    assert status == 0, found or said
    assert [one["outcome"] for one in found] == ["PASS"] * len(names), found


def test_an_unknown_plant_ends_with_2() -> None:
    status, _found, said = labctl("selftest", "--only", "nonsense")
    assert status == 2 and "no plant 'nonsense'" in said


@pytest.mark.slow
def test_the_whole_of_it_takes_at_most_ten_minutes() -> None:
    _status, found, said = labctl("selftest", timeout_s=600)
    assert found and len(found) == 9, said
    assert "FAIL" not in [one["outcome"] for one in found], found


@pytest.mark.slow
def test_200_microseconds_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    found = call("tests.e2e.test_selftest", "trials", TRIALS, timeout_s=1800)
    if isinstance(found, str):
        pytest.skip(found)
    with capsys.disabled():
        print("\n" + "\n".join(f"{one['value']:.1f} µs [{one['low']:.1f}–{one['high']:.1f}]; the exchange is longer by "
                              f"{one['longer']:.1f} µs, under the standard by {one['standard']:.1f}" for one in found))
    assert sum(one["found"] for one in found) >= LEAST, found


def trials(me: Any, count: int) -> Any:
    """In the run's namespaces: the trials, or why this machine cannot plant a delay."""
    from bench.selftest import session
    from bench.selftest.measure import Lab
    from bench.selftest.trials import trials as run
    from lab import features
    from lab.backends import mininet_lab
    from lab.hosts.build import build
    from lab.hosts.roles import actors
    from lab.model import Feature, Flow
    from lab.scenario import load

    delay, problem = session.delay_object()
    problem = problem or features.missing((Feature("tc-bpf", "the delay is a program in the kernel"),))
    if problem:
        return problem
    scenario = load(session.SCENARIO)
    flow = Flow("client", "asker", scenario.topology.processes["asker"].user, "server", "service", "tcp", 7000, 4)
    with mininet_lab.up(scenario.topology, build(), me.cgroup, actors(scenario.topology)) as testbed:
        lab = Lab(scenario, testbed, session.make(delay), Path("/run"), lambda _text: None)
        return [{"value": one.interval.value or 0.0, "low": one.interval.low or 0.0, "high": one.interval.high or 0.0,
                 "longer": one.longer.value or 0.0, "standard": one.standard.value or 0.0, "found": one.found}
                for one in run(lab, flow, PLANTED_US, count)]
