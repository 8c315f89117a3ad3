"""The baseline: no enforcement at all. The noop sibling of every driver."""

from __future__ import annotations

from collections.abc import Iterable

from lab.model import Approximation, Deployment, Feature, Flow, Native, Point, Policy, Sighting, Topology


class NoEnforcer:
    """Enforces nothing, places nothing, sees nothing."""

    name = "none"
    knows_tenants = True  # there is nothing to confuse

    def needs(self) -> tuple[Feature, ...]:
        return ()

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """No rules; one approximation stands for all, since a line per rule would say the same."""
        everything = Approximation("(all)", "omitted", "nothing is enforced")
        return Native({}, Policy(default="allow", rules=()), (everything,), 0)

    def render(self, native: Native, topology: Topology) -> Deployment:
        return {}

    def covers(self, flow: Flow, topology: Topology) -> bool:
        return False

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        return ()
