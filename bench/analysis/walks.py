"""Many seeded campaigns over a matrix of what was tried: how many attempts until the goal. Pure.

The attacker makes one attempt at a time, at random among what it has not tried: from each process it holds and from
a binary dropped beside it, to every TCP port that is offered on a host it does not hold. It knows addresses and ports,
not what is open nor what is vulnerable. An open port costs a second attempt, the exploit. What comes of each attempt
is what came of the real one in the matrix; it stops at the goal, or when nothing is left to try. How long it takes is
not said: a matrix is probed thousands at a time, and its durations are those of a queue.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from bench.analysis.paths import Place
from lab.model import STRANGER, Flow, Topology
from lab.policy import WRONG_PORTS, owner_user

CAMPAIGNS = 200


@dataclass(frozen=True, slots=True)
class Walk:
    """One campaign: whether it got to the goal, and after how many attempts."""

    reached: bool
    attempts: int


class Walks:
    """Campaigns from one foothold to one of `goals` (hosts), over IPv4."""

    def __init__(self, tried: Mapping[Flow, bool], topology: Topology, takeable: Collection[Place]) -> None:
        self._takeable, self._topology = frozenset(takeable), topology
        self._options: dict[Place, list[tuple[Flow, bool]]] = defaultdict(list)
        for flow in sorted(tried):
            if self._offered(flow):
                self._options[flow.source, flow.process].append((flow, tried[flow]))

    def _offered(self, flow: Flow) -> bool:
        return (flow.proto == "tcp" and flow.family == 4 and flow.port not in WRONG_PORTS
                and flow.source != flow.target and flow.user == owner_user(flow.process, self._topology))

    def run(self, foothold: Place, goals: Collection[str], seeds: Sequence[int]) -> tuple[Walk, ...]:
        """One campaign a seed, in their order."""
        return tuple(self._walk(foothold, frozenset(goals), random.Random(seed)) for seed in seeds)

    def _walk(self, foothold: Place, goals: frozenset[str], rng: random.Random) -> Walk:
        held, attempts = {foothold[0]}, 0
        left = self._from(foothold)
        while left:
            at = rng.randrange(len(left))
            left[at], left[-1] = left[-1], left[at]
            flow, was_open = left.pop()
            if flow.target in held:
                continue
            attempts += 2 if was_open else 1
            if was_open and (flow.target, flow.target_process) in self._takeable:
                if flow.target in goals:
                    return Walk(True, attempts)
                held.add(flow.target)
                left += self._from((flow.target, flow.target_process))
        return Walk(False, attempts)

    def _from(self, place: Place) -> list[tuple[Flow, bool]]:
        return [*self._options.get(place, ()), *self._options.get((place[0], STRANGER), ())]
