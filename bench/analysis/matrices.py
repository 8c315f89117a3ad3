"""Intended, expected and observed, flow by flow: which leaks, which breaks, which is a gap, which is a defect. Pure.

Words, used one way:

- *intended*: what the policy says. *expected*: what the arm, as compiled and where it claims coverage, will do.
- *control*: the same flow was OPEN with no enforcer. Without it, silence proves nothing: a dead listener looks denied.
- *leak*: intended deny, and it was open or it arrived. A datagram whose reply is dropped has leaked. Needs no control:
  what arrived, arrived.
- *break*: intended allow, not OPEN, with control.
- *gap*: intended and expected differ: the price of the approach, known before a packet is sent.
- *defect*: expected and observed differ. Expected deny: open or arrived. Expected allow: not OPEN, with control.
- *inconclusive*: nothing can be said: no control and no positive evidence, or the attempt itself failed.
"""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lab.model import STRANGER, Approximation, Flow, Observation, Outcome, Topology
from lab.policy import WRONG_PORTS, owner_user

# Errors of the machine that tries, not of the network in between: such an attempt was never made.
INSTRUMENT_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ESRCH,
                               errno.EADDRINUSE, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True)
class Row:
    """One flow as intended, expected and observed. `inconclusive` excludes the findings but not `gap`."""

    flow: Flow
    intended: bool
    expected: bool
    covered: bool
    observed: Observation | None
    leak: bool
    broken: bool
    gap: bool
    defect: bool
    inconclusive: bool
    kind: str  # what is tried, of flow_kinds

    @property
    def finding(self) -> str:
        """The row in one word, the gravest first."""
        for name, holds in (("defect", self.defect), ("leak", self.leak), ("break", self.broken),
                            ("inconclusive", self.inconclusive), ("gap", self.gap)):
            if holds:
                return name
        return "ok"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many flows of each finding. They overlap: a leak may be a gap too. `denied`, `allowed`: conclusive ones."""

    flows: int
    leaks: int
    breaks: int
    gaps: int
    defects: int
    inconclusive: int
    denied: int
    allowed: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """Every probed flow of one arm, and its counts, in all and by kind of flow."""

    rows: tuple[Row, ...]
    counts: Counts
    by_kind: Mapping[str, Counts]


@dataclass(frozen=True, slots=True)
class GapClass:
    """Gaps with one reason: how many flows, how many of them leaked or broke when tried, and one as an example."""

    reason: str
    flows: int
    leaks: int
    breaks: int
    example: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What an arm claims at all, seen from the flows it says it covers: any, any of one host, any of one segment."""

    anything: bool
    same_host: bool
    same_segment: bool


# --- the matrix -------------------------------------------------------------------------------


def matrix(flows: Sequence[Flow], *, intended: Sequence[bool], expected: Sequence[bool], covered: Sequence[bool],
           observed: Mapping[Flow, Observation], baseline: Mapping[Flow, Observation], topology: Topology) -> Matrix:
    """Every flow judged. The four sequences are parallel; a flow without an observation is inconclusive.

    For the baseline arm itself `observed` and `baseline` are the same.
    """
    kinds = flow_kinds(flows, intended, topology)
    rows = tuple(
        _row(flow, _Stated(bool(meant), bool(due), bool(claims), kind), observed.get(flow), baseline.get(flow))
        for flow, meant, due, claims, kind in zip(flows, intended, expected, covered, kinds, strict=True)
    )
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.kind].append(row)
    return Matrix(rows, count(rows), {kind: count(members) for kind, members in sorted(groups.items())})


class _Stated(NamedTuple):
    """What is known of a flow before it is tried."""

    intended: bool
    expected: bool
    covered: bool
    kind: str


def _row(flow: Flow, stated: _Stated, seen: Observation | None, control: Observation | None) -> Row:
    intended, expected, covered, kind = stated
    gap = intended != expected
    if seen is None or never_made(seen):
        return Row(flow, intended, expected, covered, seen, leak=False, broken=False, gap=gap, defect=False,
                   inconclusive=True, kind=kind)
    opened = seen.outcome is Outcome.OPEN
    passed = opened or seen.arrived
    alive = control is not None and control.outcome is Outcome.OPEN
    leak = not intended and passed
    defect = (alive and not opened) if expected else passed
    broken = intended and not opened and alive
    unknown = not alive and not opened and not leak and not defect
    return Row(flow, intended, expected, covered, seen, leak=leak, broken=broken, gap=gap, defect=defect,
               inconclusive=unknown, kind=kind)


def never_made(seen: Observation) -> bool:
    """Whether the attempt failed at the machine that tried, so that nothing was asked of the network."""
    return seen.outcome is Outcome.BROKEN and seen.errno in INSTRUMENT_ERRNOS


def count(rows: Iterable[Row]) -> Counts:
    """The counts of these rows."""
    tally: Counter[str] = Counter()
    for row in rows:
        tally["flows"] += 1
        tally["leaks"] += row.leak
        tally["breaks"] += row.broken
        tally["gaps"] += row.gap
        tally["defects"] += row.defect
        tally["inconclusive"] += row.inconclusive
        tally["allowed" if row.intended else "denied"] += not row.inconclusive
    return Counts(**{name: tally[name] for name in Counts.__dataclass_fields__})


# --- kinds of flow ----------------------------------------------------------------------------


def flow_kinds(flows: Sequence[Flow], intended: Sequence[bool], topology: Topology) -> list[str]:
    """What each flow tries, for sampling and for bounds by kind: "allowed", or the reason why it is denied.

    "wrong process" and "wrong user": someone else on the same host may do exactly this. "wrong host": nobody there may.
    """
    permitted = {_route(flow) for flow, allow in zip(flows, intended, strict=True) if allow}
    return ["allowed" if allow else _denied_kind(flow, _route(flow) in permitted, topology)
            for flow, allow in zip(flows, intended, strict=True)]


def _route(flow: Flow) -> tuple[str, str, str, str, int, int]:
    return flow.source, flow.target, flow.target_process, flow.proto, flow.port, flow.family


def _denied_kind(flow: Flow, permitted: bool, topology: Topology) -> str:
    if permitted:
        wrong_user = flow.process != STRANGER and flow.user != owner_user(flow.process, topology)
        return "denied: wrong user" if wrong_user else "denied: wrong process"
    if flow.source == flow.target:
        return "denied: same host"
    if same_segment(flow, topology):
        return "denied: same segment"
    if flow.proto == "icmp":
        return "denied: icmp"
    return "denied: wrong port" if flow.port in WRONG_PORTS else "denied: wrong host"


def same_segment(flow: Flow, topology: Topology) -> bool:
    """Whether two different hosts of one segment talk, so that no router is crossed."""
    source, target = topology.hosts[flow.source], topology.hosts[flow.target]
    return flow.source != flow.target and source.segment == target.segment


# --- gaps in words ----------------------------------------------------------------------------


def claims(rows: Iterable[Row], topology: Topology) -> Claims:
    """What the arm claims, read off its coverage of these rows."""
    anything = same_host = one_segment = False
    for row in rows:
        if row.covered:
            anything = True
            same_host = same_host or row.flow.source == row.flow.target
            one_segment = one_segment or same_segment(row.flow, topology)
    return Claims(anything, same_host, one_segment)


def gap_classes(rows: Iterable[Row], topology: Topology,
                approximations: Sequence[Approximation] = ()) -> tuple[GapClass, ...]:
    """The gaps grouped by their reason, the largest group first."""
    rows = tuple(rows)
    claimed = claims(rows, topology)
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.gap:
            reason = explain_gap(row, approximations, topology, claimed)
            groups[reason].append(row)
    found = [GapClass(reason, len(members), sum(r.leak for r in members), sum(r.broken for r in members),
                      str(members[0].flow)) for reason, members in groups.items()]
    return tuple(sorted(found, key=lambda g: (-g.flows, g.reason)))


def explain_gap(row: Row, approximations: Sequence[Approximation], topology: Topology, claimed: Claims) -> str:
    """Why the arm does not do here what the policy says, in words that are the same for all flows of one reason."""
    flow = row.flow
    if row.covered:
        return _approximated(row.intended, approximations)
    if not claimed.anything:
        return "nothing is enforced"
    if flow.source == flow.target and not claimed.same_host:
        return "same host: the traffic never leaves it"
    if same_segment(flow, topology) and not claimed.same_segment:
        return "same segment: the traffic crosses no enforcement point"
    bare = sorted({name for name in (flow.source, flow.target) if not topology.hosts[name].takes_agent})
    if len(bare) == len({flow.source, flow.target}):
        return f"no agent on either end ({', '.join(bare)})"
    return "outside of what the arm claims to cover"


def _approximated(intended: bool, approximations: Sequence[Approximation]) -> str:
    """A rule is enforced otherwise than written: which way follows from the direction of the gap."""
    wanted = ("narrowed", "omitted") if intended else ("widened", "omitted")
    said = sorted({f"{a.kind}: {a.reason}" for a in approximations if a.kind in wanted})
    return f"rules {'; '.join(said)}" if said else "rules enforced otherwise than written"
