"""However a run ends, the machine is as it was: interrupted in order or killed at once; two at once do not meet."""

from __future__ import annotations

import gzip
import json
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.store import read
from tests.e2e.isolated import needs_isolation
from tests.e2e.watched import SCENARIO, Watched

pytestmark = [needs_isolation, pytest.mark.e2e]
KILLS_A_MOMENT = 6


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_measured(tmp_path: Path, signum: int) -> None:
    run = Watched(tmp_path)
    run.until("chokepoint: matrix")
    run.process.send_signal(signum)
    out, err = run.process.communicate(timeout=180)
    assert run.process.returncode == 130, err
    assert "Traceback" not in err
    summary = json.loads(out)
    assert summary["interrupted"] is True
    assert summary["arms"]["none"]["flows"] > 0
    kept = list(read(run.saved() / "observations.jsonl.gz"))
    assert sum(r["arm"] == "none" and r["phase"] == "matrix" for r in kept) == summary["arms"]["none"]["flows"]
    assert json.loads((run.saved() / "summary.json").read_text()) == summary
    run.await_gone()


@pytest.mark.parametrize(("moment", "blocks", "measured"), [
    ("standing up", 0, set()), ("agent-nft: matrix", 0, {"none", "chokepoint"}),
    ("block 1", 50, {"none", "chokepoint", "agent-nft"})])
def test_the_whole_terminal_is_interrupted(tmp_path: Path, moment: str, blocks: int, measured: set[str]) -> None:
    """Ctrl-C reaches every process of the group, labctl's child twice: that is one interruption, not two."""
    run = Watched(tmp_path, blocks)
    run.until(moment)
    os.killpg(run.process.pid, signal.SIGINT)
    out, err = run.process.communicate(timeout=180)
    assert run.process.returncode == 130 and "Traceback" not in err, err
    summary = json.loads(out)
    assert summary["interrupted"] is True and set(summary["arms"]) == measured
    run.await_gone()


# the line to wait for, and how long after it at most
MOMENTS = {"standing up": ("standing up", 1.0), "deploy": ("chokepoint: deploying", 1.0),
           "measuring": ("agent-nft: matrix", 1.5), "blocks": ("block 1 of", 2.0),
           "teardown": ("taking the lab down", 0.1)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_runs_leave_nothing(tmp_path: Path, moment: str, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 at a random instant of every phase, time and again; what was measured by then can be read."""
    words, spread_s = MOMENTS[moment]
    chance, whole = random.Random(moment), 0
    for number in range(KILLS_A_MOMENT):
        (tmp_path / str(number)).mkdir()
        run = Watched(tmp_path / str(number), blocks=1)
        run.until(words)
        select.select([], [], [], chance.uniform(0, spread_s))  # a random instant, not a wait for something
        run.process.kill()
        run.process.communicate(timeout=90)
        run.await_gone()
        whole += run.alone
        for raw in run.saved().glob("*.jsonl.gz"):
            assert all(record["f"] == 1 for record in read(raw))
    with capsys.disabled():
        print(f"\n{moment}: {KILLS_A_MOMENT} kills, {whole} compared with the machine's whole lists")


def test_the_run_after_a_kill_works_and_a_kept_cgroup_would_be_seen(tmp_path: Path) -> None:
    """The check can fail: a process that outlives its run is named."""
    run = Watched(tmp_path)
    run.until("chokepoint: matrix")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path)]) as straggler:
        run.process.kill()
        run.process.communicate(timeout=90)
        with pytest.raises(AssertionError, match=f"{straggler.pid}"):
            run.await_gone(timeout_s=1)
        straggler.kill()
    run.await_gone()


OTHER = SCENARIO.replace("10.31.", "10.47.").replace("fd31:", "fd47:")


def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    """What two runs at once find is what each finds alone, and neither has anything of the other in its records."""
    found = {}
    for name in ("alone x", "alone y"):
        found[name] = ended(begun(tmp_path, name))
    both = [begun(tmp_path, name) for name in ("x", "y")]
    for run in both:
        run.alone = False  # each is the other's guest: the machine's whole lists have both
    found["x"], found["y"] = (ended(run) for run in both)
    for name in ("x", "y"):
        assert outcomes(found[name]) == outcomes(found[f"alone {name}"])
        assert sightings(found[name]) == sightings(found[f"alone {name}"])
        assert taken(found[name]) == taken(found[f"alone {name}"]) != {}
    for mine, other, addresses in (("x", "y", (b"10.47.", b"fd47:")), ("y", "x", (b"10.31.", b"fd31:"))):
        for file in found[mine].saved().iterdir():
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            assert not any(strange in content for strange in (*addresses, found[other].id().encode())), file.name


def begun(tmp_path: Path, name: str) -> Watched:
    (tmp_path / name).mkdir()
    return Watched(tmp_path / name, scenario=OTHER if name.endswith("y") else SCENARIO)


def ended(run: Watched) -> Watched:
    _out, err = run.process.communicate(timeout=180)
    assert run.process.returncode == 0, err
    run.await_gone()
    return run


def outcomes(run: Watched) -> dict[tuple[str, ...], tuple[str, bool]]:
    """What came of every flow of the matrix, by arm and flow."""
    return {(r["arm"], *map(str, r["flow"].values())): (r["outcome"], r["arrived"])
            for r in read(run.saved() / "observations.jsonl.gz") if r["phase"] in ("matrix", "held")}


def sightings(run: Watched) -> set[tuple[object, ...]]:
    """What every arm's telemetry tells of, without what is of the moment: times, source ports, processes in time."""
    return {tuple(r[key] for key in ("arm", "point", "proto", "source", "target", "dport", "verdict"))
            for r in read(run.saved() / "sightings.jsonl.gz")}


def taken(run: Watched) -> dict[str, list[str]]:
    summary = json.loads((run.saved() / "summary.json").read_text())
    return {name: arm["attack"]["taken"] for name, arm in summary["arms"].items()}
