"""A flow that an arm says it lets through and that failed is tried again: with few others under way, then in a crowd.

The matrix tries thousands of flows at a time. A datapath that cannot bear that drops some, which says what it bears,
not what it forbids. So that nothing else passes for load, what failed has to open each time that it is tried alone,
and so often that loss at the rate of the first look would have shown (with none of n lost, the rate is below 3/n, 95
%); and flows have to fail again when all are tried at once. Where hardly any failed alone, those that did are
defects, and how many opened is told. Where many did, the first look stands as it was. What opened alone and does not
fail among as many again has failed once and never more: nothing can be said of it, unless it is a handful (a busy
machine).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bench.analysis.matrices import never_made
from bench.instruments import probe as prober
from bench.instruments.probe import Probed
from lab.backends.base import Services
from lab.model import TRIED_AGAIN, Enforcer, Flow, Native, Observation, Outcome, Topology
from lab.policy_sets import Oracle

AT_ONCE = 32  # under way at a time
CROWD = 10 * AT_ONCE  # a matrix of fewer is no load
PORTION = 256  # tried before it is asked whether any of them opened: where none did it was no matter of load
MOST_TRIES = 100_000
HANDFUL = 3
_NONE_OF = 3  # over n: what the rate is below where none of n was seen (rule of three)
HARDLY = 0.1  # of the share that failed in the first look


@dataclass(frozen=True, slots=True)
class Suspected:
    """What failed although the arm says that it lets it through, of all `let` through; `crowd` were tried at once."""

    flows: tuple[Flow, ...]
    let: tuple[Flow, ...]
    crowd: int

    @property
    def share(self) -> float:
        return len(self.flows) / len(self.let) if self.let else 0.0

    @property
    def tries(self) -> int:
        """How many attempts tell load from loss; 0 where no load could have been, or loss so rare would not show."""
        if not self.flows or self.crowd < CROWD or self.share * MOST_TRIES < _NONE_OF:
            return 0
        return min(max(len(self.flows), math.ceil(_NONE_OF / self.share)), MOST_TRIES)

    @property
    def bearable(self) -> float:
        """More failures alone than this are no matter of load."""
        return HARDLY * self.share * self.tries


@dataclass(frozen=True, slots=True)
class Looked:
    """What is held of each flow: `strained` opened alone each time, `unsettled` failed once and nothing tells why."""

    observations: tuple[Observation, ...]
    strained: frozenset[Flow] = frozenset()
    unsettled: frozenset[Flow] = frozenset()


def expected(enforcer: Enforcer, native: Native, flows: Sequence[Flow], topology: Topology) -> list[bool]:
    """Whether each flow gets through where the arm does as it says."""
    verdicts = Oracle(native.effective, topology).verdicts(flows)
    return [verdict.allow or not enforcer.covers(flow, topology)
            for flow, verdict in zip(flows, verdicts, strict=True)]


def suspects(enforcer: Enforcer, native: Native, seen: Probed, topology: Topology) -> Suspected:
    """What to try again."""
    flows = [one.flow for one in seen.observations]
    lets = expected(enforcer, native, flows, topology)
    let = [one for one, allowed in zip(seen.observations, lets, strict=True) if allowed and not never_made(one)]
    return Suspected(tuple(one.flow for one in let if one.outcome is not Outcome.OPEN),
                     tuple(one.flow for one in let), len(flows))


def portions(services: Services, suspected: Suspected, topology: Topology) -> Iterator[Probed]:
    """Try them again and again, a portion after the other, until it is enough: by number, or since too many fail."""
    failed = 0
    for at in range(0, suspected.tries, PORTION):
        size = min(PORTION, suspected.tries - at)
        some = [suspected.flows[number % len(suspected.flows)] for number in range(at, at + size)]
        got = prober.probe(services, some, topology, kind=TRIED_AGAIN, window=AT_ONCE)
        yield got
        lost = len(_failed(got.observations))
        failed += lost
        if failed > suspected.bearable or lost == size:
            return


def is_load(suspected: Suspected, alone: Sequence[Probed]) -> bool:
    """Whether hardly any failed when tried alone, often enough."""
    tried = [one for part in alone for one in part.observations]
    return 0 < suspected.tries <= len(tried) and len(_failed(tried)) <= suspected.bearable


def joined(first: Probed, suspected: Suspected, alone: Sequence[Probed], among: Probed | None) -> Looked:
    """What is to be held of each flow. `among`: all that it lets through tried at once again, if anybody asked."""
    tried = [one for part in alone for one in part.observations if not never_made(one)]
    arrived = {one.flow for one in tried if one.arrived}
    held = tuple(replace(one, arrived=True) if one.flow in arrived else one for one in first.observations)
    if not is_load(suspected, alone):
        return Looked(held)
    opened = {one.flow: one for one in tried}
    for one in _failed(tried):  # one failure alone is a failure
        opened.pop(one.flow, None)
    if len(opened) > HANDFUL and (among is None or len(_failed(among.observations)) < HARDLY * len(opened)):
        return Looked(tuple(one for one in held if one.flow not in opened), unsettled=frozenset(opened))
    return Looked(tuple(opened.get(one.flow, one) for one in held), strained=frozenset(opened))


def asks_for_a_crowd(suspected: Suspected, alone: Sequence[Probed]) -> bool:
    """Whether it takes a second look among thousands to say that it was the load."""
    return len(suspected.flows) > HANDFUL and is_load(suspected, alone)


def _failed(observations: Sequence[Observation]) -> list[Observation]:
    return [one for one in observations if one.outcome is not Outcome.OPEN and not never_made(one)]
