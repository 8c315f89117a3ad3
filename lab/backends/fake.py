"""The fake backend: the testbed's protocol in memory, with an enforcer's behaviour and planted lies instead of packets.

It exists to test what judges: a lie planted here must come out of the experiment as exactly that lie.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import IO

import numpy as np

from lab import policy
from lab.backends.base import Completed, HostProcess, Installed, Usage
from lab.hosts.attempts import Actor, Attempt, Attempted, Exploited, LoopResult
from lab.hosts.roles import path_of
from lab.model import Deployment, Family, Flow, Native, Outcome, Point, Policy, Sighting, Topology

Covers = Callable[[Flow], bool]
_CRR_US, _RR_US = 70.0, 16.0  # what an exchange takes here when nobody lies


@dataclass(frozen=True, slots=True)
class Lies:
    """What is planted. Everything off by default: an honest network."""

    leak_port: int | None = None  # this port is open whatever the policy says
    drop_rule: str | None = None  # this rule is not enforced
    one_way: int | None = None  # denied datagrams to this port arrive, their replies do not come back
    lose_telemetry: float = 0.0  # this share of sightings is lost
    dead: frozenset[tuple[str, str]] = frozenset()  # (host, process) whose listeners are gone
    slow_us: float = 0.0  # added to every exchange
    jitter_us: float = 1.0  # honest noise


@dataclass(slots=True)
class _State:
    """What is in force now, and what its telemetry holds."""

    arm: str = "none"
    native: Native | None = None
    covers: Covers = field(default=lambda _flow: False)
    seen: list[Sighting] = field(default_factory=list)


class FakeTestbed:
    """A testbed in memory. `lies` holds by arm; the arm "" lies under every arm (a dead server, say)."""

    def __init__(self, topology: Topology, lies: Mapping[str, Lies], seed: int = 1) -> None:
        self.topology = topology
        self.lies = dict(lies)
        self.state = _State()
        self.services = FakeServices(self, seed)

    def lie(self) -> Lies:
        everywhere = self.lies.get("", Lies())
        return replace(self.lies.get(self.state.arm, Lies()), dead=everywhere.dead | self._dead())

    def _dead(self) -> frozenset[tuple[str, str]]:
        return self.lies.get(self.state.arm, Lies()).dead

    def run(self, host: str, argv: Sequence[str], *, input: bytes = b"", daemon: bool = False) -> Completed:
        """Whatever it is, it says nothing."""
        return Completed(0, b"", b"")

    def bulk_bps(self) -> float:
        """What iperf3's client tells, from the planted slowness."""
        return 1e10 * _RR_US / (_RR_US + self.lie().slow_us)

    def spawn(self, host: str, argv: Sequence[str], *, process: str | None = None,
              env: Mapping[str, str] | None = None) -> HostProcess:
        """A server, or iperf3's client (-c)."""
        told = json.dumps({"end": {"sum_received": {"bits_per_second": self.bulk_bps()}}})
        return FakeProcess(told.encode()) if "-c" in argv else FakeProcess()

    def put(self, host: str, files: Mapping[str, bytes]) -> None:
        """Nothing: there are no files."""

    def usage(self, memory: bool = True) -> Usage:
        return Usage({}, {}, {}, "fake")

    def enforcement(self, arm: str, covers: Covers) -> FakeEnforcement:
        return FakeEnforcement(self, arm, covers)


class FakeProcess:
    """A process that has said something, that it listens if nothing else, and has ended."""

    def __init__(self, said: bytes = b"listening\n") -> None:
        self.stdin: IO[bytes] = io.BytesIO()
        self.stdout: IO[bytes] = io.BytesIO(said)
        self.pid = 0

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def kill(self) -> None:
        """Nothing: it has ended."""


class FakeEnforcement:
    """Puts a compiled policy in force by remembering it."""

    def __init__(self, testbed: FakeTestbed, arm: str, covers: Covers) -> None:
        self._testbed, self._arm, self._covers = testbed, arm, covers
        self._native: Native | None = None

    def install(self, native: Native, deployment: Deployment) -> Installed:
        self._native = native
        self.up()
        return Installed(0.0, 0.0, len(deployment))

    def up(self) -> float:
        self._testbed.state = _State(self._arm, self._native, self._covers)
        return 0.0

    def down(self) -> None:
        self._testbed.state = _State()

    def collect(self) -> Mapping[Point, list[bytes]]:
        seen, self._testbed.state.seen = self._testbed.state.seen, []
        return {Point("router", self._testbed.topology.router): [json.dumps(asdict(s)).encode() for s in seen]}


class FakeServices:
    """Answers attempts from the policy in force and the planted lies."""

    def __init__(self, testbed: FakeTestbed, seed: int) -> None:
        self._testbed = testbed
        self._rng = np.random.default_rng(seed)
        self._loss = random.Random(seed)
        self._ports = iter(range(20_000, 10_000_000))
        topology = testbed.topology
        self._owners = {(host, offer.proto, offer.port): offer.process
                        for host, offers in policy.offered(topology).items() for offer in offers}
        self._by_address = {(topology.tenant(h.name), h.address(f)): h.name
                            for h in topology.hosts.values() for f in (4, 6)}

    def probe(self, attempts: Sequence[Attempt], timeout_s: float = 1.0, window: int = 0) -> list[Attempted]:
        return [self._try(attempt) for attempt in attempts]

    def exploit_all(self, attempts: Sequence[Attempt], nonces: Sequence[int],
                    timeout_s: float = 1.0) -> list[Exploited]:
        return [self._exploit(attempt) for attempt, _nonce in zip(attempts, nonces, strict=True)]

    def _exploit(self, attempt: Attempt) -> Exploited:
        got, flow = self._try(attempt), self._flow(attempt)
        process = self._testbed.topology.processes.get(flow.target_process)
        if got.outcome == Outcome.OPEN and process and process.vulnerable:
            return Exploited(got, flow.target, process.name, process.user)
        return Exploited(got, "", "", "")

    def crr(self, actor: Actor, family: Family, address: str, port: int, seconds: float,
            rate: float = 0) -> LoopResult:
        return self._loop(_CRR_US)

    def rr(self, actor: Actor, family: Family, address: str, port: int, seconds: float) -> LoopResult:
        return self._loop(_RR_US)

    def request(self, actor: Actor, verb: str, *args: str, timeout_s: float = 1.0) -> tuple[str, ...]:
        return ()

    def drain_events(self) -> list[tuple[Actor, tuple[str, ...]]]:
        return []

    def _loop(self, base_us: float) -> LoopResult:
        lie = self._testbed.lie()
        latencies = base_us + lie.slow_us + np.abs(self._rng.normal(0.0, lie.jitter_us, 2000))
        elapsed = float(latencies.sum()) / 1e6
        return LoopResult(len(latencies), 0, elapsed, elapsed, latencies)

    def _flow(self, attempt: Attempt) -> Flow:
        target = self._by_address[self._testbed.topology.tenant(attempt.actor.host), attempt.address]
        owner = self._owners.get((target, attempt.proto, attempt.port), "")
        actor = attempt.actor
        return Flow(actor.host, actor.process, actor.user, target, owner, attempt.proto, attempt.port, attempt.family)

    def _try(self, attempt: Attempt) -> Attempted:
        flow, lie, now = self._flow(attempt), self._testbed.lie(), time.monotonic()
        allowed = self._allows(flow, lie)
        outcome, arrived = (Outcome.OPEN, True) if allowed else (Outcome.TIMED_OUT, False)
        if not allowed and lie.one_way == flow.port and flow.proto == "udp":
            arrived = True
        if allowed and (flow.target, flow.target_process) in lie.dead:
            outcome, arrived = Outcome.REFUSED, False
        sport = next(self._ports)
        size = 64 if outcome is Outcome.OPEN else 0
        self._record(flow, attempt, sport, now, size, allowed)
        return Attempted(attempt, outcome, 0, arrived, now if arrived else None, now, 30.0, 60.0, sport, size)

    def _allows(self, flow: Flow, lie: Lies) -> bool:
        state = self._testbed.state
        if state.native is None or not state.covers(flow) or lie.leak_port == flow.port:
            return True
        effective = state.native.effective
        rules = tuple(rule for rule in effective.rules if rule.name != lie.drop_rule)
        return policy.decide(Policy(effective.default, rules), flow, self._testbed.topology).allow

    def _record(self, flow: Flow, attempt: Attempt, sport: int, now: float, size: int, allowed: bool) -> None:
        state, topology = self._testbed.state, self._testbed.topology
        if state.native is None or not state.covers(flow) or self._loss.random() < self._testbed.lie().lose_telemetry:
            return
        path = path_of(topology, flow.process)
        state.seen.append(Sighting(
            flow.target, now, flow.proto, topology.hosts[flow.source].address(flow.family), sport, attempt.address,
            flow.port, path, flow.user, None, size + 40 if size else 40, 1, "allow" if allowed else "deny", None))


@contextlib.contextmanager
def up(topology: Topology, lies: Mapping[str, Lies]) -> Iterator[FakeTestbed]:
    """A fake testbed. Nothing has to be started."""
    yield FakeTestbed(topology, lies)
