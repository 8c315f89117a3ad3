"""A planted blind spot, the telemetry of one class removed, is named with its count, and the map shows where it is."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from bench.analysis.visibility import visibility
from bench.cli import app
from bench.report import coverage
from bench.report import summary as s
from tests.unit.test_matrices import TOPOLOGY
from tests.unit.test_report import summary
from tests.unit.test_visibility import FULL, sighting, truth

TRUTHS = [*(truth(n) for n in range(1, 31)),
          *(truth(n, source="api", source_address="10.0.0.3") for n in range(101, 139))]  # 38 of api to itself
SEEN = [*(sighting(n, **FULL) for n in range(1, 31)),
        *(sighting(n, source="10.0.0.3", **FULL) for n in range(101, 139))]


def arm(kept: int) -> s.Arm:
    """An arm that told of all flows between hosts, and of `kept` within one host."""
    seen = visibility(TRUTHS, SEEN[:30 + kept], TOPOLOGY)
    return s.Arm(coverage=s.coverage(seen), blind_spots=seen.blind_spots, visibility=s.recalls(seen))


def shown(**arms: s.Arm) -> str:
    out = io.StringIO()
    coverage.show(arms, Console(file=out, width=120, no_color=True, highlight=False))
    return out.getvalue()


def test_the_planted_blind_spot_is_named_with_its_count_and_nothing_else_is() -> None:
    text = shown(planted=arm(0))
    assert "blind spot: did not see 38 of 38 flows between processes of one host" in text
    assert text.count("blind spot:") == 1
    assert [line.split() for line in text.splitlines() if line.startswith("within one host")] == [
        ["within", "one", "host", "38", *["0", "%"] * 5]]
    assert "blind spot" not in shown(whole=arm(38)), "a blind spot where nothing was removed"
    assert "did not see 8 of 38 flows between processes of one host" in shown(partly=arm(30))


def test_a_field_that_was_not_measured_is_not_covered_badly() -> None:
    found = s.coverage(visibility(TRUTHS, SEEN, TOPOLOGY), tuple(f for f in s.FIELDS if f != "user"))
    assert found["within one host"]["user"] == s.Recall(recall=None, n=0)
    assert found["within one host"]["flow"].recall == 1


def test_an_arm_without_telemetry_is_said_to_be_blind() -> None:
    assert "none: has no telemetry, or it saw nothing" in shown(none=s.Arm(coverage=s.coverage(
        visibility(TRUTHS, [], TOPOLOGY))))


def test_the_command(tmp_path: Path) -> None:
    old = summary()
    (tmp_path / "summary.json").write_text(s.to_json(old))
    bad = CliRunner().invoke(app, ["coverage", str(tmp_path)])
    assert bad.exit_code == 2 and "has no coverage" in bad.output
    (tmp_path / "summary.json").write_text(s.to_json(old.model_copy(update={"arms": {"planted": arm(0)}})))
    good = CliRunner().invoke(app, ["coverage", str(tmp_path)])
    assert good.exit_code == 0 and "38 of 38 flows between processes of one host" in good.output
