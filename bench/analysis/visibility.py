"""What the telemetry saw of what was really done: Truth against sightings, field by field. Pure.

A truth and a sighting are of one flow if protocol and 5-tuple agree and the sighting falls near the truth in time
(ports recur). For ICMP the source port is the echo identifier and the other port is 0. It does not matter which end
or which point in between saw it: a flow is seen if anyone saw it, a field is right if any sighting of it is right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lab.model import TRIED_AGAIN, Sighting, Topology, Truth

FIELDS = ("flow", "process", "user", "bytes", "verdict")
# Conntrack writes a flow's end up to two minutes late in its default set-up; arms that use it set timeouts of seconds.
SLACK_S = 30.0
CLOCK_S = 2e-6  # dialects tell whole microseconds
HEADER_BYTES = 120  # the most that headers add to one packet: IPv6 40 + TCP 60, Ethernet 14 + VLAN 4, rounded up
SEGMENT_BYTES = 1200  # payload per packet at the least on a path of MTU 1280 or more, when only bytes are known
HANDSHAKE_PACKETS = 16  # SYN, FIN, ACKs and a few retransmissions of them
_ICMP = frozenset({"icmp", "icmpv6", "icmp6", "ipv6-icmp", "1", "58"})

_OVERLAPPING = 16  # truths of one key that may be under way at once
_MISSING, _RIGHT, _INAPPLICABLE = 0, 1, 2
_CODE = {False: _MISSING, True: _RIGHT, None: _INAPPLICABLE}

Key = tuple[str, str, int, str, int]
Bools = NDArray[np.bool_]  # by truth
Codes = NDArray[np.int8]  # by truth: _MISSING, _RIGHT or _INAPPLICABLE


@dataclass(frozen=True, slots=True)
class Recall:
    """The share of `n` truths for which the field was right; None where the field applies to none of them."""

    recall: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Visibility:
    """Recall by field, in all and by class of flow; `wrong`: truths with the field reported, never rightly.

    `blind_spots` says it in words. `unmatchable` truths got no port at all and count nowhere. `unexplained` sightings
    belong to no truth (the lab's own control, or noise).
    """

    fields: Mapping[str, Recall]
    by_class: Mapping[str, Mapping[str, Recall]]
    wrong: Mapping[str, int]
    blind_spots: tuple[str, ...]
    unmatchable: int
    unexplained: int


@dataclass(frozen=True, slots=True)
class Match:
    """One truth and, by field, whether it was right (True), reported wrong or missed (False), not applicable (None)."""

    truth: Truth
    sightings: tuple[Sighting, ...]
    right: Mapping[str, bool | None]


def visibility(truths: Iterable[Truth], sightings: Iterable[Sighting], topology: Topology,
               slack_s: float = SLACK_S) -> Visibility:
    """Recall of every field over these truths. An arm without telemetry gives no sightings and gets 0, not None."""
    made = list(truths)
    usable = [t for t in made if t.sport or t.proto == "icmp"]
    matched, unexplained = match(usable, sightings, slack_s, _tenants(topology))
    found = [one for one in matched if one.truth.kind != TRIED_AGAIN]  # how often that was is the lab's own doing
    members: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(found):
        for name in classes(one.truth, topology):
            members[name].append(index)
    right = {field: np.array([_CODE[m.right[field]] for m in found], np.int8) for field in FIELDS}
    wrong = {field: _wrong(found, right[field], field) for field in FIELDS[1:]}
    masks = {name: _mask(members.get(name, ()), len(found)) for name in {*members, *_WORDS}}
    by_class = {name: {field: _recall(codes[masks[name]]) for field, codes in right.items()}
                for name in sorted(members)}
    return Visibility({field: _recall(codes) for field, codes in right.items()}, by_class,
                      {field: int(told.sum()) for field, told in wrong.items()},
                      _blind_spots(right, wrong, masks), len(made) - len(usable), unexplained)


def classes(truth: Truth, topology: Topology) -> tuple[str, ...]:
    """The classes a truth belongs to, one of each dimension: where it ran, protocol, whether it passed, its kind."""
    source, target = topology.hosts.get(truth.source), topology.hosts.get(truth.target)
    if truth.source == truth.target:
        place = "within one host"
    elif source is not None and target is not None and source.segment == target.segment:
        place = "within one segment"
    else:
        place = "across segments"
    return place, truth.proto, "passed" if passed(truth) else "denied", f"kind {truth.kind}"


def passed(truth: Truth) -> bool:
    """Whether the flow got through, in the sense of a leak: open, or it arrived."""
    return truth.arrived or truth.outcome == "OPEN"


# --- matching ---------------------------------------------------------------------------------


def _tenants(topology: Topology) -> Mapping[str, str]:
    return {name: topology.tenant(name) for name in topology.hosts} if any(topology.tenants) else {}


def match(truths: Sequence[Truth], sightings: Iterable[Sighting], slack_s: float = SLACK_S,
          tenants: Mapping[str, str] | None = None) -> tuple[list[Match], int]:
    """Each truth with its sightings, in the order of the truths; and how many sightings belong to none.

    `tenants`: of every host, where there are any: the same addresses are then another's at another point.

    A sighting goes to the truth of its key that is nearest in time, if that is within `slack_s` of its interval.
    """
    of = tenants or {}
    by_key: dict[tuple[str, *Key], list[int]] = defaultdict(list)
    for index in sorted(range(len(truths)), key=lambda i: truths[i].start):
        by_key[(of.get(truths[index].source, ""), *truth_key(truths[index]))].append(index)
    starts = {key: [truths[i].start for i in indexes] for key, indexes in by_key.items() if len(indexes) > 1}
    assigned: dict[int, list[Sighting]] = defaultdict(list)
    unexplained = 0
    for sighting in sightings:
        key = (of.get(sighting.point, ""), *sighting_key(sighting))
        at = _nearest(sighting, by_key.get(key, ()), starts.get(key), truths, slack_s, assigned)
        if at is None:
            unexplained += 1
        else:
            assigned[at].append(sighting)
    return [_judge(truth, assigned.get(i, ())) for i, truth in enumerate(truths)], unexplained


def _nearest(sighting: Sighting, indexes: Sequence[int], starts: Sequence[float] | None, truths: Sequence[Truth],
             slack_s: float, assigned: Mapping[int, Sequence[Sighting]]) -> int | None:
    """Which truth (index) of one key is nearest; `starts`, in order, where there are several to search.

    Echoes that were refused before they had an identifier share a key, and may overlap: nobody can tell by time which
    of those that are as near it was. It is then of one whose process and user it names; else of one that fewer
    sightings have gone to; else of the one that ended first, since the other may have one yet to come.
    """
    if starts is not None:
        at = bisect_right(starts, sighting.time + CLOCK_S)
        indexes = indexes[max(0, at - _OVERLAPPING): at + 1]
    best = indexes[0] if len(indexes) == 1 else min(
        reversed(indexes), key=lambda i: _apart(sighting, truths[i], len(assigned.get(i, ()))), default=None)
    return best if best is not None and _distance(sighting.time, truths[best]) <= slack_s else None


def _apart(sighting: Sighting, truth: Truth, told: int) -> tuple[float, int, int, float]:
    """How far the sighting is from a truth that so many sightings have gone to, as `_nearest` ranks them."""
    distance = _distance(sighting.time, truth)
    another = (sighting.process not in (None, truth.path)) + (sighting.user not in (None, truth.user))
    return distance if distance > CLOCK_S else 0.0, another, told, truth.end


def _distance(time: float, truth: Truth) -> float:
    return max(truth.start - time, time - truth.end, 0.0)


def truth_key(truth: Truth) -> Key:
    return (truth.proto, _address(truth.source_address), truth.sport, _address(truth.target_address), truth.dport)


def sighting_key(sighting: Sighting) -> Key:
    proto = sighting.proto.lower()
    if proto in _ICMP:
        return "icmp", _address(sighting.source), sighting.sport, _address(sighting.target), 0
    return proto, _address(sighting.source), sighting.sport, _address(sighting.target), sighting.dport


@lru_cache(maxsize=65536)
def _address(text: str) -> str:
    """One spelling for one address: dialects write IPv6 in full or short."""
    return str(ip_address(text)) if ":" in text else text


# --- judging ----------------------------------------------------------------------------------


def _judge(truth: Truth, sightings: Sequence[Sighting]) -> Match:
    """One pass over the sightings: a run has a million of them."""
    through, counted = passed(truth), truth.bytes
    process = user = verdict = size = False
    for s in sightings:
        process = process or s.process == truth.path
        user = user or s.user == truth.user
        verdict = verdict or _verdict_right(s, through)
        size = size or (through and bytes_right(counted, s))
    return Match(truth, tuple(sightings), {"flow": bool(sightings), "process": process, "user": user,
                                           "bytes": size if through and counted else None, "verdict": verdict})


def _verdict_right(sighting: Sighting, through: bool) -> bool:
    """A monitor's would-deny is about a flow that passed."""
    return sighting.verdict in (("allow", "would-deny") if through else ("deny",))


def bytes_right(payload: int, sighting: Sighting) -> bool:
    """Whether the count is physically possible: at least the payload, at most the payload and all packets' headers.

    Dialects count payload, IP bytes or frames; all lie between. Where the packets are unknown, the most that such a
    payload needs is taken.
    """
    if sighting.bytes is None:
        return False
    packets = sighting.packets
    if packets is None:
        packets = HANDSHAKE_PACKETS + 2 * -(-payload // SEGMENT_BYTES)
    return payload <= sighting.bytes <= payload + HEADER_BYTES * packets


def _mask(indexes: Sequence[int], n: int) -> Bools:
    mask = np.zeros(n, bool)
    mask[list(indexes)] = True
    return mask


def _recall(codes: Codes) -> Recall:
    judged = int((codes != _INAPPLICABLE).sum())
    return Recall(int((codes == _RIGHT).sum()) / judged if judged else None, judged)


def _wrong(matches: Sequence[Match], codes: Codes, field: str) -> Bools:
    """Truths for which something was reported in this field and none of it was right."""
    missed = np.flatnonzero(codes == _MISSING)
    told = [i for i in missed.tolist() if any(getattr(s, field) is not None for s in matches[i].sightings)]
    return _mask(told, len(matches))


# --- in words ---------------------------------------------------------------------------------

_WORDS = {"icmp": "over ICMP", "udp": "over UDP", "tcp": "over TCP", "denied": "that were denied",
          "passed": "that got through", "within one host": "between processes of one host",
          "within one segment": "between hosts of one segment", "across segments": "between segments"}
_MISSED = {"process": "name the process of", "user": "name the user of", "bytes": "count the bytes of",
           "verdict": "say the verdict of"}


def _blind_spots(right: Mapping[str, Codes], wrong: Mapping[str, Bools],
                 masks: Mapping[str, Bools]) -> tuple[str, ...]:
    """What was missed, in words with counts: classes never seen, other flows not seen, fields not or wrongly told."""
    seen = right["flow"] == _RIGHT
    if not len(seen):
        return ()
    if not seen.any():
        return (f"did not see {len(seen)} of {len(seen)} flows",)
    return (*_unseen({name: masks[name] for name in _WORDS}, seen), *_field_spots(right, wrong, seen))


def _unseen(members: Mapping[str, Bools], seen: Bools) -> list[str]:
    """Classes, and crossings of two, of which nothing was seen, the largest first; then what that leaves, by place."""
    crossings = dict(members)
    for one, two in combinations(members, 2):
        crossings[f"{one}\n{two}"] = members[one] & members[two]
    blind = {name: flows for name, flows in crossings.items() if flows.any() and not (flows & seen).any()}
    explained = np.zeros(len(seen), bool)
    spots = []
    for name, flows in sorted(blind.items(), key=lambda item: -int(item[1].sum())):
        if (flows & ~explained).any():
            words = " ".join(_WORDS[part] for part in reversed(name.split("\n")))
            spots.append(f"did not see {flows.sum()} of {flows.sum()} flows {words}")
            explained |= flows
    for place in ("within one host", "within one segment", "across segments"):
        left = members[place] & ~explained
        if missed := int((left & ~seen).sum()):
            other = "other " if explained.any() else ""
            spots.append(f"did not see {missed} of {left.sum()} {other}flows {_WORDS[place]}")
    return spots


def _field_spots(right: Mapping[str, Codes], wrong: Mapping[str, Bools], seen: Bools) -> list[str]:
    """Fields that were not told, or told wrongly, of flows that were seen."""
    spots = []
    for field, words in _MISSED.items():
        codes = right[field][seen]
        if missed := int((codes == _MISSING).sum()):
            rightly = "rightly " if wrong[field].any() else ""
            spots.append(f"did not {rightly}{words} {missed} of {(codes != _INAPPLICABLE).sum()} flows that it saw")
    return spots
