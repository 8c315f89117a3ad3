"""Records of one dialect made sightings: both directions and all intervals of a flow are one, with when it was told.

What a dialect does not say stays empty. Where it does not say who asked, that is inferred as collectors do: the end
with a port below EPHEMERAL serves; between two alike, who sent the earlier record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from lab.model import Sighting

EPHEMERAL = 32768  # Linux gives clients ports from here on (ip_local_port_range)
Verdict = Literal["allow", "deny"]
PROTOS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}


@dataclass(frozen=True, slots=True)
class Record:
    """One record: what went from `source` to `target`, and `back_…` the other way if the dialect tells both at once.

    Times are CLOCK_MONOTONIC seconds, `at` when a reader could have it. `asked`: whether `source` is known to have
    begun; None: not told. For ICMP `sport` is the identifier, 0 where the dialect has none.
    """

    point: str
    proto: str
    source: str
    sport: int
    target: str
    dport: int
    start: float
    end: float
    at: float
    bytes: int | None = None
    packets: int | None = None
    verdict: Verdict | None = None
    rule: str | None = None
    asked: bool | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A sighting, and from when on (CLOCK_MONOTONIC) anyone could read of it. `until`: the flow's last known packet.

    `began`: whether it is told that the sighting's source began the flow, or, of ICMP, that it alone sent; else that is
    inferred.
    """

    sighting: Sighting
    at: float
    until: float
    began: bool = True


def told(records: Iterable[Record], gap_s: float) -> list[Told]:
    """One Told a flow: records of the same ends at the same point, unless more than `gap_s` lie between two.

    Of ICMP, where both ends are known to have asked, each one's own apart.
    """
    by_flow: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in records:
        ends = sorted(((ip_address(record.source), record.sport), (ip_address(record.target), record.dport)),
                      key=lambda end: (end[0].version, end[0].packed, end[1]))
        if record.proto == "icmp":  # the identifier stands at one end, whoever sends
            ends = [(address, record.sport) for address, _ in ends]
        by_flow[(record.point, record.proto, *ends)].append(record)
    found = []
    for same in (part for flow in by_flow.values() for part in _by_asker(flow)):
        same.sort(key=lambda r: r.start)
        group, until = [same[0]], same[0].end
        for record in same[1:]:
            if record.start > until + gap_s:
                found.append(_one(group))
                group = []
            group.append(record)
            until = max(until, record.end)
        found.append(_one(group))
    return found


def _by_asker(records: list[Record]) -> Iterable[list[Record]]:
    askers = {_asker(r) for r in records if r.asked is not None} if records[0].proto == "icmp" else set()
    if len(askers) < 2:
        return [records]
    parts: dict[str | None, list[Record]] = defaultdict(list)
    for record in records:
        parts[None if record.asked is None else _asker(record)].append(record)
    return parts.values()


def _asker(record: Record) -> str:
    return str(ip_address(record.source if record.asked else record.target))


def _one(group: Sequence[Record]) -> Told:
    first = _from_who_asked(group)
    verdicts = {r.verdict for r in group if r.verdict}
    verdict: Verdict | None = "allow" if "allow" in verdicts else "deny" if verdicts else None
    rule = next((r.rule for r in group if r.rule and r.verdict == verdict), None)
    return Told(Sighting(
        point=first.point, time=min(r.start for r in group), proto=first.proto, source=first.source, sport=first.sport,
        target=first.target, dport=first.dport, bytes=_sum(r.bytes for r in group),
        packets=_sum(r.packets for r in group), verdict=verdict, rule=rule),
        min(r.at for r in group), max(r.end for r in group), _knows(group))


def _knows(group: Sequence[Record]) -> bool:
    if any(r.asked is not None for r in group):
        return True
    return group[0].proto == "icmp" and len({ip_address(r.source) for r in group}) == 1


def _sum(values: Iterable[int | None]) -> int | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _from_who_asked(group: Sequence[Record]) -> Record:
    """A record of the group, turned so that its source is who began the flow."""
    for record in group:
        if record.asked is not None:
            return record if record.asked else _turned(record)
    first = group[0]
    return _turned(first) if first.sport < EPHEMERAL <= first.dport else first


def _turned(r: Record) -> Record:
    ports = (r.sport, r.dport) if r.proto == "icmp" else (r.dport, r.sport)
    return Record(r.point, r.proto, r.target, ports[0], r.source, ports[1], r.start, r.end, r.at)
