"""What a user can get wrong is answered in one line a mistake, with the documented exit status and no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bench.cli import app
from bench.commands import reference

ROOT = Path(__file__).parents[2]


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
                          env={**os.environ, "COLUMNS": "100", **env})


def labctl(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "bench.cli", *args, **env)


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


COMMANDS = dict(reference.commands(app))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_gives_an_example_of_itself_and_its_exit_codes(words: str) -> None:
    """Walks the whole tree: a command that is added without them fails here."""
    command = COMMANDS[words]
    end = str(command.epilog or "")
    assert command.help, f"{words} does not say what it does"
    examples = re.findall(r"\[bold\](.*?)\[/\]", end)
    assert any(words in example for example in examples), f"{words}: no example of it: write epilog(…)"
    codes = re.findall(r"(\d+) [a-z]", end.partition("Exit codes: ")[2])
    assert codes[:1] == ["0"], f"{words}: no exit codes: write epilog(…, codes=…)"
    for one in command.params:
        assert one.name == "help" or getattr(one, "help", None), f"{words}: {one.name} has no help"


def test_a_command_without_them_would_fail_that_test() -> None:
    bare = typer.Typer()
    bare.command()(lambda: None)
    bare.command("other")(lambda: None)
    found = dict(reference.commands(bare))
    assert set(found) == {"labctl", "labctl <lambda>", "labctl other"} and not found["labctl other"].epilog


@pytest.mark.parametrize("command", [["run"], ["import", "csw"], ["import"], []], ids=" ".join)
def test_help_shows_them(command: list[str]) -> None:
    done = labctl(*command, "--help", NO_COLOR="1", COLUMNS="300")
    assert done.returncode == 0 and done.stderr == ""
    example = done.stdout[done.stdout.index("Example"):]
    assert " ".join(["labctl", *command]) in example
    assert "Exit codes: 0" in done.stdout and "\x1b" not in done.stdout


def test_help_of_a_group_names_its_commands() -> None:
    names = ("run", "new", "list", "show", "validate", "schema", "import", "results", "compare")
    assert all(name in labctl("--help").stdout for name in names)
    assert "csw" in labctl("import", "--help").stdout


@pytest.mark.parametrize("name", reference.made(app))
def test_the_manuals_are_those_that_are_published(name: str) -> None:
    assert reference.made(app)[name] == (ROOT / "docs" / name).read_text(), "commands or fields changed: make docs"


# --- completion ---------------------------------------------------------------------------------


def completed(line: str, shell: str = "bash") -> str:
    words = line.split(" ")
    env = {"bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
           "zsh": {"_TYPER_COMPLETE_ARGS": line},
           "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}}[shell]
    done = run(sys.executable, "-c", "from bench.cli import app; app(prog_name='labctl')",
               _LABCTL_COMPLETE=f"complete_{shell}", **env)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_completes_a_scenario(shell: str) -> None:
    assert "three-tier" in completed("labctl show thr", shell)
    assert "three-tier" not in completed("labctl show x", shell)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(shell: str) -> None:
    done = run(sys.executable, "-c", "from bench.cli import app; app(prog_name='labctl')",
               _LABCTL_COMPLETE=f"source_{shell}")
    assert "_LABCTL_COMPLETE=complete_" in done.stdout.replace(" ", "").replace("env_", "_")


def test_paths_arms_and_results_are_completed_too(tmp_path: Path) -> None:
    assert completed("labctl validate scenarios/thr").split() == ["scenarios/three-tier.yaml"]
    assert "none,agent-nft" in completed("labctl run three-tier --arms none,ag").split()
    assert "none,none" not in completed("labctl run three-tier --arms none,").split()
    root = "tests/data/results"
    offered = completed(f"labctl compare --results {root} ").split()
    assert offered[0] == "three-tier" and offered[1].startswith(f"{root}/three-tier/2026-") and len(offered) == 3
    assert offered[1] > offered[2]
    assert completed(f"labctl compare --results {tmp_path} ") .split() == []


def test_starting_imports_nothing_heavy() -> None:
    """What makes a start slow is named, rather than timed: these are used inside the commands that need them."""
    heavy = ["numpy", "scipy", "matplotlib", "networkx", "pydantic", "mininet", "ansible_runner", "gevent", "locust"]
    code = f"import sys, bench.cli; print(*[m for m in {heavy} if m in sys.modules])"
    assert run(sys.executable, "-c", code).stdout.split() == []


# --- the commands for people ---------------------------------------------------------------------


def test_new_writes_what_validate_takes_and_never_overwrites_unasked(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert labctl("new", "mine", "-o", str(file)).returncode == 0
    assert labctl("validate", str(file)).returncode == 0
    before = file.read_text()
    file.write_text(before + "# changed\n")
    again = labctl("new", "mine", "-o", str(file))
    assert again.returncode == 2 and "--force" in again.stderr and file.read_text().endswith("# changed\n")
    assert labctl("new", "mine", "-o", str(file), "--force").returncode == 0 and file.read_text() == before
    wrong = {("new", "Mine!"): "is not a name", ("new", "x", "-o", "/nowhere/x.yaml"): "cannot be written"}
    for args, says in wrong.items():
        done = labctl(*args)
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_list_shows_a_broken_scenario_with_its_first_problem(tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios/odd.yaml").write_text("# Does it break?\nname: odd\nversion: 2\n")
    done = subprocess.run([sys.executable, "-m", "bench.cli", "list", "--json"], cwd=tmp_path, capture_output=True,
                          text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert found["odd"]["question"] == "Does it break?" and "policy: is missing" in found["odd"]["problem"]
    assert found["three-tier"]["hosts"] == 8 and found["three-tier"]["question"].endswith("have seen it?")


def test_results_and_compare_answer_people_and_programs() -> None:
    root = "tests/data/results"
    listed = json.loads(labctl("results", "--results", root, "--json").stdout)
    assert [one["quick"] for one in listed] == [False, True] and listed[0]["defects"] == 0
    done = labctl("compare", "three-tier", listed[1]["path"], "--results", root)
    assert done.returncode == 0 and "the seed differs" in done.stdout and "\x1b" not in done.stdout
    assert json.loads(labctl("compare", listed[0]["path"], listed[1]["path"], "--json").stdout)["same_machine"] is True
    for args, says in ((("compare", "x"), "two results or more"), (("compare", "x", "y"), "neither such a path"),
                       (("results", "--results", "/nowhere"), "no such directory"), (("schema", "x"), "no schema 'x'")):
        wrong = labctl(*args)
        assert wrong.returncode == 2 and says in wrong.stderr and len(wrong.stderr.splitlines()) == 1


def test_no_colour_is_heeded_even_where_colour_is_forced() -> None:
    """https://no-color.org: a variable that is set and not empty; bold is no colour."""
    coloured = re.compile(r"\x1b\[(\d+;)*[349][0-7][;m]")
    assert coloured.search(labctl("--help", FORCE_COLOR="1", TERM="xterm-256color").stdout)
    assert not coloured.search(labctl("--help", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1").stdout)


def test_schema_is_the_one_that_is_published() -> None:
    assert labctl("schema", "summary").stdout == labctl("schema").stdout
    assert labctl("schema").stdout == (ROOT / "results/summary.schema.json").read_text()


def test_an_ordinary_user_is_told_in_one_line_what_this_machine_refuses() -> None:
    """Root is not needed any more; a place for the results that one may write to is."""
    call = [sys.executable, "-m", "bench.cli"]
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    if drop and (not shutil.which("setpriv") or run(*drop, *call, "validate", "three-tier").returncode):
        pytest.skip("there is no setpriv, or an ordinary user cannot read this tree or its Python")
    done = run(*drop, *call, "run", "three-tier", "--quick", "--results", "/proc/labctl-results")
    assert done.returncode == 3
    assert done.stderr.startswith("labctl: ") and len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
