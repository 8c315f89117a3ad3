"""A survey finds what every campaign together would, and says where the lab did not stand still meanwhile."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.analysis.paths import EVERYTHING, Positions, rules
from bench.campaigning import everything_vulnerable, footholds
from bench.instruments import attack
from bench.instruments.survey import Survey, survey
from bench.report import lateral
from bench.report.shared import Arm, Shared, show
from lab.backends.fake import FakeServices, Lies, up
from lab.hosts.attempts import Attempt, Attempted
from lab.model import STRANGER, Outcome
from lab.scenario import load

SCENARIO = everything_vulnerable(load(Path(__file__).parents[2] / "scenarios" / "three-tier.yaml"))
DEAD = Lies(dead=frozenset({("db", "store"), ("api-1", "api")}))


class Shifting:
    """The fake's services; from the `after`th probe of a flow on, it is closed."""

    def __init__(self, inner: FakeServices, after: int) -> None:
        self._inner, self._after, self._tried = inner, after, Counter[Attempt]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def probe(self, attempts: Sequence[Attempt], timeout_s: float = 1.0, window: int = 0) -> list[Attempted]:
        self._tried.update(attempts)
        return [got._replace(outcome=Outcome.TIMED_OUT) if self._tried[got.attempt] > self._after else got
                for got in self._inner.probe(attempts, timeout_s)]


def surveyed(lies: Lies | None = None, after: int = 9, batches: list[tuple[int, int]] | None = None) -> Survey:
    with up(SCENARIO.topology, {"": lies} if lies else {}) as testbed:
        return survey(Shifting(testbed.services, after), SCENARIO.topology, 3,
                      lambda done, of: (batches if batches is not None else []).append((done, of)))


@pytest.mark.parametrize("lies", [None, DEAD], ids=["all open", "two servers dead"])
def test_what_follows_from_it_is_what_campaigns_take(lies: Lies | None) -> None:
    """The same lab, attacked from every foothold: nobody gets further than the proven edges lead, nor less far."""
    topology = SCENARIO.topology
    assert SCENARIO.attack is not None
    with up(topology, {"": lies} if lies else {}) as testbed:
        shares = []
        for host, process in footholds(topology):
            start = replace(SCENARIO.attack, foothold_host=host, foothold_process=process)
            taken = attack.run(testbed.services, start, topology, 5).taken
            shares.append((len(taken) - 1) / (len(topology.hosts) - 1))
    spread = Positions(surveyed(lies).proven, topology, rules(topology, 1)[EVERYTHING]).spread()
    assert spread.mean == pytest.approx(sum(shares) / len(shares)) and spread.worst == pytest.approx(max(shares))
    assert 0 < spread.mean < 1


def test_every_position_acts_and_every_pair_is_proven_once() -> None:
    got, steps = surveyed(batches=(told := [])), SCENARIO.topology
    assert {(f.source, f.process) for f in got.proven} == {
        (host.name, name) for host in steps.hosts.values() for name in (*host.runs, STRANGER)}
    pairs = [(f.source, f.process, f.target, f.target_process) for f in got.proven]
    assert len(pairs) == len(set(pairs)) and got.opened == got.scanned == told[-1][0] == told[-1][1]
    assert got.differed == () and got.again > got.scanned


def test_a_lab_that_does_not_stand_still_is_told() -> None:
    got = surveyed(after=1)  # open when scanned, closed when tried again
    assert len(got.differed) == got.scanned and "open at first, otherwise later" in got.differed[0]
    arm = Arm(scanned=got.scanned, again=got.again, differ=len(got.differed), differed=got.differed[:20])
    found = Shared(scenario="x", arms={"none": arm, "agent-nft": Arm()})
    assert found.invalid == ("none",)
    screen = Console(width=200, file=io.StringIO())
    show(found, screen)
    assert f"none: INVALID: {got.scanned} of {got.again} attempts ended otherwise" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_its_table_has_every_rule() -> None:
    spread = lateral.spread(Positions(surveyed().proven, SCENARIO.topology, rules(SCENARIO.topology, 1)[
        EVERYTHING]).spread())
    screen = Console(width=200, file=io.StringIO())
    show(Shared(scenario="x", arms={"none": Arm(spread={EVERYTHING: spread})}), screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert f"{EVERYTHING}: mean" in text and f"{spread.worst * 100:.1f} %" in text
