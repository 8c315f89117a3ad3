"""Truth and sightings meet by 5-tuple and time; each field is right, wrong, missed or not measurable."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bench.analysis.visibility import Recall, bytes_right, match, visibility
from lab.model import TRIED_AGAIN, Sighting, Truth
from tests.unit.test_matrices import TOPOLOGY


def truth(sport: int = 40000, **more: Any) -> Truth:
    values: dict[str, Any] = {
        "kind": "probe", "source": "web", "process": "frontend", "path": "/opt/frontend", "user": "www",
        "target": "api", "proto": "tcp", "source_address": "10.0.0.1", "sport": sport, "target_address": "10.0.0.3",
        "dport": 8080, "start": 100.0, "end": 100.1, "bytes": 64, "outcome": "OPEN", "arrived": True, **more}
    return Truth(**values)


def sighting(sport: int = 40000, **more: Any) -> Sighting:
    values: dict[str, Any] = {"point": "router", "time": 100.05, "proto": "tcp", "source": "10.0.0.1", "sport": sport,
                              "target": "10.0.0.3", "dport": 8080, **more}
    return Sighting(**values)


FULL: dict[str, Any] = {"process": "/opt/frontend", "user": "www", "bytes": 64 + 8 * 52, "packets": 8,
                        "verdict": "allow"}


def test_what_was_tried_again_counts_for_nothing() -> None:
    """How often the second look tries is the lab's own doing; its sightings are explained all the same."""
    again = [truth(sport, kind=TRIED_AGAIN) for sport in range(41000, 41050)]
    got = visibility([truth(), *again], [sighting(**FULL), sighting(41000), sighting(41001)], TOPOLOGY)
    assert got.fields["flow"] == got.fields["process"] == Recall(1.0, 1)
    assert got.unexplained == 0 and not got.blind_spots and "kind again" not in got.by_class


def test_all_fields_right() -> None:
    got = visibility([truth()], [sighting(**FULL)], TOPOLOGY)
    assert got.fields == {f: Recall(1.0, 1) for f in ("flow", "process", "user", "bytes", "verdict")}
    assert got.blind_spots == () and got.unexplained == 0


def test_an_arm_without_telemetry_sees_nothing_and_that_is_zero() -> None:
    got = visibility([truth(), truth(1, outcome="TIMED_OUT", arrived=False)], [], TOPOLOGY)
    assert got.fields["flow"] == got.fields["user"] == Recall(0.0, 2)
    assert got.fields["bytes"] == Recall(0.0, 1)
    assert got.blind_spots == ("did not see 2 of 2 flows",)


def test_refusals_without_a_port_of_their_own_share_a_key_and_take_one_sighting_each() -> None:
    """Two echoes refused on their host, the second while the first was under way: neither is told as unseen."""
    refused: dict[str, Any] = {"proto": "icmp", "dport": 0, "outcome": "DENIED_LOCALLY", "arrived": False}
    first, second = truth(0, start=100.0, end=100.009, **refused), truth(0, start=100.002, end=100.009, **refused)
    told = [sighting(0, proto="icmp", dport=0, time=time, verdict="deny") for time in (100.003, 100.008)]
    got, unexplained = match([first, second], told)
    assert [len(one.sightings) for one in got] == [1, 1] and unexplained == 0
    assert [len(one.sightings) for one in match([first, second], told[:1])[0]] == [0, 1], "one was not told of"


WEB, STRANGER = {"process": "/opt/frontend", "user": "www"}, {"process": "/run/host/stranger", "user": "nobody"}
_ECHO: dict[str, Any] = {"proto": "icmp", "dport": 0, "verdict": "deny"}


def at_once(*spans: tuple[float, float]) -> list[Truth]:
    """Echoes refused on their host, by turns of a stranger and of the web server."""
    return [truth(0, proto="icmp", dport=0, outcome="DENIED_LOCALLY", arrived=False, start=start, end=end,
                  path=who["process"], user=who["user"])
            for (start, end), who in zip(spans, itertools.cycle((STRANGER, WEB)))]


def test_of_two_refusals_at_once_each_sighting_is_of_the_one_it_names() -> None:
    """As it came on a busy machine: the first sighting lies in both, the second in neither by a rounded microsecond."""
    made = at_once((550.243623770, 550.243632005), (550.243631108, 550.243642039))
    told = [sighting(0, time=550.243632, **STRANGER, **_ECHO), sighting(0, time=550.243643, **WEB, **_ECHO)]
    for order in (told, told[::-1]):
        got = visibility(made, order, TOPOLOGY)
        assert (got.fields["flow"].recall, got.fields["process"].recall) == (1.0, 1.0)


def test_names_do_not_move_a_sighting_in_time_nor_stand_in_for_one() -> None:
    made = at_once((100.0, 100.1), (200.0, 200.1))
    swapped = [sighting(0, time=100.05, **WEB, **_ECHO), sighting(0, time=200.05, **STRANGER, **_ECHO)]
    assert visibility(made, swapped, TOPOLOGY).fields["process"].recall == 0.0
    overlap = at_once((100.0, 100.1), (100.05, 100.2))
    lost = visibility(overlap, [sighting(0, time=100.07, **WEB, **_ECHO)], TOPOLOGY)
    assert (lost.fields["flow"].recall, lost.fields["process"].recall) == (0.5, 0.5)
    wrong = visibility(overlap, [sighting(0, time=100.07, **WEB, **_ECHO)] * 2, TOPOLOGY)
    assert wrong.fields["process"].recall == 0.5, "a name that is told twice is right once"


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.floats(0, 1)), min_size=1, max_size=12))
def test_one_sighting_of_each_in_the_order_of_time_leaves_none_unseen(drawn: list[tuple[int, int, float]]) -> None:
    """Without any name: with at most 16 under way at once, each has its own, however they overlap."""
    times = [(start, start + length) for start, length, _ in drawn]
    told = sorted(start + share * length for start, length, share in drawn)
    got, unexplained = match(at_once(*times), [sighting(0, time=time, **_ECHO) for time in told])
    assert [len(one.sightings) for one in got] == [1] * len(drawn) and unexplained == 0


def test_what_cannot_be_measured_is_none() -> None:
    got = visibility([truth(outcome="TIMED_OUT", arrived=False)], [], TOPOLOGY)
    assert got.fields["bytes"] == Recall(None, 0)
    assert visibility([], [sighting()], TOPOLOGY).fields["flow"] == Recall(None, 0)


def test_a_flow_is_right_if_any_point_is() -> None:
    at_source = sighting(point="web", process="/opt/frontend", user="www", verdict="allow")
    at_target = sighting(point="api", process=None, bytes=480, packets=8, verdict="deny")
    got = visibility([truth(outcome="TIMED_OUT", arrived=False)], [at_source, at_target], TOPOLOGY)
    assert got.fields["process"].recall == got.fields["verdict"].recall == 1.0


def test_the_wrong_process_is_told_from_none() -> None:
    got = visibility([truth(1), truth(2)], [sighting(1, process="/opt/backup"), sighting(2)], TOPOLOGY)
    assert got.fields["process"] == Recall(0.0, 2) and got.wrong["process"] == 1
    assert "did not rightly name the process of 2 of 2 flows that it saw" in got.blind_spots


def test_a_port_that_recurs_goes_to_the_nearest_in_time() -> None:
    early, late = truth(start=10.0, end=11.0), truth(start=200.0, end=201.0)
    (first, second), rest = match([late, early], [sighting(time=12.0), sighting(time=199.5), sighting(time=500.0)])
    assert first.truth is late and [s.time for s in first.sightings] == [199.5]
    assert [s.time for s in second.sightings] == [12.0]
    assert rest == 1


def test_a_sighting_of_the_other_direction_or_protocol_is_another_flow() -> None:
    turned = sighting(8080, source="10.0.0.3", target="10.0.0.1", dport=40000)
    got = visibility([truth()], [turned, sighting(proto="udp")], TOPOLOGY)
    assert got.fields["flow"].recall == 0.0 and got.unexplained == 2


def test_icmp_is_matched_by_echo_identifier_and_ipv6_by_value() -> None:
    ping = truth(77, proto="icmp", dport=0, source_address="fd00::1", target_address="fd00::3")
    said = sighting(77, proto="icmpv6", source="fd00:0:0:0::1", target="fd00::0003", dport=128)
    assert visibility([ping], [said], TOPOLOGY).fields["flow"].recall == 1.0


def test_bytes_must_be_physically_possible() -> None:
    assert bytes_right(64, sighting(bytes=64))  # payload alone
    assert bytes_right(64, sighting(bytes=64 + 8 * 60, packets=8))  # IP bytes of eight packets
    assert not bytes_right(64, sighting(bytes=63, packets=8))
    assert not bytes_right(64, sighting(bytes=64 + 8 * 121, packets=8))
    assert not bytes_right(64, sighting(bytes=None))
    assert bytes_right(1_000_000, sighting(bytes=1_000_000 + 700 * 66 + 350 * 66))  # packets unknown
    assert not bytes_right(1_000_000, sighting(bytes=2_000_000))


def test_verdicts_of_a_monitor_are_right_about_what_passed() -> None:
    got = visibility([truth()], [sighting(verdict="would-deny")], TOPOLOGY)
    assert got.fields["verdict"].recall == 1.0
    denied = replace(truth(), outcome="TIMED_OUT", arrived=False)
    assert visibility([denied], [sighting(verdict="would-deny")], TOPOLOGY).fields["verdict"].recall == 0.0


def test_an_attempt_without_a_port_counts_nowhere() -> None:
    got = visibility([truth(0), truth(5)], [sighting(5)], TOPOLOGY)
    assert got.unmatchable == 1 and got.fields["flow"] == Recall(1.0, 1)


def test_blind_spots_are_named_with_counts() -> None:
    inside = [truth(n, source="api", target="api", source_address="10.0.0.3") for n in range(1, 39)]
    beside = [truth(n, target="web2", target_address="10.0.0.2", dport=80) for n in range(100, 103)]
    pings = [truth(n, proto="icmp", dport=0) for n in range(200, 204)]
    between = [truth(n) for n in range(300, 310)]
    told = [sighting(n, **FULL) for n in range(300, 309)]
    got = visibility([*inside, *beside, *pings, *between], told, TOPOLOGY)
    assert got.blind_spots == (
        "did not see 38 of 38 flows between processes of one host",
        "did not see 4 of 4 flows over ICMP",
        "did not see 3 of 3 flows between hosts of one segment",
        "did not see 1 of 10 other flows between segments",
    )
    assert got.by_class["within one host"]["flow"] == Recall(0.0, 38)
    assert got.by_class["kind probe"]["flow"] == Recall(9 / 55, 55)


def test_many_flows_are_matched_without_comparing_all_with_all() -> None:
    truths = [truth(n % 60000, start=float(n), end=n + 0.1, dport=n // 60000) for n in range(1, 60000)]
    told = [sighting(t.sport, time=t.start, dport=t.dport, **FULL) for t in truths]
    assert visibility(truths, told, TOPOLOGY).fields["flow"].recall == 1.0
