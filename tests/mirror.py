"""An enforcer for the fake backend: it enforces the policy as it is written, and its telemetry is a Sighting a line."""

from __future__ import annotations

import json
from collections.abc import Iterable

from lab.model import Deployment, Feature, Flow, Native, Point, PointPlan, Policy, Sighting, Topology


class Mirror:
    """Claims everything, does exactly what is intended: whatever else comes out was planted."""

    def __init__(self, name: str = "mirror") -> None:
        self.name = name

    def needs(self) -> tuple[Feature, ...]:
        return ()

    def compile(self, policy: Policy, topology: Topology) -> Native:
        return Native({}, policy, (), len(policy.rules))

    def render(self, native: Native, topology: Topology) -> Deployment:
        return {Point("router", topology.router): PointPlan({}, (), (), (), (), ())}

    def covers(self, flow: Flow, topology: Topology) -> bool:
        return True

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        return (Sighting(**json.loads(line)) for line in lines)
