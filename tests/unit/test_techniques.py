"""Techniques are told whole; the attacker's tool proves what it says; campaigns are summed up as they were."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.attacks import host_tool
from bench.attacks.catalogue import DROWNING, TECHNIQUES
from bench.attacks.ground import PARTS
from bench.attacks.host_base import Puzzle, pieces
from bench.campaigning import _summed, footholds
from bench.cli import app
from bench.report.campaigns import Campaigns, Made
from bench.report.campaigns import show as show_campaigns
from bench.report.techniques import Arm, Techniques, Tried, show
from lab.scenario import load

ROOT = Path(__file__).parents[2]
PARTS_DIR = ROOT / "bench/attacks"


def printed(what: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200, no_color=True, highlight=False)
    if isinstance(what, Techniques):
        show(what, TECHNIQUES, console)
    elif isinstance(what, Campaigns):
        show_campaigns(what, console)
    return out.getvalue()


# --- the catalogue ----------------------------------------------------------------------------


def test_every_technique_says_what_it_is_and_what_proves_it() -> None:
    assert len({one.name for one in TECHNIQUES}) == len(TECHNIQUES) == 19
    for one in TECHNIQUES:
        assert re.fullmatch(r"T1\d{3}(\.00\d)?", one.mitre), one.name
        assert one.title and one.precondition and one.proof
    assert {one.name for one in TECHNIQUES} >= DROWNING


def test_the_docs_tell_of_every_technique() -> None:
    text = (ROOT / "docs/attack.md").read_text()
    for one in TECHNIQUES:
        assert f"| {one.mitre} |" in text and f"(`{one.name}`)" in text, one.name


def test_an_unknown_technique_is_named_with_those_there_are() -> None:
    done = CliRunner().invoke(app, ["attack", "techniques", "--techniques", "--only", "telepathy"])
    assert done.exit_code == 2 and "no technique 'telepathy'; there are: discovery," in done.output


# --- what is printed --------------------------------------------------------------------------


def tried(ending: str, alerted: int = 0, first: float | None = None) -> Tried:
    return Tried.model_validate({"ending": ending, "detail": "as it was", "seconds": 0.1, "attempts": 4, "blocked": 3,
                                 "seen": 2, "alerted": alerted, "first_alert_s": first})


def test_the_table_has_arms_as_columns_and_says_what_nothing_stops() -> None:
    text = printed(Techniques(scenario="s", arms={
        "none": Arm(tried={"discovery": tried("succeeded"), "names": tried("succeeded")}),
        "guard": Arm(tried={"discovery": tried("stopped", 2, 0.25), "names": tried("not tried")}),
        "absent": Arm(unsupported="no such kernel")}))
    row = next(line for line in text.splitlines() if line.startswith("T1046"))
    assert row.split()[-2:] == ["succeeded", "stopped"]
    assert "absent cannot run here: no such kernel" in text
    assert "No arm can stop T1071.004 Tunnel in DNS: the resolver is allowed to ask" in text
    assert "No arm can stop T1055" not in text, "it was not tried"
    line = next(line for line in text.splitlines() if line.startswith("guard ")).split()
    assert line == ["guard", "8", "6", "4", "2", "1", "of", "2", "250", "ms"]


# --- campaigns --------------------------------------------------------------------------------


def made(taken: int, attempts: int | None, *, at_goal: bool = False) -> Made:
    return Made(foothold="web-1/frontend", taken=taken, by_process=0, at_goal=at_goal, reached=attempts is not None,
                attempts=50, attempts_to_goal=attempts, seconds_to_goal=None if attempts is None else attempts / 100)


def test_a_campaign_that_never_got_there_is_censored_and_one_that_began_there_left_out() -> None:
    scenario = load(ROOT / "scenarios/three-tier.yaml")
    arm = _summed(scenario, [made(7, 10), made(7, 20), made(0, None), made(3, 5, at_goal=True)], {"seen": 9})
    assert arm.shares == (1.0, 1.0, 0.0, 3 / 7) and arm.seen == 9
    assert arm.attempts_to_goal is not None and arm.seconds_to_goal is not None
    assert (arm.attempts_to_goal.n, arm.attempts_to_goal.reached, arm.attempts_to_goal.median) == (3, 2, 20)
    text = printed(Campaigns(scenario="s", runs=1, arms={"none": arm}))
    assert "2 of 3" in text and "100 %" in text


def test_footholds_are_every_process_of_what_is_not_external() -> None:
    found = footholds(load(ROOT / "scenarios/techniques.yaml").topology)
    assert ("web-1", "frontend") in found and ("cam", "stream") in found and not any(h == "c2" for h, _ in found)


# --- the tool ---------------------------------------------------------------------------------


def test_pieces_make_the_whole_in_any_order_and_not_without_one() -> None:
    data = bytes(range(256)) * 9
    parts = list(pieces(data))
    puzzle = Puzzle()
    assert not any(puzzle.add(part) for part in parts[1:][::-1])
    assert puzzle.add(parts[0]) and puzzle.whole == data
    assert not Puzzle().add(b"something else")


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that answers whatever comes with `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(64)
                peer.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield str(server.getsockname()[1])
        thread.join(5)


@pytest.mark.parametrize(("key", "owned"), [(host_tool._PROOF_KEY, "db"), (1, "")])
def test_an_exploit_is_proved_by_its_nonce(key: int, owned: str, capsys: pytest.CaptureFixture[str]) -> None:
    nonce = 12345
    loot = b"OWNED" + b"db\0store\0store\0" + (nonce ^ key).to_bytes(8, "little")
    with answering(loot) as port:
        host_tool.exploit("127.0.0.1", port, str(nonce))
    said = json.loads(capsys.readouterr().out)
    assert said["host"] == owned and said["attempts"][0]["outcome"] == "OPEN"


def test_the_parts_that_are_placed_make_a_tool_of_the_standard_library_alone(tmp_path: Path) -> None:
    there = tmp_path / "bench/attacks"
    there.mkdir(parents=True)
    for name in PARTS:
        (there / name).write_bytes((PARTS_DIR / name).read_bytes())
    with answering(b"no login here") as port:
        (tmp_path / "login").write_bytes(b"secret")
        done = subprocess.run([sys.executable, "-S", str(there / "host_tool.py"), "login", "127.0.0.1", port,
                               str(tmp_path / "login")], env={"PYTHONPATH": str(tmp_path)}, capture_output=True,
                              text=True, check=True)
    assert json.loads(done.stdout)["flag"] == "no login here"


def test_what_the_host_does_not_allow_is_told(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-S", str(PARTS_DIR / "host_tool.py"), "send", "tcp", "127.0.0.1", "1",
                           str(tmp_path / "missing")], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          check=False)
    assert json.loads(done.stdout)["failed"] == 2 and "No such file" in done.stdout
