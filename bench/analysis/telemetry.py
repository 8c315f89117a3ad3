"""How well a dialect told what was really done: recall by kind of flow, fields, delay. Pure.

Kinds are apart: a flow within a host, one between hosts that was denied, a short one and a long one that passed. A flow
of which a record was had is seen, though the record may name its ends the wrong way round: that is the field *began*.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Protocol

from bench.analysis.stats import percentile
from bench.analysis.visibility import FIELDS, Match, Recall, match, passed, sighting_key, truth_key, visibility
from lab.model import Sighting, Topology, Truth

KINDS = ("short", "long", "denied", "same host")
BEGAN = "began"
SHORT_S = 1.0
_NEAR_S = 1.0  # of an ICMP record without identifier: how far a truth may lie outside of it


class Told(Protocol):
    """A sighting, from when on it could be read, and the last packet it is about (CLOCK_MONOTONIC).

    `began`: whether it is told, not inferred, that the sighting's source began the flow.
    """

    @property
    def sighting(self) -> Sighting: ...
    @property
    def at(self) -> float: ...
    @property
    def until(self) -> float: ...
    @property
    def began(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Delay:
    """Seconds from a flow's beginning until the first record of it could be read, over `n` flows that were seen."""

    p50_s: float | None
    p95_s: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Quality:
    """Recall in all and by kind; of all flows the share with each field right; delay; what it was blind to, in words.

    Of `fields`, `began` is who began the flow.

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
    at = {id(sighting): when for sighting, when, _wrong in spread}
    wrong = {id(sighting) for sighting, _when, turned in spread if turned}
    sightings = [sighting for sighting, _when, _wrong in spread]  # keeps them, and so their ids, alive
    found, unexplained = match(usable, sightings)
    seen = visibility(usable, sightings, topology)
    by_kind: dict[str, list[Match]] = {name: [] for name in KINDS}
    for one in found:
        by_kind[kind(one.truth)].append(one)
    seen_rightly = sum(any(id(s) not in wrong for s in one.sightings) for one in found)
    recall = _recall(found)
    delays = [max(0.0, min(at[id(s)] for s in one.sightings) - one.truth.start) for one in found if one.sightings]
    return Quality(
        recall, {name: _recall(ones) for name, ones in by_kind.items()},
        {name: seen.fields[name] for name in FIELDS[1:]} | {BEGAN: _share(seen_rightly, len(found))},
        Delay(percentile(delays, 50), percentile(delays, 95), len(delays)),
        (*seen.blind_spots, *_turned_spots(seen_rightly, len(delays))), unexplained)


def _turned_spots(rightly: int, seen: int) -> Iterable[str]:
    if rightly < seen:
        yield f"did not rightly tell who began {seen - rightly} of {seen} flows that it saw"


def _recall(found: Sequence[Match]) -> Recall:
    return _share(sum(bool(one.sightings) for one in found), len(found))


def _share(part: int, whole: int) -> Recall:
    return Recall(part / whole if whole else None, whole)


def _spread(told: Iterable[Told], truths: Sequence[Truth]) -> Iterable[tuple[Sighting, float, bool]]:
    """Sightings as they can be matched, when they could be read, and whether they had the ends the wrong way round.

    One that does not know who began is turned round where that makes it one of a flow that was made.
    """
    made = {truth_key(truth) for truth in truths}
    pings: dict[tuple[str, str], list[Truth]] = defaultdict(list)
    for truth in truths:
        if truth.proto == "icmp":
            pings[_ends(truth.source_address, truth.target_address)].append(truth)
    for one in told:
        sighting = one.sighting
        if sighting.proto == "icmp" and not sighting.sport:
            yield from _of_echoes(one, pings)
        elif not one.began and sighting_key(sighting) not in made and sighting_key(_turned(sighting)) in made:
            yield _turned(sighting), one.at, True
        else:
            yield sighting, one.at, False


def _of_echoes(one: Told, pings: Mapping[tuple[str, str], Sequence[Truth]]) -> Iterable[tuple[Sighting, float, bool]]:
    """An ICMP record without identifier is of every echo of these two hosts in its time, of either's where it does not
    know who began; what it counts is then nobody's own."""
    sides = [(one.sighting, False)] + ([] if one.began else [(_turned(one.sighting), True)])
    within = [(sighting, truth, turned) for sighting, turned in sides
              for truth in pings.get(_ends(sighting.source, sighting.target), ())
              if sighting.time - _NEAR_S <= truth.end and truth.start <= one.until + _NEAR_S]
    if not within:
        yield one.sighting, one.at, False
    for sighting, truth, turned in within:
        counts = sighting if len(within) == 1 else replace(sighting, bytes=None, packets=None)
        yield replace(counts, sport=truth.sport, time=max(sighting.time, truth.start)), one.at, turned


def _turned(one: Sighting) -> Sighting:
    ports = (one.sport, one.dport) if one.proto == "icmp" else (one.dport, one.sport)
    return replace(one, source=one.target, sport=ports[0], target=one.source, dport=ports[1])


def _ends(source: str, target: str) -> tuple[str, str]:
    return ip_address(source).compressed, ip_address(target).compressed
