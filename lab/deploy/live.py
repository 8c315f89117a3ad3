"""An arm's Deployment that changes while it stands: what is new, what is other, what is gone, each carried out timed.

Here labctl itself places files and runs commands at the points, without ansible-runner, whose start would be most of
the time. `update` is the enforcer's own word for changing over without a moment unprotected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lab.backends import neighbours
from lab.backends.base import Completed
from lab.backends.served import ServedTestbed
from lab.deploy.enforcement import READY_TIMEOUT_S, DeployError
from lab.model import Deployment, Host, Point, PointPlan, Topology

_AT_ONCE = 8
Commands = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Change:
    """From one Deployment to another: points that begin, that change their files, that end."""

    begin: Deployment
    change: Deployment
    end: Deployment

    @property
    def points(self) -> int:
        return len(self.begin) + len(self.change) + len(self.end)


@dataclass(frozen=True, slots=True)
class Delivered:
    """One change carried out: seconds for placing files, for the points' own commands, until all said ready."""

    place_s: float = 0.0
    point_s: float = 0.0
    ready_s: float = 0.0
    points: int = 0
    slowest: Mapping[str, float] = field(default_factory=dict)  # by point, its commands' seconds


def change(old: Deployment, new: Deployment) -> Change:
    """What has to be done to get from `old` to `new`. Points whose files and commands are the same are left alone."""
    return Change({point: plan for point, plan in new.items() if point not in old},
                  {point: plan for point, plan in new.items() if point in old and plan != old[point]},
                  {point: plan for point, plan in old.items() if point not in new})


def updatable(deployment: Deployment) -> str | None:
    """Why an arm cannot take a change while it stands, in a line, or None if it can."""
    lacking = [point.host for point, plan in deployment.items() if not plan.update]
    if not lacking:
        return None
    return f"cannot be updated while it stands: its plan for {lacking[0]} has no update commands"


class LiveEnforcement:
    """One arm in place on a testbed of real hosts. Raises DeployError naming the point and what it said."""

    def __init__(self, testbed: ServedTestbed, arm: str) -> None:
        self._testbed, self.arm = testbed, arm
        self.deployment: Deployment = {}
        self._asked = False

    def up(self, deployment: Deployment, *, asked: bool = False) -> float:
        """Put it in place at every point; seconds until every point says ready. `asked`: Native.neighbours."""
        begin = time.monotonic()
        self.deployment, self._asked = deployment, asked
        self._place(deployment, {})
        self._run({point: plan.up for point, plan in deployment.items()})
        self.unacquaint()
        self._await_ready(deployment)
        return time.monotonic() - begin

    def restart(self, points: Collection[Point] | None = None) -> float:
        """Run `up` again, at all points or at these, as whoever repairs them does; seconds until they say ready."""
        begin = time.monotonic()
        chosen = {p: plan for p, plan in self.deployment.items() if points is None or p in points}
        self._run({point: plan.up for point, plan in chosen.items()})
        self._await_ready(chosen)
        return time.monotonic() - begin

    def update(self, new: Deployment, vanished: Collection[str] = (),
               unreachable: Collection[Point] = ()) -> Delivered:
        """Change over to `new`. Points on hosts that have `vanished` ended with them; `unreachable` ones hear nothing.

        What is unreachable keeps what it has, and is changed by the next call. At the port of a host that has vanished
        `down` is run for what it keeps elsewhere; it may fail, since the interface is gone.
        """
        steps = change(self.deployment, new)
        cut = frozenset(unreachable)
        begin, changed = without(steps.begin, cut), without(steps.change, cut)
        end = _still_there(without(steps.end, cut), vanished)
        t0 = time.monotonic()
        self._place({**begin, **changed}, self.deployment)
        t1 = time.monotonic()
        took = self._run({**{p: plan.down for p, plan in end.items()}, **{p: plan.up for p, plan in begin.items()},
                          **{p: plan.update for p, plan in changed.items()}}, gone=vanished)
        t2 = time.monotonic()
        self._await_ready({**begin, **changed})
        kept = {p: plan for p, plan in self.deployment.items() if p in cut}
        self.deployment = {**without(new, cut), **kept}
        slowest = {f"{p.kind} {p.host}": seconds for p, seconds in took.items()}
        return Delivered(t1 - t0, t2 - t1, time.monotonic() - t2, len(begin) + len(changed) + len(end), slowest)

    def down(self, vanished: Collection[str] = ()) -> None:
        """Take it away from every point that is still there."""
        try:
            self._run({p: plan.down for p, plan in _still_there(self.deployment, vanished).items()}, gone=vanished)
        finally:
            self._tell_hosts(neighbours.known)
            self.deployment = {}

    def unacquaint(self) -> None:
        """Where the arm has hosts ask for each other: let them forget whom they know, as after a host has come."""
        self._tell_hosts(neighbours.forgotten)

    # --- parts ---

    def _tell_hosts(self, lines: Callable[[Host, Topology], Iterator[str]]) -> None:
        if not self._asked:
            return
        topology = self._testbed.topology
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda host: self._testbed.run(
                    host.name, ["ip", "-force", "-batch", "-"],
                    input="".join(f"{line}\n" for line in lines(host, topology)).encode()), topology.hosts.values()):
                pass

    def _place(self, deployment: Deployment, there: Deployment) -> None:
        """Only files that are not there as they are."""
        for point, plan in deployment.items():
            known = there[point].files if point in there else {}
            files = {path: content for path, content in plan.files.items() if known.get(path) != content}
            if files:
                self._testbed.put_at(point, files)

    def _run(self, commands: Mapping[Point, Commands], gone: Collection[str] = ()) -> dict[Point, float]:
        """Each point's commands in order, points beside each other; seconds of each. `gone`: hosts that may fail."""
        def one(item: tuple[Point, Commands]) -> tuple[Completed, float]:
            begin, done = time.monotonic(), Completed(0, b"", b"")
            for argv in item[1]:
                done = self._testbed.run_at(item[0], argv)
                if done.status:
                    break
            return done, time.monotonic() - begin

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            got = dict(zip(commands, pool.map(one, commands.items()), strict=True))
        for point, (done, _) in got.items():
            if done.status and point.host not in gone:
                raise DeployError(f"{self.arm}: a command failed on {point.host} (status {done.status}): {_said(done)}")
        return {point: seconds for point, (_, seconds) in got.items()}

    def _await_ready(self, deployment: Deployment) -> None:
        deadline, waiting = time.monotonic() + READY_TIMEOUT_S, dict(deployment)
        while waiting:
            def ready(item: tuple[Point, PointPlan]) -> Completed:
                return self._testbed.run_at(item[0], item[1].ready)

            with ThreadPoolExecutor(_AT_ONCE) as pool:
                got = dict(zip(waiting, pool.map(ready, waiting.items()), strict=True))
            waiting = {point: plan for point, plan in waiting.items() if got[point].status}
            if waiting and time.monotonic() > deadline:
                point = next(iter(waiting))
                raise DeployError(f"{self.arm}: {point.host} is not ready after {READY_TIMEOUT_S:g} s: "
                                  f"{_said(got[point])}")


def without(deployment: Deployment, points: Collection[Point]) -> Deployment:
    """The Deployment but for these points."""
    return {point: plan for point, plan in deployment.items() if point not in points}


def _still_there(deployment: Deployment, vanished: Collection[str]) -> Deployment:
    """A switch port can be seen to when its host is gone; what was on the host went with it."""
    return {p: plan for p, plan in deployment.items() if not (p.kind == "host" and p.host in vanished)}


def _said(done: Completed) -> str:
    return (done.stdout + done.stderr).decode(errors="replace").strip()[:300]
