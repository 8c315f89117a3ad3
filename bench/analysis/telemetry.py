"""How well a dialect told what was really done: recall by kind of flow, fields, delay. Pure.

Kinds are apart: a flow within a host, one between hosts that was denied, a short one and a long one that passed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Protocol

from bench.analysis.stats import percentile
from bench.analysis.visibility import FIELDS, Match, Recall, match, passed, visibility
from lab.model import Sighting, Topology, Truth

KINDS = ("short", "long", "denied", "same host")
SHORT_S = 1.0
_NEAR_S = 1.0  # of an ICMP record without identifier: how far a truth may lie outside of it


class Told(Protocol):
    """A sighting, from when on it could be read, and the last packet it is about (CLOCK_MONOTONIC)."""

    @property
    def sighting(self) -> Sighting: ...
    @property
    def at(self) -> float: ...
    @property
    def until(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Delay:
    """Seconds from a flow's beginning until the first record of it could be read, over `n` flows that were seen."""

    p50_s: float | None
    p95_s: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Quality:
    """Recall in all and by kind; of all flows the share with each field right; delay; what it was blind to, in words.

    `unexplained`: sightings that belong to nothing that was done.
    """

    recall: Recall
    kinds: Mapping[str, Recall]
    fields: Mapping[str, Recall]
    delay: Delay
    blind_spots: tuple[str, ...]
    unexplained: int


def kind(truth: Truth) -> str:
    """Which of KINDS a flow is."""
    if truth.source == truth.target:
        return "same host"
    if not passed(truth):
        return "denied"
    return "short" if truth.end - truth.start < SHORT_S else "long"


def quality(truths: Sequence[Truth], told: Iterable[Told], topology: Topology) -> Quality:
    """What these records are worth against what was done."""
    usable = [t for t in truths if t.sport or t.proto == "icmp"]
    spread = list(_spread(told, usable))
    at = {id(sighting): when for sighting, when in spread}
    sightings = [sighting for sighting, _when in spread]  # keeps them, and so their ids, alive
    found, unexplained = match(usable, sightings)
    seen = visibility(usable, sightings, topology)
    by_kind: dict[str, list[Match]] = {name: [] for name in KINDS}
    for one in found:
        by_kind[kind(one.truth)].append(one)
    delays = [max(0.0, min(at[id(s)] for s in one.sightings) - one.truth.start) for one in found if one.sightings]
    return Quality(
        _recall(found), {name: _recall(ones) for name, ones in by_kind.items()},
        {name: seen.fields[name] for name in FIELDS[1:]},
        Delay(percentile(delays, 50), percentile(delays, 95), len(delays)), seen.blind_spots, unexplained)


def _recall(found: Sequence[Match]) -> Recall:
    seen = sum(bool(one.sightings) for one in found)
    return Recall(seen / len(found) if found else None, len(found))


def _spread(told: Iterable[Told], truths: Sequence[Truth]) -> Iterable[tuple[Sighting, float]]:
    """Sightings with when they could be read. An ICMP record without identifier is of every echo of these two hosts
    in its time; what it counts is then nobody's own."""
    pings: dict[tuple[str, str], list[Truth]] = defaultdict(list)
    for truth in truths:
        if truth.proto == "icmp":
            pings[_ends(truth.source_address, truth.target_address)].append(truth)
    for one in told:
        sighting = one.sighting
        if sighting.proto != "icmp" or sighting.sport:
            yield sighting, one.at
            continue
        within = [t for t in pings.get(_ends(sighting.source, sighting.target), ())
                  if sighting.time - _NEAR_S <= t.end and t.start <= one.until + _NEAR_S]
        if not within:
            yield sighting, one.at
        for truth in within:
            counts = sighting if len(within) == 1 else replace(sighting, bytes=None, packets=None)
            yield replace(counts, sport=truth.sport, time=max(sighting.time, truth.start)), one.at


def _ends(source: str, target: str) -> tuple[str, str]:
    return ip_address(source).compressed, ip_address(target).compressed
