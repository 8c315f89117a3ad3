"""TCP as a stateful firewall has to follow it, segment by segment, on real wires (switch_net)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from tests.e2e.switch_net import Connection, Wire

Case = Callable[[Wire], None]
CASES: dict[str, Case] = {}
PORTS = itertools.count(20000)  # each connection has one of its own
PAYLOAD = b"x" * 100
CLOSED_KEPT = 256  # state.h


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def tcp(wire: Wire, **more: Any) -> Connection:
    return Connection(wire, next(PORTS), **more)


@case
def a_connection_lives_and_ends(wire: Wire) -> None:
    for family in (4, 6):
        for inside, port in ((True, 80), (False, 443)):
            c = tcp(wire, family=family, begun_inside=inside, dport=port).open()
            assert c.passes(True, "PA", 1, 1, PAYLOAD)
            assert c.passes(False, "PA", 1, 101, PAYLOAD)
            assert c.passes(True, "FA", 101, 101)
            assert c.passes(False, "FA", 101, 102)
            assert c.passes(True, "A", 102, 102)


@case
def what_the_policy_denies_does_not_begin(wire: Wire) -> None:
    assert not tcp(wire, dport=81).passes(True, "S", 0)
    assert not tcp(wire, dport=80, begun_inside=False).passes(True, "S", 0)
    assert not tcp(wire, dport=81, family=6).passes(True, "S", 0)


@case
def nothing_begins_in_the_middle(wire: Wire) -> None:
    assert not tcp(wire).passes(True, "A", 1, 1)
    assert not tcp(wire).passes(True, "PA", 1, 1, PAYLOAD)
    assert not tcp(wire).passes(False, "SA", 0, 1)
    c = tcp(wire)
    assert c.passes(True, "S", 0)
    assert not c.passes(True, "PA", 1, 1, PAYLOAD), "data before the other side answered"
    assert not c.passes(False, "PA", 1, 1, PAYLOAD), "data of who never opened"


@case
def it_may_begin_in_the_middle_where_that_is_wanted(wire: Wire) -> None:
    wire.put(pick_up=True)
    try:
        c = tcp(wire)
        assert c.passes(True, "PA", 500, 700, PAYLOAD)
        assert c.passes(False, "A", 700, 600)
        assert not tcp(wire, dport=81).passes(True, "PA", 500, 700, PAYLOAD), "by the policy all the same"
    finally:
        wire.put()


@case
def segments_outside_of_the_window_are_dropped(wire: Wire) -> None:
    c = tcp(wire).open()
    assert not c.passes(True, "PA", 200_000, 1, PAYLOAD), "beyond what was offered"
    assert not c.passes(True, "A", 1, 5_000), "acknowledges what was never sent"
    assert c.passes(True, "PA", 1, 1, PAYLOAD)
    assert not c.passes(False, "PA", 100_000, 101, PAYLOAD)
    for at in range(101, 40_101, 4_000):
        assert c.passes(True, "PA", at, 1, b"y" * 1000) and c.passes(False, "A", 1, at + 1000)
    assert not c.passes(True, "PA", 1, 1, PAYLOAD), "older than any retransmission"


@case
def sequence_numbers_wrap(wire: Wire) -> None:
    c = tcp(wire, seq=(2**32 - 50, 2**32 - 20)).open()
    assert c.passes(True, "PA", 1, 1, PAYLOAD) and c.passes(False, "PA", 1, 101, PAYLOAD)
    assert c.passes(True, "A", 101, 101)


@case
def windows_are_scaled(wire: Wire) -> None:
    c = tcp(wire).open(options=[("MSS", 1460), ("NOP", None), ("WScale", 7)])
    assert c.passes(False, "A", 1, 1)  # 8192 << 7 from now on
    assert c.passes(True, "PA", 900_000, 1, PAYLOAD)
    assert not c.passes(True, "PA", 2_000_000, 1, PAYLOAD)
    c = tcp(wire)
    assert c.passes(True, "S", 0, options=[("WScale", 7)]) and c.passes(False, "SA", 0, 1)
    assert c.passes(True, "A", 1, 1) and c.passes(False, "A", 1, 1)
    assert not c.passes(True, "PA", 900_000, 1, PAYLOAD), "both have to say it"


@case
def retransmissions_pass(wire: Wire) -> None:
    c = tcp(wire)
    assert c.passes(True, "S", 0) and c.passes(True, "S", 0)
    assert c.passes(False, "SA", 0, 1) and c.passes(False, "SA", 0, 1)
    assert c.passes(True, "A", 1, 1) and c.passes(False, "SA", 0, 1)
    for _ in range(2):
        assert c.passes(True, "PA", 1, 1, PAYLOAD)
    for _ in range(2):
        assert c.passes(True, "FA", 101, 1)
    for _ in range(2):
        assert c.passes(False, "FA", 1, 102)
    assert c.passes(True, "A", 102, 2) and c.passes(False, "FA", 1, 102) and c.passes(True, "A", 102, 2)


@case
def an_answer_has_to_answer(wire: Wire) -> None:
    c = tcp(wire)
    assert c.passes(True, "S", 0)
    assert not c.passes(False, "SA", 0, 77), "acknowledges another opening"
    assert not c.passes(False, "RA", 0, 77)
    assert not c.passes(False, "R", 0)
    assert c.passes(False, "RA", 0, 1), "refused"


@case
def both_may_open_at_once(wire: Wire) -> None:
    c = tcp(wire)
    assert c.passes(True, "S", 0) and c.passes(False, "S", 0)
    assert c.passes(True, "SA", 0, 1) and c.passes(False, "SA", 0, 1)
    assert c.passes(True, "PA", 1, 1, PAYLOAD) and c.passes(False, "A", 1, 101)


@case
def both_may_close_at_once(wire: Wire) -> None:
    c = tcp(wire).open()
    assert c.passes(True, "FA", 1, 1) and c.passes(False, "FA", 1, 1)
    assert c.passes(True, "A", 2, 2) and c.passes(False, "A", 2, 2)
    assert not c.passes(True, "PA", 2, 2, PAYLOAD), "nothing comes after the last"
    assert c.again(seq=(500_000, 700_000)).passes(True, "S", 0), "the port may be used again"


@case
def one_side_may_go_on_when_the_other_has_ended(wire: Wire) -> None:
    c = tcp(wire).open()
    assert c.passes(True, "FA", 1, 1) and c.passes(False, "A", 1, 2)
    assert c.passes(False, "PA", 1, 2, PAYLOAD) and c.passes(True, "A", 2, 101)
    assert not c.passes(True, "PA", 2, 101, PAYLOAD)


@case
def resets_and_ends_may_cross(wire: Wire) -> None:
    c = tcp(wire).open()
    assert c.passes(True, "FA", 1, 1) and c.passes(False, "RA", 1, 2) and c.passes(True, "R", 2)
    c = tcp(wire).open()
    assert c.passes(True, "RA", 1, 1) and c.passes(False, "FA", 1, 1)


@case
def a_blind_reset_is_dropped(wire: Wire) -> None:
    c = tcp(wire).open()
    assert not c.passes(False, "R", 500_000)
    assert not c.passes(True, "R", 500_000)
    assert c.passes(True, "PA", 1, 1, PAYLOAD)


@case
def a_reset_that_is_merely_near_ends_nothing(wire: Wire) -> None:
    c = tcp(wire).open()
    assert c.passes(False, "R", 100), "the receiver answers it: RFC 5961"
    assert not c.again(seq=(500_000, 9000)).passes(True, "S", 0), "so the connection is still there"
    assert c.passes(True, "PA", 1, 1, PAYLOAD)


@case
def an_opening_inside_of_a_connection_is_dropped(wire: Wire) -> None:
    c = tcp(wire).open()
    assert not c.again(seq=(3_000_000, 1)).passes(True, "S", 0)
    assert not c.passes(False, "S", 1)


@case
def an_opening_that_nobody_answered_may_be_another(wire: Wire) -> None:
    c = tcp(wire)
    assert c.passes(True, "S", 0)
    assert c.again(seq=(777_000, 9000)).open().passes(True, "PA", 1, 1, PAYLOAD)


@case
def flags_that_make_no_sense_are_dropped(wire: Wire) -> None:
    for flags in ("", "F", "SF", "SR", "FPU", "SFRPAU", "FR", "P"):
        c = tcp(wire).open()
        assert not c.passes(True, flags, 1, 1), flags or "none"
