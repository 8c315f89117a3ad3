"""The workflow that users copy: it is YAML, its steps name commands, options and files that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bench import cli

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "docs" / "ci" / "labctl.yml"


def steps() -> list[dict[str, Any]]:
    document = yaml.safe_load(WORKFLOW.read_text())
    assert document[True]  # YAML 1.1 reads the key `on` as true, as GitHub's own parser does not
    (job,) = document["jobs"].values()
    return list(job["steps"])


def commands() -> list[list[str]]:
    """Every call in the steps, as words, with line continuations joined and shell syntax left out."""
    lines = [line.strip() for step in steps() for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    return [shlex.split(re.split(r"\s(?:>|\|\|)\s", part)[0]) for line in lines for part in line.split(" && ")]


def labctl_problem(words: list[str]) -> str:
    """Why labctl would not understand this call; empty if it would."""
    command: Any = typer.main.get_command(cli.app)
    name, rest = words[1], words[2:]
    if name not in command.commands:
        return f"no command {name}"
    options = {opt for param in command.commands[name].params for opt in param.opts}
    return next((f"no option {word}" for word in rest if word.startswith("--") and word.split("=")[0] not in options),
                "")


def test_every_labctl_call_is_one_that_labctl_understands() -> None:
    calls = [words for words in commands() if words and words[0].endswith("labctl")]
    assert calls and [labctl_problem(words) for words in calls] == [""] * len(calls)
    assert labctl_problem(["labctl", "gait"]) and labctl_problem(["labctl", "gate", "--baselin", "x"])


def test_what_it_calls_exists() -> None:
    called = [words for words in commands() if words]
    assert ["make", "setup"] in called and re.search(r"^setup:", (ROOT / "Makefile").read_text(), re.M)
    (suite,) = [words for words in called if "pytest" in words]
    assert (ROOT / suite[suite.index("pytest") + 1]).is_dir()


@pytest.mark.parametrize("index", range(len(steps())))
def test_every_step_is_valid_shell(index: int) -> None:
    script = steps()[index].get("run")
    if script is not None:
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_results_are_kept_even_if_the_gate_fails() -> None:
    keep = steps()[-1]
    assert keep["if"] == "always()" and "upload-artifact" in keep["uses"] and "results" in keep["with"]["path"]
