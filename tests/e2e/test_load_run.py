"""`labctl run --load` as a user calls it: a knee, every arm at shares of it, figures by source, all of it raw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.instruments import histogram
from bench.store import read
from tests.e2e.isolated import ROOT, needs_root
from tests.e2e.load_lab import SCENARIOS, TEXT

pytestmark = [needs_root, pytest.mark.e2e]


def test_a_run_under_load(tmp_path: Path) -> None:
    (tmp_path / "load.yaml").write_text(TEXT.format(locustfile=SCENARIOS / "shop.py").replace(
        "arms: [none]", "arms: [none, agent-nft]"))
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", "run", str(tmp_path / "load.yaml"), "--load", "--quick", "--blocks", "0",
         "--json", "--results", str(tmp_path / "results")], cwd=ROOT, capture_output=True, text=True, timeout=400,
        check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["quick"] and told["knee"]["rate"] > 50 and list(told["knee"]["rates"]) == ["25%", "50%", "75%"]
    for name in ("none", "agent-nft"):
        load = told["arms"][name]["load"]
        assert load["windows"] == 9 and load["wrong"] == 0, load
        beside = load["points"]["beside"]
        assert set(load["points"]) == {*told["knee"]["rates"], "beside"}
        assert beside["udp_loss"]["value"] is not None and beside["held"]["value"] > 100
        assert all(beside[f"{kind}_{q}_us"]["value"] > 0 for kind in ("crr", "rr")
                   for q in ("p50", "p90", "p99", "p99_9"))
        assert beside["tls_per_s"]["value"] > 10 and beside["bulk_bps"]["value"] > 1e8
        if "cpu.stat" in told["knee"]["counters"]["hosts"]:
            spent = {source: beside[f"cpu_{source}_per_conn_us"]["value"] for source in told["knee"]["counters"]}
            assert spent["hosts"] > spent["hosts_kernel"] > 0
            assert (spent["daemons"] > 1) is (name == "agent-nft")  # nothing else has a daemon
    assert told["aa"]["load"]["windows"] == 9
    (saved,) = (tmp_path / "results" / "load").iterdir()
    windows = list(read(saved / "load-windows.jsonl.gz"))
    assert len(windows) == 27 and {one["arm"] for one in windows} == {"none", "none (again)", "agent-nft"}
    for one in windows:
        assert {check["name"] for check in one["checks"]} >= {"generator cpu", "conntrack", "wire: p50"}
        kept, told_us = one["hdr"]["from_intended_us"], one["figures"]["app_p50_us"]
        assert told_us is None or histogram.percentile(kept, 50) == pytest.approx(told_us, rel=0.02)
