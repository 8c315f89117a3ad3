"""The probe: tries flows as the declared process and user, and says what happened to each, never what it means."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lab.backends.base import Services
from lab.hosts.attempts import Actor, Attempt, Attempted
from lab.hosts.roles import path_of
from lab.model import Flow, Observation, Outcome, Topology, Truth

TIMEOUT_S = 1.5  # longer than one SYN retransmission (1 s), so that a single lost packet is no verdict
WINDOW = 16_384  # at most: what the machine cannot answer in time, it is not asked at a time


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe run yields: one observation a flow, and the truth of every attempt it made."""

    observations: tuple[Observation, ...]
    truths: tuple[Truth, ...]


def attempt(flow: Flow, topology: Topology) -> Attempt:
    address = topology.hosts[flow.target].address(flow.family)
    return Attempt(Actor(flow.source, flow.process, flow.user), flow.proto, flow.family, address, flow.port)


def probe(services: Services, flows: Sequence[Flow], topology: Topology, *, kind: str = "probe",
          timeout_s: float = TIMEOUT_S, window: int = WINDOW) -> Probed:
    """Try every flow once, asynchronously; at most `window` are under way at a time."""
    got = services.probe([attempt(flow, topology) for flow in flows], timeout_s, window)
    observations = tuple(observation(flow, a) for flow, a in zip(flows, got, strict=True))
    truths = tuple(truth(flow, a, topology, kind) for flow, a in zip(flows, got, strict=True))
    return Probed(observations, truths)


def observation(flow: Flow, got: Attempted) -> Observation:
    return Observation(flow, Outcome(got.outcome), got.errno, got.arrived, got.start, got.connect_us,
                       got.total_us, got.sport)


def truth(flow: Flow, got: Attempted, topology: Topology, kind: str) -> Truth:
    """The attempt as it was really made, from the client's own record joined with the target's."""
    source, target = topology.hosts[flow.source], topology.hosts[flow.target]
    path = path_of(topology, flow.process)
    end = got.start + (got.total_us or 0.0) / 1e6
    return Truth(kind, flow.source, flow.process, path, flow.user, flow.target, flow.proto,
                 source.address(flow.family), got.sport, target.address(flow.family), flow.port, got.start, end,
                 got.bytes, got.outcome, got.arrived)


def shuffled(flows: Sequence[Flow], seed: int) -> list[Flow]:
    """The flows in a seeded random order, so that no host is hit by all its attempts at once."""
    order = list(flows)
    random.Random(seed).shuffle(order)
    return order

