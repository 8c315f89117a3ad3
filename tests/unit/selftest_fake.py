"""The self-test's plants in memory: the fake backend with the behaviour of the liars, without packets or noise."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

from bench import blocks
from bench.selftest import plants
from bench.selftest.measure import Lab
from bench.selftest.session import SCENARIO
from enforcers.none import NoEnforcer
from lab.backends.base import Enforcement
from lab.backends.fake import FakeServices, FakeTestbed, Lies
from lab.hosts.attempts import Actor, Attempt, Attempted, LoopResult
from lab.model import Enforcer, Family, Flow, Outcome, Topology
from lab.scenario import load
from tests.mirror import Mirror

LIES = {
    "leaks a port": Lies(leak_port=plants.LEAKED), "leaks in silence": Lies(one_way=plants.SILENT),
    "drops a rule": Lies(drop_rule=plants.RULE), "forgets": Lies(lose_telemetry=plants.UNTOLD),
    "answers late": Lies(slow_us=float(plants.WAIT_US)),
}
BARE = ("answers late", "answers at once", "caps")
CRR_US = 4.2  # what the drift adds with every window: as if each took some 14 ms


class Between(Mirror):
    """Mirror at the router: it claims what crosses segments, or nothing."""

    def covers(self, flow: Flow, topology: Topology) -> bool:
        return self.name not in BARE and topology.hosts[flow.source].segment != topology.hosts[flow.target].segment


class Services(FakeServices):
    def __init__(self, testbed: Testbed, seed: int) -> None:
        super().__init__(testbed, seed)
        self.closed: set[tuple[str, str, int]] = set()
        self.chance = random.Random(seed)
        self.drift_us: float | None = None

    def request(self, actor: Actor, verb: str, *args: str, timeout_s: float = 1.0) -> tuple[str, ...]:
        if verb in ("listen", "unlisten"):
            change = self.closed.add if verb == "unlisten" else self.closed.discard
            change((actor.host, args[0], int(args[1])))
        return ()

    def _try(self, attempt: Attempt) -> Attempted:
        got = super()._try(attempt)
        asked = (self._by_address["", attempt.address], attempt.proto, attempt.port)
        if got.outcome == Outcome.OPEN and asked in self.closed:
            return got._replace(outcome=Outcome.REFUSED, arrived=False)
        lossy = self._testbed.state.arm == "loses datagrams" and attempt.port in plants.DATAGRAMS
        if lossy and attempt.proto == "udp" and got.outcome == Outcome.OPEN and self.chance.random() < plants.LOST:
            return got._replace(outcome=Outcome.TIMED_OUT, arrived=False)
        return got

    def crr(self, actor: Actor, family: Family, address: str, port: int, seconds: float,
            rate: float = 0) -> LoopResult:
        got = super().crr(actor, family, address, port, seconds)
        if self.drift_us is None:
            return got
        self.drift_us += CRR_US
        return replace(got, latencies_us=got.latencies_us + plants.DRIFT_FROM_US / 10 + self.drift_us)


class Weather:
    """The drift, put in place and taken away."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def install(self, *_: object) -> None:
        self.up()

    def up(self) -> float:
        self.services.drift_us = 0.0
        return 0.0

    def down(self) -> None:
        self.services.drift_us = None


class Testbed(FakeTestbed):
    def __init__(self, topology: Topology) -> None:
        super().__init__(topology, LIES)
        self.services: Services = Services(self, 1)

    def enforcement(self, arm: str, covers: Callable[[Flow], bool]) -> Enforcement:
        return Weather(self.services) if arm == "drifts" else super().enforcement(arm, covers)  # type: ignore[return-value]

    def bulk_bps(self) -> float:
        capped = self.state.arm == "caps"
        return (plants.CAP_BPS * plants.PAYLOAD if capped else 1e10) * self.services.chance.uniform(0.99, 1.01)


def make(name: str) -> Enforcer:
    return NoEnforcer() if name == "none" else Between(name)


class Steady:
    """A yardstick that does not look at the machine on which the tests happen to run."""

    def __init__(self, _cpu: int) -> None:
        self._chance = random.Random(1)

    def read(self) -> float:
        return self._chance.uniform(30.0, 30.6)

    def close(self) -> None:
        pass


@contextlib.contextmanager
def lab(store: Path) -> Iterator[Lab]:
    scenario = load(SCENARIO)
    with mock.patch.object(blocks, "Yardstick", Steady):
        yield Lab(scenario, Testbed(scenario.topology), make, store, lambda _text: None)
