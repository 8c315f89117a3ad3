"""The phases of a load window (RFC 9411), and when each began. Only sustain makes figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RAMP_FROM = 0.1  # of the rate: where the ramp begins and the ramp-down ends
ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True)
class Phases:
    """How long each phase lasts, in seconds.

    `init_s`: clients are ready and commanded, nothing is sent. `ramp_s`, `down_s`: the rate goes linearly from and to
    `from_share` of the full rate; 1 means that both are as fast as sustain.
    """

    init_s: float = 0.1
    ramp_s: float = 0.4
    sustain_s: float = 1.0
    down_s: float = 0.1
    from_share: float = RAMP_FROM

    def __post_init__(self) -> None:
        if min(self.init_s, self.ramp_s, self.down_s) < 0 or self.sustain_s <= 0 or not 0 < self.from_share <= 1:
            raise ValueError(f"{self}: write phases of 0 s or longer, a sustain above 0 s, a share above 0 and up to 1")

    @property
    def total_s(self) -> float:
        return self.init_s + self.ramp_s + self.sustain_s + self.down_s

    def command(self) -> dict[str, float]:
        """As the worker wants them."""
        return {"ramp": self.ramp_s, "sustain": self.sustain_s, "down": self.down_s, "from": self.from_share}


@dataclass(frozen=True, slots=True)
class PhaseTimes:
    """When each phase began, CLOCK_MONOTONIC in seconds; `end` is when the last visit under way had ended."""

    init: float
    ramp: float
    sustain: float
    down: float
    end: float

    def within_sustain(self, due: float) -> bool:
        """Whether a visit due then makes figures; the first is due at the very begin, give or take a rounding."""
        return self.sustain - ROUNDING_S <= due < self.down - ROUNDING_S


def phase_times(commanded: float, stamps: Mapping[str, float]) -> PhaseTimes:
    """The times of one client, from when it was commanded and the stamps of its worker."""
    return PhaseTimes(commanded, stamps["ramp"], stamps["sustain"], stamps["down"], stamps["end"])
