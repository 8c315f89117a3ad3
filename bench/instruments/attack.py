"""The attacker: from a foothold, scan, take what is reachable and vulnerable, act from there, until nothing is left.

It acts through the process it has taken and through a binary it dropped beside it (the host's undeclared executable,
under user nobody). Both use real packets; both are scored, apart. What it is given: the addresses of the scenario's
hosts and the TCP ports that are offered on each; everything else it must find by connecting.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.instruments.probe import observation, truth
from lab.backends.base import Services
from lab.hosts.attempts import Actor, Attempt, Attempted
from lab.model import STRANGER, Attack, Flow, Observation, Topology, Truth

SCAN_TIMEOUT_S = 0.8
DROPPED_USER = "nobody"


@dataclass(frozen=True, slots=True)
class Step:
    """One host taken: from where, through the taken process or the dropped binary, and when.

    `after_s`: seconds from the start; `attempts`: those made until then.
    """

    source: str
    target: str
    process: str
    port: int
    channel: str
    after_s: float
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Campaign:
    """What one foothold led to. `by_process` counts hosts taken with no dropped binary anywhere on the way."""

    steps: tuple[Step, ...]
    taken: tuple[str, ...]
    by_process: tuple[str, ...]
    reached: bool
    time_to_goal_s: float | None
    attempts: int
    observations: tuple[Observation, ...]
    truths: tuple[Truth, ...]


def run(services: Services, attack: Attack, topology: Topology, seed: int) -> Campaign:
    """One campaign, breadth first, to the end (not only to the goal: the blast radius is asked for too)."""
    return _Attacker(services, attack, topology, seed).run()


def actor(host: str, process: str, topology: Topology) -> Actor:
    """Who acts from a position: the process as its user, a dropped binary (`STRANGER`) as nobody."""
    return Actor(host, process, DROPPED_USER if process == STRANGER else topology.processes[process].user)


def targets(by: Actor, topology: Topology) -> list[Flow]:
    """What a position scans: every TCP port that another host offers."""
    return [Flow(by.host, by.process, by.user, host.name, name, "tcp", port, 4)
            for host in topology.hosts.values() if host.name != by.host
            for name in host.runs for service in topology.processes[name].listens if service.proto == "tcp"
            for port in range(service.low, service.high + 1)]


def attempt(flow: Flow, topology: Topology) -> Attempt:
    """The flow as it is tried."""
    return Attempt(Actor(flow.source, flow.process, flow.user), "tcp", 4, topology.hosts[flow.target].v4, flow.port)


class _Attacker:
    def __init__(self, services: Services, attack: Attack, topology: Topology, seed: int) -> None:
        self.services, self.attack, self.topology = services, attack, topology
        self.rng = random.Random(seed)
        self.steps: list[Step] = []
        self.observations: list[Observation] = []
        self.truths: list[Truth] = []
        self.begin = time.monotonic()

    def run(self) -> Campaign:
        start = (self.attack.foothold_host, self.attack.foothold_process)
        taken, pure = {start[0]: start[1]}, {start[0]}
        frontier = [start]
        while frontier:
            host, process = frontier.pop(0)
            for step in self._act(host, process, taken, pure):
                if step.target not in taken:
                    taken[step.target] = step.process
                    frontier.append((step.target, step.process))
                if step.channel == "process" and host in pure:
                    pure.add(step.target)
                self.steps.append(step)
        goal = [s.after_s for s in self.steps if s.target in self.attack.goals]
        return Campaign(tuple(self.steps), tuple(taken), tuple(sorted(pure)), bool(goal), min(goal, default=None),
                        len(self.observations), tuple(self.observations), tuple(self.truths))

    def _act(self, host: str, process: str, taken: dict[str, str], pure: set[str]) -> list[Step]:
        """Scan from one position through both channels at once, then try the exploit on every port found open.

        The process also tries hosts that so far only a binary took: the channels are compared, so neither is skipped.
        """
        known = {"process": set(taken) & pure, "binary": set(taken)}
        plan = [(channel, flow) for channel in ("process", "binary")
                for flow in targets(actor(host, process if channel == "process" else STRANGER, self.topology),
                                    self.topology) if flow.target not in known[channel]]
        self.rng.shuffle(plan)
        flows = [flow for _channel, flow in plan]
        got = self.services.probe([attempt(flow, self.topology) for flow in flows], SCAN_TIMEOUT_S)
        self._keep(flows, got)
        return self._exploit([one for one, seen in zip(plan, got, strict=True) if seen.outcome == "OPEN"])

    def _exploit(self, opened: Sequence[tuple[str, Flow]]) -> list[Step]:
        """The exploit on one port after another of each host and channel until it is taken; hosts beside each other.

        The steps are in the order of `opened`, so that what follows does not hang on which answer came first.
        """
        ports: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, (channel, flow) in enumerate(opened):
            ports[channel, flow.target].append(index)
        found: dict[int, Step] = {}
        while ports:
            tried = [indexes.pop(0) for indexes in ports.values()]
            flows = [opened[index][1] for index in tried]
            nonces = [self.rng.getrandbits(63) for _ in flows]
            got = self.services.exploit_all([attempt(flow, self.topology) for flow in flows], nonces, SCAN_TIMEOUT_S)
            self._keep(flows, [one.attempted for one in got])
            after_s = time.monotonic() - self.begin
            found |= {index: Step(opened[index][1].source, one.host, one.process, opened[index][1].port,
                                  opened[index][0], after_s, len(self.observations))
                      for index, one in zip(tried, got, strict=True) if one.owned}
            ports = {key: left for (key, left), one in zip(ports.items(), got, strict=True) if left and not one.owned}
        return [found[index] for index in sorted(found)]

    def _keep(self, flows: Sequence[Flow], got: Sequence[Attempted]) -> None:
        for flow, seen in zip(flows, got, strict=True):
            self.observations.append(observation(flow, seen))
            self.truths.append(truth(flow, seen, self.topology, "attack"))
