"""What services say they did, and what packets say, agree on every connection of every kind."""

from __future__ import annotations

import pytest

from lab.hosts.attempts import Actor, Attempt, Attempted
from lab.model import Outcome, Truth
from tests.e2e import capture_lab
from tests.e2e.capture_lab import Seen
from tests.e2e.isolated import call, needs_root

pytestmark = [needs_root, pytest.mark.e2e]


def agreed(n: int, timeout_s: float) -> None:
    found = call("tests.e2e.capture_lab", "agree", n, timeout_s=timeout_s)
    print(found["kinds"])
    assert found["n"] == n
    assert not any(found["counts"].values()), found
    kinds = " ".join(found["kinds"])
    for kind in ("tcp v4 OPEN", "tcp v6 TIMED_OUT", "tcp v4 REFUSED", "udp v6 OPEN", "udp v4 REFUSED", "icmp v4 OPEN"):
        assert kind in kinds, kinds


def test_two_thousand() -> None:
    agreed(2_000, 90)


@pytest.mark.slow
def test_a_hundred_thousand() -> None:
    agreed(100_000, 500)


def test_a_packet_is_read() -> None:
    syn = bytes([0x45, *[0] * 8, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 5, 0, 80, *[0] * 9, 2])
    assert capture_lab.read(syn) == (("tcp", "10.0.0.1", 5, "10.0.0.2", 80), True)
    assert capture_lab.read(syn[:-1] + b"\x12") == (("tcp", "10.0.0.2", 80, "10.0.0.1", 5), False)


def test_what_does_not_agree_is_found() -> None:
    """The comparison itself: a first packet taken away, an answer that nobody told of, a packet of nobody."""
    key = ("tcp", "10.0.0.1", 5, "10.0.0.2", 80)
    one = Truth("probe", "a", "p", "/p", "u", "b", "tcp", key[1], key[2], key[3], key[4], 0.0, 1.0, 0, "OPEN", True)
    tried = Attempted(Attempt(Actor("a", "p", "u"), "tcp", 4, key[3], key[4]), Outcome.OPEN, 0, True, 0.5, 0.0, 1.0,
                      1.0, 5, 0)
    asks, answers, other = Seen(key, True), Seen(key, False), Seen(("tcp", "10.0.0.9", 1, "10.0.0.2", 80), True)

    def counts(at_a: list[Seen], at_b: list[Seen]) -> dict[str, int]:
        return dict(capture_lab.compared([one], [tried], {"a": at_a, "b": at_b})["counts"])

    assert not any(counts([asks, answers], [asks]).values())
    assert counts([answers], [asks])["unseen"] == 1
    assert counts([asks], [asks])["answer"] == 1
    assert counts([asks, answers], [])["arrival"] == 1
    assert counts([asks, answers, other], [asks])["nobody"] == 1
