"""A Deployment that changes while it stands: what is placed and run where, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from lab.backends.base import Completed
from lab.backends.served import ServedTestbed
from lab.deploy.enforcement import DeployError
from lab.deploy.live import LiveEnforcement, change, updatable
from lab.model import Host, Point, PointPlan, Segment, Topology

A, B, C = (Point("host", name) for name in "abc")
PORT_C = Point("port", "c")


def plan(text: str, update: tuple[tuple[str, ...], ...] = (("update",),)) -> PointPlan:
    return PointPlan({"/x/tool": b"tool", "/x/rules": text.encode()}, (("up", text),), ("ready",), update, (),
                     (("down",),))


class Recorder:
    """A testbed that writes down what it is told."""

    def __init__(self, refuses: Sequence[str] = ()) -> None:
        self.done: list[tuple[str, str, Any]] = []
        self.refuses = refuses

    def put_at(self, point: Point, files: Mapping[str, bytes]) -> None:
        self.done.append(("put", point.host, tuple(files)))

    def run_at(self, point: Point, argv: Sequence[str]) -> Completed:
        self.done.append(("run", point.host, argv[0]))
        return Completed(int(argv[0] in self.refuses), b"", b"no")

    def run(self, host: str, argv: Sequence[str], *, input: bytes = b"") -> Completed:
        self.done.append(("neighbours", host, input.decode().split()[1]))
        return Completed(0, b"", b"")

    def take(self) -> set[tuple[str, str, Any]]:
        found, self.done = set(self.done), []
        return found


    @property
    def topology(self) -> Topology:
        pair = {n: Host(n, "s", f"10.1.0.{i}", f"fd10:1::{i}", f"02:00:00:00:00:0{i}") for i, n in enumerate("ab", 2)}
        return Topology({"s": Segment("s", "10.1.0.0/24", "fd10:1::/64", "10.1.0.1", "fd10:1::1")}, pair, {}, {})


def arm(testbed: Recorder) -> LiveEnforcement:
    return LiveEnforcement(cast(ServedTestbed, testbed), "arm")


def test_change() -> None:
    found = change({A: plan("1"), B: plan("1")}, {B: plan("2"), C: plan("1")})
    assert (set(found.begin), set(found.change), set(found.end)) == ({C}, {B}, {A})
    assert found.points == 3
    assert change({A: plan("1")}, {A: plan("1")}).points == 0


def test_only_what_changed_is_placed_and_told() -> None:
    testbed = Recorder()
    one = arm(testbed)
    one.up({A: plan("1"), B: plan("1")})
    assert ("run", "a", "up") in testbed.take()
    done = one.update({A: plan("1"), B: plan("2"), C: plan("1")})
    assert testbed.take() == {("put", "b", ("/x/rules",)), ("run", "b", "update"), ("run", "b", "ready"),
                              ("put", "c", ("/x/tool", "/x/rules")), ("run", "c", "up"), ("run", "c", "ready")}
    assert done.points == 2
    assert set(done.slowest) == {"host b", "host c"}


def test_a_host_that_vanished_is_not_spoken_to_but_its_port_is() -> None:
    testbed = Recorder(refuses=("down",))  # its interface is gone, which is no failure of the change
    one = arm(testbed)
    one.up({A: plan("1"), C: plan("1"), PORT_C: plan("1")})
    testbed.take()
    one.update({A: plan("1")}, vanished=("c",))
    assert testbed.take() == {("run", "c", "down")}
    assert set(one.deployment) == {A}


def test_who_is_cut_off_hears_nothing_and_keeps_what_it_has_until_it_is_told() -> None:
    testbed = Recorder()
    one = arm(testbed)
    one.up({A: plan("1"), B: plan("1")})
    testbed.take()
    new = {A: plan("2"), B: plan("2")}
    one.update(new, unreachable=(A,))
    assert {host for _what, host, _ in testbed.take()} == {"b"}
    one.update(new)
    assert {host for _what, host, _ in testbed.take()} == {"a"}


def test_restart_runs_up_again_there_alone() -> None:
    testbed = Recorder()
    one = arm(testbed)
    one.up({A: plan("1"), B: plan("1")})
    testbed.take()
    one.restart((B,))
    assert testbed.take() == {("run", "b", "up"), ("run", "b", "ready")}


def test_a_point_that_refuses_is_named() -> None:
    one = arm(Recorder(refuses=("update",)))
    one.up({A: plan("1")})
    with pytest.raises(DeployError, match="arm: a command failed on a"):
        one.update({A: plan("2")})


def test_an_arm_without_update_commands_says_so() -> None:
    assert updatable({A: plan("1")}) is None
    assert "cannot be updated while it stands" in str(updatable({A: plan("1"), B: plan("1", update=())}))


def test_hosts_forget_each_other_only_where_the_arm_has_them_ask() -> None:
    testbed = Recorder()
    one = arm(testbed)
    one.up({A: plan("1")}, asked=True)
    assert {("neighbours", "a", "del"), ("neighbours", "b", "del")} <= testbed.take()
    one.down()
    assert {("neighbours", "a", "replace"), ("neighbours", "b", "replace")} <= testbed.take()
    one.up({A: plan("1")})
    one.down()
    assert not any(what == "neighbours" for what, _host, _ in testbed.take())
