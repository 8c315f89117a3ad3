"""What a look at arms and machine found, as plain values: whoever reports them need know no enforcer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lab.conditions import Condition
from lab.features import Lack
from lab.model import Feature
from lab.packages import Found

Answer = Literal["yes", "no", "partly", "–"]  # –: there is nothing that the question could be about
PLACES: Mapping[str, tuple[str, str]] = {  # source and target in the canonical network (bench.catalogue)
    "same host": ("here", "here"), "same segment": ("here", "near"), "across segments": ("here", "far"),
    "to unmanaged": ("here", "bare"), "from unmanaged": ("bare", "here"), "between unmanaged": ("mute", "bare"),
}
CLASSES = (*PLACES, "icmp", "ipv6", "spoofed source", "process", "user")


@dataclass(frozen=True, slots=True)
class Installed:
    """One arm as its package announces it: the entry point's name and target, the package and its version."""

    name: str
    target: str
    package: str
    version: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One installed arm. `coverage` answers every one of CLASSES; where it is `broken`, why, and nothing else."""

    arm: Installed
    description: str = ""
    needs: tuple[Feature, ...] = ()
    coverage: Mapping[str, Answer] | None = None
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One installed arm and what keeps it from running here, one line each."""

    entry: Entry
    why_not: tuple[str, ...]
    remedies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Features:
    """What each feature lacks by name (None: it is here); `refused` is why no run can have its own namespaces."""

    lacks: Mapping[str, Lack | None] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Checkup:
    """All that `labctl doctor` looks at."""

    tools: tuple[Found, ...]
    missing: tuple[str, ...]
    features: Features
    conditions: tuple[Condition, ...]
    busiest: tuple[tuple[str, float], ...]
    arms: tuple[Arm, ...]

    @property
    def can_run(self) -> bool:
        """Whether a lab can be stood up here at all."""
        return not self.missing and self.features.refused is None
