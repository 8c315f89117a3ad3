"""The time left is told from the plan and from what was seen; a pipe gets a plain line a step."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report.progress import Done, Progress, Step, clock, left_s, parsed, steps

ROOT = Path(__file__).parents[2]
PLAN = steps(("none", "a", "b"), hosts=8, flows=3000, replay=0, traffic_s=4.0, attack=True, blocks=2, window_s=0.5)


def total(plan: tuple[Step, ...]) -> float:
    return sum(step.prior_s for step in plan)


def test_the_plan_has_every_step_in_the_order_of_a_run() -> None:
    assert [(s.group, s.kind) for s in PLAN[:6]] == [
        ("", "up"), ("none", "deploying of the baseline"), ("none", "matrix"), ("none", "attack"),
        ("none", "traffic"), ("none", "telemetry of the baseline")]
    assert sum(s.kind == "window" for s in PLAN) == 2 * 4  # the baseline stands twice in a block
    assert PLAN[-1].kind == "down" and len(PLAN) == 1 + 3 * 5 + 8 + 1


@pytest.mark.parametrize(("text", "step"), [
    ("standing up 8 hosts", ("", "up")), ("none: matrix", ("none", "matrix")),
    ("agent-nft: telemetry", ("agent-nft", "telemetry")), ("none: telemetry", ("none", "telemetry of the baseline")),
    ("block 2 of 8: none (again)", ("block 2", "window")), ("interrupted: taking the lab down", ("", "down")),
    ("something else", None)])
def test_what_a_run_says_is_a_step_of_the_plan(text: str, step: tuple[str, str] | None) -> None:
    assert parsed(text) == step
    if step and step[0] in ("", "none"):
        assert step in [s[:2] for s in PLAN]


def test_before_anything_was_seen_the_priors_stand_in() -> None:
    assert left_s(PLAN, [], None, 0.0) == pytest.approx(total(PLAN))
    assert left_s(PLAN, [], ("", "up"), 1.0) == pytest.approx(total(PLAN) - 1.0)


def test_the_baseline_predicts_the_others() -> None:
    before = [Done("", "up", 3.0), Done("none", "deploying of the baseline", 0.1)]
    at = ("none", "attack")
    quick = left_s(PLAN, [*before, Done("none", "matrix", 2.0)], at, 0.0)
    slow = left_s(PLAN, [*before, Done("none", "matrix", 12.0)], at, 0.0)
    assert slow - quick == pytest.approx(2 * 10.0)  # two arms are still to come
    nothing = left_s(PLAN, [Done("", "up", 3.0), Done("none", "deploying of the baseline", 99.0)],
                     ("none", "matrix"), 0.0)
    assert nothing == pytest.approx(total(PLAN[2:]))  # what the baseline does not do predicts nothing


def test_windows_that_were_seen_predict_those_to_come() -> None:
    examined = [Done(s.group, s.kind, 1.0) for s in PLAN if s.kind not in ("window", "down")]
    windows = [Done("block 1", "window", 5.0)] * 3
    left = left_s(PLAN, [*examined, *windows], ("block 1", "window"), 2.0)
    assert left == pytest.approx((5.0 - 2.0) + 4 * 5.0 + 1.0)
    overdue = left_s(PLAN, [*examined, *windows], ("block 1", "window"), 60.0)
    assert overdue == pytest.approx(4 * 5.0 + 1.0)


def test_what_was_passed_over_is_not_waited_for() -> None:
    """An arm that this machine cannot run is never announced; its windows are missing from every block."""
    seen = [Done(s.group, s.kind, 1.0) for s in PLAN if s.group in ("", "none", "a") and s.kind != "down"]
    at_first = left_s(PLAN, seen, ("block 1", "window"), 0.0)
    at_second = left_s(PLAN, [*seen, Done("block 1", "window", 2.0)], ("block 2", "window"), 0.0)
    assert at_first < total(PLAN)
    assert at_second == pytest.approx(4 * 2.0 + 1.0)
    assert left_s(PLAN, seen, ("", "down"), 0.0) == pytest.approx(1.0)


def test_it_shrinks_to_nothing_over_a_run() -> None:
    done: list[Done] = []
    lefts = []
    for step in PLAN:
        lefts.append(left_s(PLAN, done, step[:2], 0.0))
        done.append(Done(step.group, step.kind, step.prior_s))
    assert lefts == sorted(lefts, reverse=True) and left_s(PLAN, done, None, 0.0) == 0.0


def test_times_are_read_as_people_write_them() -> None:
    assert [clock(s) for s in (0, 59.6, 65, 3725)] == ["0:00", "1:00", "1:05", "1:02:05"]


def test_a_run_says_its_step_and_what_is_left() -> None:
    times = iter([0.0, 0.0, 0.0, 4.0, 6.0])
    said = Progress(now=lambda: next(times))
    said.expect((Step("", "up", 2.0), Step("none", "matrix", 10.0), Step("a", "matrix", 10.0)))
    said("standing up 8 hosts")
    said("none: matrix")
    assert said.words() == ("none: matrix", "0:06, about 0:18 left")


SHOW = """
from bench.report.progress import Progress, steps
import time
with Progress() as say:
    say.expect(steps(("none", "a"), hosts=8, flows=900, replay=0, traffic_s=0, attack=False, blocks=3, window_s=0.5))
    say("standing up 8 hosts")
    say("none: matrix")
    end = time.monotonic() + 0.5  # several frames
    while time.monotonic() < end:
        pass
"""


def test_a_pipe_gets_a_plain_line_a_step() -> None:
    done = subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "labctl: standing up 8 hosts\nlabctl: none: matrix\n" and done.stdout == ""


def on_a_terminal(code: str, **env: str) -> str:
    """What `code` writes to a terminal, escape sequences and all."""
    ours, theirs = pty.openpty()
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
                          env={**plain, "TERM": "xterm-256color", "COLUMNS": "100", **env}) as child:
        os.close(theirs)
        got = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not chunk:
                break
            got += chunk
        child.wait(timeout=60)
    os.close(ours)
    return got.decode()


def test_a_terminal_gets_a_live_line_with_the_time_left() -> None:
    shown = on_a_terminal(SHOW)
    assert "\x1b[" in shown and "none: matrix" in shown and " left" in shown


def test_a_terminal_without_colour_gets_no_escape_sequence_at_all() -> None:
    shown = on_a_terminal(SHOW, NO_COLOR="1")
    assert "\x1b" not in shown and "labctl: none: matrix" in shown


def test_tables_and_trees_heed_no_colour_too() -> None:
    code = "from bench.cli import app; app(['show', 'three-tier'])"
    assert "\x1b[" in on_a_terminal(code)
    assert "\x1b" not in on_a_terminal(code, NO_COLOR="1")
