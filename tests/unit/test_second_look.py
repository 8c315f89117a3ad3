"""What fails only while thousands are tried at once is what an arm bears; what fails alone too is a defect."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bench import second_look
from bench.instruments import probe as prober
from bench.selection import select
from lab.hosts.attempts import Attempt, Attempted
from lab.model import Flow, Observation, Outcome, Policy, Scenario
from lab.scenario import load
from tests.e2e.isolated import ROOT

SCENARIO = load(ROOT / "scenarios/same-segment.yaml")
OPEN_TO_ALL = Policy("allow", ())


class Datapath:
    """Answers no more than so many at a time, never what it forbids, and loses one of so many at random.

    `slow`: whose flows fail the first time that they are tried. `stalls`: so many fail of the first crowd, and no more.
    """

    def __init__(self, bears: int = 10**6, forbids: Sequence[str] = (), loses: float = 0.0, slow: Sequence[str] = (),
                 stalls: int = 0) -> None:
        self.bears, self.forbids, self.loses, self.slow, self.stalls = bears, forbids, loses, slow, stalls
        self.asked, self._random, self._tried = 0, random.Random(1), set[Attempt]()

    def probe(self, attempts: Sequence[Attempt], timeout_s: float, window: int = 0) -> list[Attempted]:
        self.asked += len(attempts)
        return [self._answer(attempt, at % window < self.bears) for at, attempt in enumerate(attempts)]

    def _answer(self, attempt: Attempt, in_time: bool) -> Attempted:
        first = attempt not in self._tried
        self._tried.add(attempt)
        passes = in_time and attempt.actor.host not in self.forbids and self._random.random() >= self.loses
        if (first and attempt.actor.host in self.slow) or len(self._tried) <= self.stalls:
            passes = False
        outcome = Outcome.OPEN if passes else Outcome.TIMED_OUT
        return Attempted(attempt, outcome, 0, passes, None, 1.0, None, 10.0, 0, 40000)


def look(datapath: Any, effective: Policy = OPEN_TO_ALL, scenario: Scenario = SCENARIO) -> tuple[
        second_look.Looked, second_look.Suspected]:
    """Everything at once, then again what failed although `effective` lets it through; whom the arm covers: all."""
    topology, native = scenario.topology, SimpleNamespace(effective=effective)
    enforcer = SimpleNamespace(covers=lambda flow, topology: True)
    first = prober.probe(datapath, select(scenario).flows, topology)
    wanted = second_look.suspects(enforcer, native, first, topology)  # type: ignore[arg-type]
    alone = list(second_look.portions(datapath, wanted, topology))
    among = prober.probe(datapath, wanted.let, topology) if second_look.asks_for_a_crowd(wanted, alone) else None
    return second_look.joined(first, wanted, alone, among), wanted


def failed(seen: second_look.Looked) -> set[Flow]:
    return {one.flow for one in seen.observations if one.outcome is not Outcome.OPEN}


def test_what_a_datapath_cannot_bear_opens_alone_and_is_counted() -> None:
    seen, wanted = look(Datapath(bears=100))
    assert seen.strained == set(wanted.flows) and len(wanted.flows) == len(seen.observations) - 100
    assert not failed(seen) and not seen.unsettled


@pytest.mark.parametrize("share", [0.3, 0.05, 0.01])
def test_what_is_lost_at_random_is_not_taken_for_load(share: float) -> None:
    """It is lost alone as well: every flow that failed stays failed, however few they were."""
    seen, wanted = look(Datapath(loses=share))
    assert not seen.strained and failed(seen) == set(wanted.flows) != set()
    assert wanted.tries >= 3 / wanted.share


def test_a_flow_that_fails_alone_too_is_a_defect_among_what_was_load() -> None:
    """One port of many is shut; far more was dropped for load, which is told apart from it."""
    shut = next(one for one in select(SCENARIO).flows[200:] if one.proto == "tcp")

    tried = prober.attempt(shut, SCENARIO.topology)

    class Shut(Datapath):
        def _answer(self, attempt: Attempt, in_time: bool) -> Attempted:
            got = super()._answer(attempt, in_time)
            return got._replace(outcome=Outcome.TIMED_OUT) if attempt == tried else got

    seen, wanted = look(Shut(bears=100))
    assert failed(seen) == {shut} and seen.strained == set(wanted.flows) - {shut}


def test_what_fails_when_first_tried_is_no_load() -> None:
    """Each flow of one host fails once: it opens alone, and among as many, and nothing can be said of it."""
    slow = min(SCENARIO.topology.hosts)
    seen, wanted = look(Datapath(slow=[slow]))
    assert seen.unsettled == set(wanted.flows) and not seen.strained and not failed(seen)
    assert {one.source for one in wanted.flows} == {slow} and len(wanted.flows) > second_look.HANDFUL
    assert not seen.unsettled & {one.flow for one in seen.observations}, "so it is inconclusive"


def test_a_handful_is_what_a_busy_machine_accounts_for() -> None:
    seen, wanted = look(Datapath(stalls=second_look.HANDFUL))
    assert seen.strained == set(wanted.flows) and len(wanted.flows) == second_look.HANDFUL
    seen, wanted = look(Datapath(stalls=second_look.HANDFUL + 1))
    assert seen.unsettled == set(wanted.flows)


def test_what_fails_alone_too_stays_failed_and_is_not_asked_for_ever() -> None:
    datapath = Datapath(forbids=sorted(SCENARIO.topology.hosts))
    seen, wanted = look(datapath)
    assert not seen.strained and len(wanted.flows) == len(seen.observations) == len(failed(seen)) > second_look.PORTION
    assert datapath.asked == len(wanted.flows) + second_look.PORTION, "one portion in which nothing opens says enough"
    partly = Datapath(loses=0.01)
    seen, wanted = look(partly)
    assert partly.asked == len(seen.observations) + second_look.PORTION < len(seen.observations) + wanted.tries, \
        "nor once too many have failed"


def test_what_the_arm_forbids_is_not_asked_again() -> None:
    _seen, wanted = look(Datapath(forbids=sorted(SCENARIO.topology.hosts)), SCENARIO.policy)
    allowed = [verdict.allow for verdict in second_look.Oracle(SCENARIO.policy, SCENARIO.topology).verdicts(
        select(SCENARIO).flows)]
    assert len(wanted.flows) == len(wanted.let) == sum(allowed) < len(allowed)


def suspected(of: int, flows: int = 1, crowd: int = 10**6) -> second_look.Suspected:
    return second_look.Suspected(tuple(range(flows)), tuple(range(of)), crowd)  # type: ignore[arg-type]


def test_few_flows_at_once_are_no_load_and_loss_too_rare_to_show_is_not_looked_for() -> None:
    assert suspected(100, crowd=second_look.CROWD).tries == 300
    assert suspected(100, crowd=second_look.CROWD - 1).tries == 0
    assert suspected(second_look.MOST_TRIES // 3).tries == second_look.MOST_TRIES // 3 * 3
    assert suspected(second_look.MOST_TRIES).tries == 0
    assert suspected(100, flows=0).tries == 0


def seen_as(outcome: Outcome, *, arrived: bool = False, code: int = 0) -> Observation:
    return Observation(select(SCENARIO).flows[0], outcome, code, arrived, 0.0, None, None, 0)


def test_a_try_proves_arrival_and_one_that_was_never_made_proves_nothing() -> None:
    first = prober.Probed((seen_as(Outcome.TIMED_OUT, arrived=True),), ())
    wanted = second_look.Suspected((first.observations[0].flow,), (first.observations[0].flow,), 10**6)
    again = [prober.Probed((seen_as(Outcome.TIMED_OUT),) * wanted.tries, ())]
    assert second_look.joined(first, wanted, again, None).observations[0].arrived, "it did the first time"
    late = prober.Probed((seen_as(Outcome.TIMED_OUT),), ())
    again = [prober.Probed((seen_as(Outcome.TIMED_OUT, arrived=True),) * wanted.tries, ())]
    assert second_look.joined(late, wanted, again, None).observations[0].arrived, "it did later"
    never = [prober.Probed((seen_as(Outcome.BROKEN, code=errno.EADDRNOTAVAIL),) * wanted.tries, ())]
    assert second_look.joined(late, wanted, never, None).observations == late.observations
