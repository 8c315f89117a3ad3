"""What a user can get wrong is answered in one line a mistake, with the documented exit status and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def labctl(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.cli", *args], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, check=False, env={**os.environ, "COLUMNS": "100", **env})


@pytest.mark.parametrize(("args", "says"), [
    (("run", "nope"), "no such scenario; name a file or one of: "),
    (("run", "three-tier", "--arms", "agent-x"), "there is no arm 'agent-x'; installed are: none"),
    (("import", "csw", "/nowhere", "-o", "/dev/null"), "/nowhere"),
    (("import", "csw", ".", "-o", "/dev/null", "--nodes", "some"), "neither 'grouped' nor 'all'"),
])
def test_a_wrong_call_is_one_line_and_status_2(args: tuple[str, ...], says: str) -> None:
    done = labctl(*args)
    assert done.returncode == 2
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_wrong_scenario_shows_every_mistake_at_once(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    text = (ROOT / "scenarios/three-tier.yaml").read_text()
    bad.write_text(text.replace("service: 80/tcp", "service: http").replace("[browser, shopper]", "[browsr]"))
    for command in ("validate", "run"):
        done = labctl(command, str(bad))
        assert done.returncode == 2
        lines = done.stderr.strip().splitlines()
        assert len(lines) >= 2 and all(str(bad) in line for line in lines)
        assert "did you mean 'browser'" in done.stderr and "Traceback" not in done.stderr


def test_a_right_scenario_is_said_to_be_right() -> None:
    done = labctl("validate", "three-tier")
    assert done.returncode == 0 and "8 hosts, 3 rules" in done.stdout


@pytest.mark.parametrize("command", [("run",), ("validate",), ("schema",), ("import", "csw")])
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    done = labctl(*command, "--help", NO_COLOR="1")
    assert done.returncode == 0 and "Example" in done.stdout and f"labctl {' '.join(command)}" in done.stdout
    assert "\x1b" not in done.stdout


def test_schema_is_the_one_that_is_published() -> None:
    assert labctl("schema").stdout == (ROOT / "results/summary.schema.json").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can do everything; this is about who cannot")
def test_without_root_it_says_so() -> None:
    done = labctl("run", "three-tier", "--quick")
    assert done.returncode == 3 and "root" in done.stderr
