"""Raw data survives the death of whoever writes it; a sample of flows misses no kind."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench.selection import select
from bench.store import ResultStore, read
from lab.scenario import load

ROOT = Path(__file__).parents[2]
WRITER = """
import os, signal, sys
from pathlib import Path
from bench.store import ResultStore
store = ResultStore(Path(sys.argv[1]))
store.append("things", ({"n": n} for n in range(1000)), arm="none")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_appended_outlives_a_kill(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "r")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    records = list(read(tmp_path / "r" / "things.jsonl.gz"))
    assert [r["n"] for r in records] == list(range(1000))
    assert all(r["arm"] == "none" and r["f"] == 1 for r in records)


def test_two_results_of_one_second_do_not_meet(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    names = [ResultStore.create(tmp_path, "s", now).directory.name for _ in range(3)]
    assert names == ["2026-01-02T030405Z", "2026-01-02T030405Z-2", "2026-01-02T030405Z-3"]


def test_a_sample_has_every_stratum_and_is_the_same_again() -> None:
    scenario = load(ROOT / "scenarios/three-tier.yaml")
    whole, part = select(scenario), select(scenario, limit=200)
    assert not whole.sampled and whole.total == len(whole.flows) == 2200
    assert part.sampled and len(part.flows) <= 200 and part.total == whole.total
    assert all(taken > 0 for taken, _of in part.strata.values())
    assert set(part.strata) == set(whole.strata)
    assert part.flows == select(scenario, limit=200).flows
    assert set(part.flows) <= set(whole.flows)
