"""A flow that an arm says it lets through and that failed is tried again, with few others under way.

The matrix tries thousands of flows at a time. A datapath that cannot bear that drops some, and that says what it bears,
not what it forbids. One that loses packets loses them alone as well: what failed is tried so often that loss at the
rate of the first look would show itself (with none of n lost, the rate is below 3/n, 95 %). Only where alone hardly any
fails was it the load; then a flow that failed alone too is a defect, and how many opened is told. Else the first look
stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.instruments import probe as prober
from bench.instruments.probe import Probed
from lab.backends.base import Services
from lab.model import Enforcer, Flow, Native, Outcome, Topology
from lab.policy_sets import Oracle

AT_ONCE = 32  # under way at a time
PORTION = 256  # tried before it is asked whether any of them opened: where none did it was no matter of load
MOST_TRIES = 20_000
_NONE_OF = 3  # over n: what the rate is below where none of n was seen (rule of three)
HARDLY = 0.1  # of the share that failed in the first look


@dataclass(frozen=True, slots=True)
class Suspected:
    """What failed although the arm says that it lets it through, of so many flows that it lets through."""

    flows: tuple[Flow, ...]
    of: int

    @property
    def share(self) -> float:
        return len(self.flows) / self.of if self.of else 0.0

    @property
    def tries(self) -> int:
        """How many attempts tell load from loss."""
        return min(max(len(self.flows), math.ceil(_NONE_OF / self.share)), MOST_TRIES) if self.flows else 0


def expected(enforcer: Enforcer, native: Native, flows: Sequence[Flow], topology: Topology) -> list[bool]:
    """Whether each flow gets through where the arm does as it says."""
    verdicts = Oracle(native.effective, topology).verdicts(flows)
    return [verdict.allow or not enforcer.covers(flow, topology)
            for flow, verdict in zip(flows, verdicts, strict=True)]


def suspects(enforcer: Enforcer, native: Native, seen: Probed, topology: Topology) -> Suspected:
    """What to try again."""
    flows = [one.flow for one in seen.observations]
    lets = expected(enforcer, native, flows, topology)
    failed = tuple(one.flow for one, allowed in zip(seen.observations, lets, strict=True)
                   if allowed and one.outcome is not Outcome.OPEN)
    return Suspected(failed, sum(lets))


def portions(services: Services, suspected: Suspected, topology: Topology) -> Iterator[Probed]:
    """Try them again and again, a portion after the other, until it is enough, or one in which nothing opens."""
    for at in range(0, suspected.tries, PORTION):
        size = min(PORTION, suspected.tries - at)
        some = [suspected.flows[number % len(suspected.flows)] for number in range(at, at + size)]
        got = prober.probe(services, some, topology, window=AT_ONCE)
        yield got
        if all(one.outcome is not Outcome.OPEN for one in got.observations):
            return


def joined(first: Probed, suspected: Suspected, again: Sequence[Probed]) -> tuple[Probed, int]:
    """What is to be held of each flow, with every attempt's truth; and how many flows opened only alone."""
    truths = (*first.truths, *(one for part in again for one in part.truths))
    tried = [one for part in again for one in part.observations]
    failed = [one for one in tried if one.outcome is not Outcome.OPEN]
    if len(failed) > HARDLY * suspected.share * len(tried):
        return Probed(first.observations, truths), 0
    later = {one.flow: one for one in (*tried, *failed)}  # one failure alone is a failure
    observations = tuple(later.get(one.flow, one) for one in first.observations)
    return Probed(observations, truths), sum(one.outcome is Outcome.OPEN for one in later.values())
