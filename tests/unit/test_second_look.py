"""What fails only while thousands are tried at once is what an arm bears; what fails alone too is a defect."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bench import second_look
from bench.instruments import probe as prober
from bench.selection import select
from lab.hosts.attempts import Attempt, Attempted
from lab.model import Outcome, Policy
from lab.scenario import load
from tests.e2e.isolated import ROOT

SCENARIO = load(ROOT / "scenarios/same-segment.yaml")


class Datapath:
    """Answers no more than so many at a time, never what it forbids, and loses one of so many at random."""

    def __init__(self, bears: int = 10**6, forbids: Sequence[str] = (), loses: float = 0.0) -> None:
        self.bears, self.forbids, self.loses = bears, forbids, loses
        self.asked, self._random = 0, random.Random(1)

    def probe(self, attempts: Sequence[Attempt], timeout_s: float, window: int = 0) -> list[Attempted]:
        self.asked += len(attempts)
        return [self._answer(attempt, at % window < self.bears) for at, attempt in enumerate(attempts)]

    def _answer(self, attempt: Attempt, in_time: bool) -> Attempted:
        passes = in_time and attempt.actor.host not in self.forbids and self._random.random() >= self.loses
        outcome = Outcome.OPEN if passes else Outcome.TIMED_OUT
        return Attempted(attempt, outcome, 0, passes, None, 1.0, None, 10.0, 0, 40000)


def look(datapath: Datapath, effective: Policy = SCENARIO.policy) -> tuple[Any, int, second_look.Suspected]:
    """Everything at once, then alone what failed although `effective` lets it through; whom the arm covers: all."""
    topology, native = SCENARIO.topology, SimpleNamespace(effective=effective)
    enforcer = SimpleNamespace(covers=lambda flow, topology: True)
    flows = select(SCENARIO).flows
    first = prober.probe(datapath, flows, topology)  # type: ignore[arg-type]
    wanted = second_look.suspects(enforcer, native, first, topology)  # type: ignore[arg-type]
    seen, strained = second_look.joined(
        first, wanted, list(second_look.portions(datapath, wanted, topology)))  # type: ignore[arg-type]
    return seen, strained, wanted


def failed(seen: Any) -> int:
    return sum(one.outcome is not Outcome.OPEN for one in seen.observations)


OPEN_TO_ALL = Policy("allow", ())


def test_what_a_datapath_cannot_bear_opens_alone_and_is_counted() -> None:
    datapath = Datapath(bears=100)
    seen, strained, wanted = look(datapath, OPEN_TO_ALL)
    assert strained == len(wanted.flows) == len(seen.observations) - 100
    assert failed(seen) == 0
    assert len(seen.truths) == len(seen.observations) + wanted.tries == datapath.asked, "every attempt was made"


@pytest.mark.parametrize("share", [0.3, 0.05, 0.01])
def test_what_is_lost_at_random_is_not_taken_for_load(share: float) -> None:
    """It is lost alone as well: every flow that failed stays failed, however few they were."""
    seen, strained, wanted = look(Datapath(loses=share), OPEN_TO_ALL)
    assert strained == 0 and failed(seen) == len(wanted.flows) > 0
    assert wanted.tries >= 3 / wanted.share


def test_a_flow_that_fails_alone_too_is_a_defect_among_what_was_load() -> None:
    """One host of many is shut; the rest was dropped for load."""
    shut = min(SCENARIO.topology.hosts)
    seen, strained, wanted = look(Datapath(bears=10, forbids=[shut]), OPEN_TO_ALL)
    flows = [one.flow for one in seen.observations if one.outcome is not Outcome.OPEN]
    assert strained in (0, len(wanted.flows) - len(flows))
    assert {flow for flow in wanted.flows if flow.source == shut} <= set(flows)


def test_what_fails_alone_too_stays_failed_and_is_not_asked_for_ever() -> None:
    datapath = Datapath(forbids=sorted(SCENARIO.topology.hosts))
    seen, strained, wanted = look(datapath, OPEN_TO_ALL)
    assert strained == 0 and len(wanted.flows) == len(seen.observations) == failed(seen) > second_look.PORTION
    assert datapath.asked == len(wanted.flows) + second_look.PORTION, "one portion in which nothing opens says enough"


def test_what_the_arm_forbids_is_not_asked_again() -> None:
    _seen, _strained, wanted = look(Datapath(forbids=sorted(SCENARIO.topology.hosts)))
    allowed = [verdict.allow for verdict in second_look.Oracle(SCENARIO.policy, SCENARIO.topology).verdicts(
        select(SCENARIO).flows)]
    assert len(wanted.flows) == wanted.of == sum(allowed) < len(allowed)
