"""Judging an episode: what counts as a leak, an outage, open by design; which faults say nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from bench.analysis.beats import Beat
from bench.analysis.exposure import Exposure
from bench.analysis.failures import Design, Judged, Meant, Report, Row, Side, Times, judge
from bench.report.failure import show
from lab.model import Flow, Outcome

ALLOWED = Flow("a", "p", "u", "b", "q", "tcp", 80, 4)
DENIED = Flow("a", "p", "u", "c", "q", "tcp", 80, 4)
TIMES = Times(begin=0.0, fault=1.0, repair=3.0, repaired=3.5, end=5.0)
MEANT = Meant({ALLOWED: True, DENIED: False}, {ALLOWED: True, DENIED: False})
CLAIMS_NOTHING = Meant({ALLOWED: True, DENIED: False}, {ALLOWED: True, DENIED: True})


def seen(passes: Callable[[Flow, float], bool], step: float = 0.1, arrives: bool = False) -> list[Beat]:
    beats = []
    for tick in range(int(5 / step) + 1):
        for flow in (ALLOWED, DENIED):
            outcome = Outcome.OPEN if passes(flow, tick * step) else Outcome.TIMED_OUT
            beats.append(Beat(tick, flow, tick * step, outcome, 0, arrives or outcome is Outcome.OPEN, 100.0))
    return beats


def as_meant(flow: Flow, _time: float) -> bool:
    return flow is ALLOWED


def judged(passes: Callable[[Flow, float], bool], meant: Meant = MEANT) -> Judged:
    return judge(seen(passes), TIMES, meant, meant)


def test_nothing_happened() -> None:
    found = judged(as_meant)
    assert (found.leak.any.high, found.outage.any.high, found.word, found.invalid) == (0, 0, "holds", None)
    assert found.window_s == 4.0
    assert found.repair_s == 0.5
    assert found.resolution_s == pytest.approx(0.1)


def test_fails_open_until_it_is_repaired() -> None:
    found = judged(lambda flow, t: flow is ALLOWED or 1.0 < t < 3.45)
    assert found.word == "opens"
    assert found.leak.any.low <= 2.4 <= found.leak.any.high
    assert found.leak.hit == 1
    assert found.leak.phases["after"].low == 0
    assert found.leak.phases["fault"].low > 1.7
    assert found.outage.any.high == 0


def test_fails_closed() -> None:
    found = judged(lambda flow, t: flow is ALLOWED and not 1.0 < t < 3.0)
    assert found.word == "closes"
    assert found.outage.any.low <= 2.0 <= found.outage.any.high
    assert found.leak.any.high == 0


def test_a_denied_flow_that_arrives_has_leaked_though_no_answer_came_back() -> None:
    found = judge(seen(as_meant, arrives=True), TIMES, MEANT, MEANT)
    assert found.invalid is not None  # it already did before the fault
    assert found.leak.any.low == pytest.approx(4.0)


def test_what_an_arm_does_not_claim_is_open_by_design_and_no_leak() -> None:
    found = judged(lambda _flow, _t: True, CLAIMS_NOTHING)
    assert (found.leak.flows, found.leak.any.high) == (0, 0)
    assert found.by_design.any.low == pytest.approx(4.0)
    assert found.word == "guards nothing"
    assert found.invalid is None


def test_an_arm_that_was_not_in_force_before_the_fault_is_invalid() -> None:
    assert "got through before" in str(judged(lambda flow, t: flow is ALLOWED or t < 0.5).invalid)
    assert "failed before" in str(judged(lambda flow, t: flow is ALLOWED and t > 0.5).invalid)


def test_a_service_that_is_gone_has_tried_nothing() -> None:
    gone = [Beat(b.tick, b.flow, b.start, Outcome.BROKEN, errno.ESRCH, False, None) if b.start > 1 else b
            for b in seen(as_meant)]
    found = judge(gone, TIMES, MEANT, MEANT)
    assert found.outage.any.high == 0
    assert found.unknown == 2 * 40
    broken = [Beat(b.tick, b.flow, b.start, Outcome.BROKEN, errno.ECONNRESET, False, None) if b.start > 1 else b
              for b in seen(as_meant)]
    assert judge(broken, TIMES, MEANT, MEANT).outage.any.low > 3.8


def test_a_policy_that_changes_with_the_fault_is_judged_by_what_is_meant_then() -> None:
    """A revoked flow that still passes leaks; a granted one that does not pass yet is an outage."""
    after = Meant({ALLOWED: False, DENIED: True}, {ALLOWED: False, DENIED: True})
    stale = judge(seen(as_meant), TIMES, MEANT, after)
    assert stale.leak.any.low == pytest.approx(4.0, abs=0.11)
    assert stale.outage.any.low == pytest.approx(4.0, abs=0.11)
    told = judge(seen(lambda flow, t: (flow is ALLOWED) == (t <= 1.0)), TIMES, MEANT, after)
    assert told.leak.any.low == told.outage.any.low == 0


def test_flow_seconds_are_summed_and_any_is_not() -> None:
    other = Flow("b", "p", "u", "c", "q", "tcp", 80, 4)
    meant = Meant({ALLOWED: True, DENIED: False, other: False}, {ALLOWED: True, DENIED: False, other: False})
    beats = seen(lambda flow, t: flow is ALLOWED or t > 1.0)
    beats += [Beat(b.tick, other, b.start, b.outcome, 0, b.arrived, None) for b in beats if b.flow is DENIED]
    found = judge(beats, TIMES, meant, meant)
    assert found.leak.flow_seconds.seconds == pytest.approx(2 * found.leak.any.seconds)
    assert found.leak.hit == found.leak.flows == 2


def test_the_table_shows_every_row_whole_in_a_hundred_columns() -> None:
    long = Exposure(15.27, 15.30, 15.32)
    side = Side(12, 12, long, long, {})
    both = Judged(side, side, side, 10.0, 12.27, 0.05, "opens and closes")
    rows = (Row("agent-ebpf", "fails closed", "kill", both), Row("virtual-switch-nft", "as it comes", "kill", both),
            Row("mine", "as it comes", "kill", None, "its plan cannot"),
            Row("late", "as it comes", "kill", replace(both, invalid="x got through"), "x got through"))
    console = Console(width=100, highlight=False, record=True, file=StringIO())
    show(Report("s", 1, Design(), (("f", True), ("g", False)), rows, {"other": "needs BPF"}), console)
    text = console.export_text()
    assert "…" not in text
    for shown in ("agent-ebpf, closed", "15.30 [15.27–15.32] 12/12", "both", "n/a", "invalid",
                  "mine, kill: its plan cannot", "other: unsupported: needs BPF", "resolution: 25 ms"):
        assert shown in text
