"""What a technique is: its place in MITRE ATT&CK, what it takes for granted and does, what proves that it worked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bench.attacks.ground import Ground

Ending = Literal["succeeded", "stopped", "not tried"]


class DeniedError(Exception):
    """The attacker's own host did not let it: the message says what."""


class NotHereError(Exception):
    """The scenario or the machine lacks what a technique needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Came:
    """How it ended, in a word and in words. `succeeded` only on proof from the other side."""

    ending: Ending
    detail: str


@dataclass(frozen=True, slots=True)
class Technique:
    """One technique. `unstoppable`: why no way of segmenting can stop it, where none can; else empty.

    `act` may raise NotHereError. It gets the ground and what it learnt there, never the policy nor who enforces it.
    """

    name: str
    mitre: str  # the id of the technique at attack.mitre.org, or of the nearest one
    title: str
    precondition: str
    proof: str
    act: Callable[[Ground], Came]
    unstoppable: str = ""


def came(worked: bool, detail: str) -> Came:
    return Came("succeeded" if worked else "stopped", detail)
