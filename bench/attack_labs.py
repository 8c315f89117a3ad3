"""A lab for each arm, one after the other, in private namespaces of its own; and one lab with one arm in place.

What is found out inside reaches the asker line by line over a file of no name, so that an interrupt keeps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench import registry, testbeds
from bench.attacks.ground import ToolError
from bench.contract import EnforcerError, Guarded
from lab import confines
from lab.backends.base import Enforcement
from lab.backends.served import LabDownError, ServedTestbed
from lab.deploy.enforcement import READY_TIMEOUT_S, DeployError
from lab.forked import child
from lab.hosts.build import build
from lab.hosts.control import ServiceError
from lab.hosts.roles import actors
from lab.isolation import IsolationError, RunIdentity, run_isolated
from lab.model import Deployment, Flow, Policy, Scenario

Say = Callable[[str], None]
Tell = Callable[[dict[str, object]], None]
Work = Callable[[str, RunIdentity, Tell], int]
FAILURES = (LabDownError, DeployError, EnforcerError, ServiceError, confines.EscapeError, ToolError, OSError)
_PR_SET_PDEATHSIG = 1


class AttackError(RuntimeError):
    """It could not be carried out; the message is for the person who asked."""


def each(scenario: Scenario, arms: Sequence[str], work: Work, take: Callable[[str, dict[str, object]], None]) -> bool:
    """Do `work` for each arm in a lab of its own and `take` all that it told; whether it was interrupted.

    Raises AttackError with what went wrong inside, BuildError.
    """
    build()  # before there are namespaces
    for arm in arms:
        fd = os.memfd_create("attack")
        try:
            status = _forked(lambda a=arm, to=fd: _isolated(scenario, a, to, work))  # type: ignore[misc]
            messages = [json.loads(line) for line in os.pread(fd, os.fstat(fd).st_size, 0).splitlines()]
        finally:
            os.close(fd)
        for message in messages:
            take(arm, message)
        if status == 130:
            return True
        if status:
            why = next((str(m["error"]) for m in messages if "error" in m), f"its lab ended with status {status}")
            raise AttackError(f"{arm}: {why}")
    return False


def _forked(body: Callable[[], int]) -> int:
    """The status of `body` in a child, which ends when we do: who has had a PID namespace once can have no other."""
    def tied() -> int:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return body()

    pid = child(tied)

    def forward(signum: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)

    before = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _isolated(scenario: Scenario, arm: str, to: int, work: Work) -> int:
    def tell(message: dict[str, object]) -> None:
        os.write(to, json.dumps(message).encode() + b"\n")

    def inside(me: RunIdentity) -> int:
        try:
            return work(arm, me, tell)
        except FAILURES as err:
            tell({"error": str(err)})
            return 3

    try:
        return run_isolated(inside, "run", scenario.name)
    except IsolationError as err:
        tell({"error": str(err)})
        return 3


# --- a lab with one arm -----------------------------------------------------------------------


@dataclass(slots=True)
class Lab:
    """A live lab with one arm in place. `agents`: the hosts on which the arm has something."""

    scenario: Scenario
    testbed: ServedTestbed
    enforcer: Guarded
    place: Enforcement
    deployment: Deployment

    @property
    def agents(self) -> frozenset[str]:
        return frozenset(point.host for point in self.deployment if point.kind == "host")

    @contextlib.contextmanager
    def revoke(self, policy: Policy) -> Iterator[None]:
        """`policy` in force in place of the scenario's; the scenario's again afterwards."""
        self._update(policy)
        try:
            yield
        finally:
            self._update(self.scenario.policy)

    def _update(self, policy: Policy) -> None:
        topology = self.scenario.topology
        native = self.enforcer.compile(policy, topology)
        for point, plan in self.enforcer.render(native, topology).items():
            self.testbed.put_at(point, plan.files)
            for argv in plan.update:
                done = self.testbed.run_at(point, argv)
                if done.status:
                    raise DeployError(f"{self.enforcer.name}: {point.host} did not take an update: "
                                      f"{done.stderr.decode(errors='replace').strip()[:200]}")
            deadline = time.monotonic() + READY_TIMEOUT_S
            while self.testbed.run_at(point, plan.ready).status:
                if time.monotonic() > deadline:
                    raise DeployError(f"{self.enforcer.name}: {point.host} is not ready after an update")


@contextlib.contextmanager
def standing(scenario: Scenario, arm: str, me: RunIdentity, say: Say, tell: Tell,
             tried: Iterable[Flow] = ()) -> Iterator[Lab | None]:
    """The scenario's lab with `arm` in place; None where this machine cannot run it. Not taken away: the lab ends.

    There are the declared processes, a binary dropped on every host, and who `tried` asks for.
    """
    if not me.several_users:
        raise LabDownError("attack: its processes act as several users; run it as root, or install uidmap")
    enforcer = registry.load(arm)
    if reason := testbeds.missing("mininet", enforcer.needs()):
        tell({"unsupported": reason})
        yield None
        return
    scenario = replace(scenario, backend="mininet")
    topology = scenario.topology
    say(f"{arm}: standing up {len(topology.hosts)} hosts")
    with testbeds.up(scenario, [enforcer], build(), me, actors(topology, tried), None) as testbed:
        native = enforcer.compile(scenario.policy, topology)
        deployment = enforcer.render(native, topology)
        place = testbed.enforcement(arm, lambda flow: enforcer.covers(flow, topology))
        say(f"{arm}: deploying")
        place.install(native, deployment)
        yield Lab(scenario, testbed, enforcer, place, deployment)
