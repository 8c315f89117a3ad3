"""What a continuous probe saw, one flow at one tick, and the same by flow and tick. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from errno import ESRCH, ETIME

from bench.analysis.exposure import Sample
from lab.model import Flow, Outcome

TIMEOUT_S = 0.6  # below the first retransmission of a SYN (1 s): one try is one packet that asks
RATE = 40.0  # ticks a second


@dataclass(frozen=True, slots=True)
class Beat:
    """What came of one flow at one tick. Times of CLOCK_MONOTONIC; `start` is the service's own."""

    tick: int
    flow: Flow
    start: float
    outcome: Outcome
    errno: int
    arrived: bool
    took_us: float | None

    @property
    def known(self) -> bool:
        """Whether it says anything: a service that is gone or stuck has tried nothing."""
        return not (self.outcome is Outcome.BROKEN and self.errno in (ESRCH, ETIME))

    @property
    def got_through(self) -> bool:
        """The target says that it came, or its answer did."""
        return self.arrived or self.outcome is Outcome.OPEN


def columns(beats: Sequence[Beat], flows: Sequence[Flow], *, passed: bool) -> list[list[Sample | None]]:
    """By flow and tick, whether it got through (`passed`), or failed to open (else); None where nothing is known."""
    by = {(beat.tick, beat.flow): beat for beat in beats if beat.known}
    ticks = sorted({beat.tick for beat in beats})
    found = []
    for flow in flows:
        column: list[Sample | None] = []
        for tick in ticks:
            beat = by.get((tick, flow))
            so = beat is not None and (beat.got_through if passed else beat.outcome is not Outcome.OPEN)
            column.append(Sample(beat.start, so) if beat else None)
        found.append(column)
    return found
