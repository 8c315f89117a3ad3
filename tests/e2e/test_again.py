"""`gate` and `replay` on real packets, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gating
from bench.analysis.gate import read
from bench.experiment import Options
from bench.instruments.datapath import Design
from bench.session import Finished, run_scenario
from lab.model import Scenario
from lab.scenario import load
from tests.e2e.isolated import ROOT, needs_root

pytestmark = [needs_root, pytest.mark.e2e]
SMALL = """\
version: 1
name: small
topology:
  segments: {a: {v4: 10.9.0.0/24, v6: "fd09:0::/64"}, b: {v4: 10.9.1.0/24, v6: "fd09:1::/64"}}
  hosts: {client: {segment: a, runs: [asker]}, server: {segment: b, runs: [service]}}
processes: {asker: {exe: /opt/asker}, service: {exe: /opt/service, listens: [7000/tcp, 7001/tcp]}}
policy:
  default: deny
  rules: [{name: ask, allow: {from: {process: asker}, to: {process: service}, service: 7000/tcp}}]
arms: [none, chokepoint]
"""


def labctl(*words: str, here: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.cli", *words, "--results", str(here / "results"), "--json"],
                          cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("again")
    (directory / "small.yaml").write_text(SMALL)
    return directory


def small(here: Path) -> tuple[Scenario, Options]:
    return load(here / "small.yaml"), Options(arms=("none", "chokepoint"), blocks=14, extras_every=0, as_json=True,
                                              results=here / "gates", design=Design(crr=10, rr=4, warmup=1))


def apart(function: str, here: Path) -> None:
    """Call a function of this module in a process of its own: one process is isolated once."""
    code = f"import sys, pathlib; from tests.e2e import test_again as t; t.{function}(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(here)], cwd=ROOT, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def keep(here: Path) -> None:
    """Store a baseline, and another that says that the arm took a tenth of it, and let one flow less through."""
    assert gating.store_baseline(*small(here), here / "itself.json") == 0
    stored = read((here / "itself.json").read_bytes(), "itself.json")
    were = stored.verdicts["chokepoint"]
    ratios = {figure: tuple(one and one / 10 for one in blocks) if figure == "crr_p50_us" else blocks
              for figure, blocks in stored.ratios["chokepoint"].items()}
    faster = stored.model_copy(update={"ratios": {"chokepoint": ratios}, "verdicts": {
        "chokepoint": were | {"leaks": were["leaks"] - 1}}})
    (here / "faster.json").write_text(faster.model_dump_json())


def judge(here: Path) -> None:
    """One run, judged against both."""
    def finish(finished: Finished) -> int:
        told = {name: gating.judge(read((here / f"{name}.json").read_bytes(), name), finished, 0.9).as_data()
                for name in ("itself", "faster")}
        (here / "told.json").write_text(json.dumps(told))
        return 0

    assert run_scenario(*small(here), finish) == 0


def test_a_gate_passes_against_itself_and_names_an_arm_that_became_slower(here: Path) -> None:
    apart("keep", here)
    apart("judge", here)
    told = json.loads((here / "told.json").read_text())
    itself, faster = told["itself"], told["faster"]
    # 4: a machine that is busy enough may not do; the gate says so, and claims no regression
    assert itself["exit_code"] == 0 or (itself["exit_code"] == 4 and itself["outcome"] == "noisy"), itself
    assert itself["worse"] == [] and {one["figure"] for one in itself["comparisons"]} == {"crr_p50_us", "rr_p50_us"}
    assert faster["exit_code"] == 1 and faster["outcome"] == "regression", faster
    were = read((here / "itself.json").read_bytes(), "itself.json").verdicts["chokepoint"]["leaks"]
    assert faster["worse"] == [f"chokepoint: leaks: {were - 1} before, {were} now"]
    (crr,) = (one for one in faster["comparisons"] if one["figure"] == "crr_p50_us")
    assert crr["worse"] > 4 and crr["p"] < 0.01


def test_a_baseline_that_is_not_there_or_not_one_is_a_usage_error(here: Path) -> None:
    (here / "odd.json").write_text("{}")
    for name, why in (("absent.json", "--update"), ("odd.json", "store a new baseline")):
        done = labctl("gate", str(here / "small.yaml"), "--baseline", str(here / name), here=here)
        assert done.returncode == 2 and why in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_replay_of_a_quick_run_agrees(here: Path) -> None:
    done = labctl("run", str(here / "small.yaml"), "--quick", here=here)
    assert done.returncode == 0, done.stderr
    (saved,) = [p.parent for p in (here / "results" / "small").glob("*/summary.json")
                if json.loads(p.read_text())["quick"]]
    for _attempt in range(2):  # an honest replay is told of a cost that differs once in twenty (replaying.ALPHA)
        replayed = labctl("replay", str(saved), "--quick", here=here)
        told = json.loads(replayed.stdout)
        (cost,) = (one for one in told["findings"] if one["what"] == "cost")
        if cost["agrees"] is not False:
            break
    assert told["environment"] == [] and told["invalid"] == []
    assert all(one["agrees"] for one in told["findings"] if one["what"] != "cost"), told
    # Three blocks on a busy machine may differ A/A, and a replay that cannot tell says so; it claims no disagreement
    assert cost["agrees"] or (cost["agrees"] is None and "A/A differs" in cost["text"]), told
    assert replayed.returncode == (0 if cost["agrees"] else 4)
    assert {(one["arm"], one["what"]) for one in told["findings"]} >= {
        ("chokepoint", what) for what in ("verdicts", "flows", "telemetry", "cost")}
