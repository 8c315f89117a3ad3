"""Every combination of intended, expected, observed and control is judged as defined; gaps are put in words."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import pytest

from bench.analysis.matrices import (
    Claims,
    Counts,
    explain_gap,
    flow_kinds,
    gap_classes,
    matrix,
)
from bench.analysis.reach import blast_radius, reachable
from lab.model import (
    STRANGER,
    Approximation,
    Flow,
    Host,
    Observation,
    Outcome,
    Process,
    Segment,
    Service,
    Topology,
)
from lab.policy import WRONG_PORTS


def host(name: str, segment: str, n: int, runs: tuple[str, ...], **more: object) -> Host:
    return Host(name, segment, f"10.0.0.{n}", f"fd00::{n}", f"02:00:00:00:00:{n:02x}", {}, runs, **more)  # type: ignore[arg-type]


TOPOLOGY = Topology(
    segments={n: Segment(n, "10.0.0.0/24", "fd00::/64", "10.0.0.254", "fd00::fe") for n in ("dmz", "app")},
    hosts={h.name: h for h in (
        host("web", "dmz", 1, ("frontend",)), host("web2", "dmz", 2, ("frontend",)),
        host("api", "app", 3, ("api", "backup")), host("cam", "app", 4, ("stream",), agent="impossible"))},
    processes={p.name: p for p in (
        Process("frontend", "/opt/frontend", "www", 20001, (Service("tcp", 80, 80),), vulnerable=True),
        Process("api", "/opt/api", "shop", 20002, (Service("tcp", 8080, 8080),), vulnerable=True),
        Process("backup", "/opt/backup", "backup", 20003),
        Process("stream", "/opt/stream", "root", 0, (Service("tcp", 554, 554),), vulnerable=True))},
    users={"www": 20001, "shop": 20002, "backup": 20003, "root": 0},
)
FLOW = Flow("web", "frontend", "www", "api", "api", "tcp", 8080, 4)


def seen(flow: Flow, outcome: Outcome, *, arrived: bool | None = None, number: int = 0) -> Observation:
    return Observation(flow, outcome, number, outcome is Outcome.OPEN if arrived is None else arrived,
                       1.0, None, None, 40000)


def judge(intended: bool, expected: bool, got: Observation | None, control: Observation | None) -> tuple[str, Counts]:
    observed, baseline = ({FLOW: o} if o else {} for o in (got, control))
    result = matrix([FLOW], intended=[intended], expected=[expected], covered=[True], observed=observed,
                    baseline=baseline, topology=TOPOLOGY)
    return result.rows[0].finding, result.counts


OPEN, LOST = Outcome.OPEN, Outcome.TIMED_OUT


@pytest.mark.parametrize(("intended", "expected", "outcome", "arrived", "alive", "finding"), [
    (True, True, OPEN, True, True, "ok"),
    (True, True, LOST, False, True, "defect"),  # and a break
    (True, True, LOST, False, False, "inconclusive"),  # the listener is dead: no enforcer did this
    (True, True, OPEN, True, False, "ok"),  # open is open, whatever the control was
    (True, False, LOST, False, True, "break"),  # a break that the arm announced: a gap
    (True, False, OPEN, True, True, "defect"),
    (False, False, LOST, False, True, "ok"),
    (False, False, LOST, False, False, "inconclusive"),  # a dead server is never security
    (False, False, OPEN, True, True, "defect"),  # and a leak
    (False, False, LOST, True, True, "defect"),  # one way only: the datagram arrived, its reply was dropped
    (False, False, LOST, True, False, "defect"),  # arrived needs no control
    (False, True, OPEN, True, True, "leak"),  # announced
    (False, True, LOST, True, True, "defect"),  # leaked, and was to be open but is not
    (False, True, LOST, True, False, "leak"),
    (False, True, LOST, False, True, "defect"),  # enforced more than the arm says it can
    (False, True, LOST, False, False, "inconclusive"),
])
def test_each_case_is_judged(intended: bool, expected: bool, outcome: Outcome, arrived: bool, alive: bool,
                             finding: str) -> None:
    control = seen(FLOW, OPEN if alive else LOST)
    assert judge(intended, expected, seen(FLOW, outcome, arrived=arrived), control)[0] == finding


def test_the_counts_obey_their_definitions_in_every_case() -> None:
    for intended, expected, outcome, arrived, alive in product(
            (True, False), (True, False), Outcome, (True, False), (True, False)):
        if outcome is OPEN and not arrived:
            continue
        _, c = judge(intended, expected, seen(FLOW, outcome, arrived=arrived), seen(FLOW, OPEN if alive else LOST))
        assert c.leaks == (not intended and (outcome is OPEN or arrived))
        assert c.breaks == (intended and outcome is not OPEN and alive)
        assert c.gaps == (intended != expected)
        assert not (c.inconclusive and (c.leaks or c.breaks or c.defects))
        assert c.denied + c.allowed + c.inconclusive == 1
        if intended == expected:  # a leak or a break that was not announced is a defect, and nothing else is
            assert c.defects == (c.leaks or c.breaks)


def test_what_was_not_observed_or_never_tried_is_inconclusive() -> None:
    assert judge(True, True, None, seen(FLOW, OPEN))[0] == "inconclusive"
    assert judge(True, True, seen(FLOW, Outcome.BROKEN, number=errno.EMFILE), seen(FLOW, OPEN))[0] == "inconclusive"
    assert judge(True, True, seen(FLOW, Outcome.BROKEN, number=errno.ECONNRESET), seen(FLOW, OPEN))[0] == "defect"
    assert judge(True, True, seen(FLOW, LOST), None)[0] == "inconclusive"
    _, counts = judge(False, True, None, None)
    assert counts.gaps == 1  # known before a packet is sent


def test_the_baseline_against_itself_leaks_what_is_denied_and_has_no_defect() -> None:
    denied = Flow("web2", "frontend", "www", "api", "backup", "tcp", WRONG_PORTS[0], 4)
    dead = Flow("web", "frontend", "www", "web2", "frontend", "tcp", 80, 6)
    got = {FLOW: seen(FLOW, OPEN), denied: seen(denied, OPEN), dead: seen(dead, Outcome.REFUSED)}
    result = matrix([FLOW, denied, dead], intended=[True, False, True], expected=[True] * 3, covered=[False] * 3,
                    observed=got, baseline=got, topology=TOPOLOGY)
    assert result.counts == Counts(flows=3, leaks=1, breaks=0, gaps=1, defects=0, inconclusive=1, denied=1, allowed=1)
    assert set(result.by_kind) == {"allowed", "denied: wrong port"}
    assert result.by_kind["denied: wrong port"].leaks == 1


def test_kinds_say_what_a_denied_flow_tries() -> None:
    cases = {
        FLOW: "allowed",
        Flow("web", STRANGER, "nobody", "api", "api", "tcp", 8080, 4): "denied: wrong process",
        Flow("web", "frontend", "nobody", "api", "api", "tcp", 8080, 4): "denied: wrong user",
        Flow("web", "frontend", "www", "api", "api", "tcp", WRONG_PORTS[1], 4): "denied: wrong port",
        Flow("web", "frontend", "www", "cam", "stream", "tcp", 554, 4): "denied: wrong host",
        Flow("web", "frontend", "www", "cam", "", "icmp", 0, 4): "denied: icmp",
        Flow("web", "frontend", "www", "web2", "frontend", "tcp", 80, 4): "denied: same segment",
        Flow("api", "backup", "backup", "api", "api", "tcp", 8080, 4): "denied: same host",
    }
    flows, allow = list(cases), [kind == "allowed" for kind in cases.values()]
    assert flow_kinds(flows, allow, TOPOLOGY) == list(cases.values())


def rows_of(flows: Iterable[Flow], covered: Iterable[bool]) -> tuple:  # type: ignore[type-arg]
    flows, covered = list(flows), list(covered)
    got = {f: seen(f, OPEN) for f in flows}
    return matrix(flows, intended=[False] * len(flows), expected=[True] * len(flows), covered=covered, observed=got,
                  baseline=got, topology=TOPOLOGY).rows


WIDENED = Approximation("shop calls api", "widened", "process: an address-based rule cannot name one")
SAME_HOST = Flow("api", "backup", "backup", "api", "api", "tcp", 8080, 4)
SAME_SEGMENT = Flow("web", "frontend", "www", "web2", "frontend", "tcp", 80, 4)
CAMERA = Flow("cam", "stream", "root", "cam", "stream", "tcp", 554, 4)
WRONG_PROCESS = Flow("web", STRANGER, "nobody", "api", "api", "tcp", 8080, 4)


def test_a_router_explains_its_gaps_by_place() -> None:
    rows = rows_of([SAME_HOST, CAMERA, SAME_SEGMENT, WRONG_PROCESS], [False, False, False, True])
    got = {g.reason: (g.flows, g.leaks) for g in gap_classes(rows, TOPOLOGY, [WIDENED])}
    assert got == {
        "same host: the traffic never leaves it": (2, 2),
        "same segment: the traffic crosses no enforcement point": (1, 1),
        "rules widened: process: an address-based rule cannot name one": (1, 1),
    }


def test_a_host_agent_explains_its_gaps_by_missing_agents() -> None:
    to_camera = Flow("api", STRANGER, "nobody", "cam", "stream", "tcp", 554, 4)
    rows = rows_of([SAME_HOST, SAME_SEGMENT, to_camera, CAMERA], [True, True, True, False])
    reasons = {g.reason for g in gap_classes(rows, TOPOLOGY, [WIDENED])}
    assert "no agent on either end (cam)" in reasons
    assert not any("same" in reason for reason in reasons)


def test_no_enforcement_needs_no_further_reason() -> None:
    groups = gap_classes(rows_of([SAME_HOST, CAMERA, WRONG_PROCESS], [False] * 3), TOPOLOGY)
    assert [g.reason for g in groups] == ["nothing is enforced"] and groups[0].example == str(SAME_HOST)


def test_a_break_is_explained_by_what_was_narrowed_not_by_what_was_widened() -> None:
    narrowed = Approximation("x", "narrowed", "one family only")
    claimed = Claims(True, True, True)
    row = matrix([FLOW], intended=[True], expected=[False], covered=[True], observed={}, baseline={},
                 topology=TOPOLOGY).rows[0]
    assert explain_gap(row, [WIDENED, narrowed], TOPOLOGY, claimed) == "rules narrowed: one family only"
    assert explain_gap(row, [], TOPOLOGY, claimed) == "rules enforced otherwise than written"
    uncovered = replace(row, covered=False)
    assert explain_gap(uncovered, [], TOPOLOGY, claimed) == "outside of what the arm claims to cover"


# --- reach ------------------------------------------------------------------------------------


def test_blast_radius_counts_the_other_hosts() -> None:
    assert blast_radius(["web", "api", "elsewhere"], ["web", "web2", "api", "cam"], "web") == pytest.approx(1 / 3)
    assert blast_radius(["web"], ["web"], "web") == 0.0


def test_reach_walks_open_flows_to_vulnerable_processes_as_the_taken_process() -> None:
    into_api = seen(FLOW, OPEN)
    dropped = Flow("api", STRANGER, "nobody", "cam", "stream", "tcp", 554, 4)
    not_taken = Flow("api", "backup", "backup", "web2", "frontend", "tcp", 80, 4)  # backup is not the process taken
    observations = [into_api, seen(dropped, OPEN), seen(not_taken, OPEN)]
    got = reachable(observations, TOPOLOGY, "web", "frontend")
    assert got.steps == {"web": 0, "api": 1, "cam": 2}
    assert reachable(observations, TOPOLOGY, "web", "frontend", dropped_binary=False).hosts == {"web", "api"}
    closed = [into_api, seen(dropped, LOST, arrived=True)]
    assert reachable(closed, TOPOLOGY, "web", "frontend").hosts == {"web", "api"}
