"""The one place that knows which backend a scenario stands on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lab import features
from lab.backends import docker_engine, docker_specs, mininet_lab
from lab.backends.docker_engine import Engine
from lab.backends.served import ServedTestbed
from lab.hosts import contents
from lab.hosts.attempts import Actor
from lab.hosts.build import build
from lab.isolation import RunIdentity
from lab.model import ORIGINAL, REWRITTEN, Backend, Enforcer, Feature, Point, Scenario


def prepare(backend: Backend) -> Engine | None:
    """What the backend needs from outside of a run's namespaces, before there are any.

    Raises EngineError or BuildError, in one line.
    """
    if backend == "mininet":
        return None
    build(static=True)
    return docker_engine.reach()


def with_contents(scenario: Scenario, labhost: Path) -> Scenario:
    """The scenario with the digests of the built-in contents that it tells apart, as this backend places them."""
    if not any(process.sha256 in (ORIGINAL, REWRITTEN) for process in scenario.topology.processes.values()):
        return scenario
    service = labhost if scenario.backend == "mininet" else build(static=True)
    return replace(scenario, topology=contents.resolved(scenario.topology, service))


@contextlib.contextmanager
def up(scenario: Scenario, enforcers: Iterable[Enforcer], labhost: Path, me: RunIdentity, actors: Collection[Actor],
       engine: Engine | None) -> Iterator[ServedTestbed]:
    """The scenario's network with its services, on Mininet or on `engine`. Raises LabDownError or OSError."""
    if engine is None:
        with mininet_lab.up(scenario.topology, labhost, me.cgroup, actors) as testbed:
            yield testbed
        return
    from lab.backends import docker_lab

    with docker_lab.up(scenario.topology, engine, me, actors, demands(scenario, enforcers)) as contained:
        yield contained


def missing(backend: Backend, needs: tuple[Feature, ...]) -> str | None:
    """Why an arm with these needs cannot run here on this backend and what to do, in one line, or None if it can."""
    if backend == "docker":
        elsewhere = tuple(need for need in needs if not docker_specs.only_here(need))
        return features.missing(elsewhere) or docker_specs.missing(needs)
    return next(filter(None, map(docker_specs.only_here, needs)), None) or features.missing(needs)


def unsupported(scenario: Scenario, enforcer: Enforcer) -> str | None:
    """Why this arm cannot run this scenario here, in one line, or None if it can."""
    if any(scenario.topology.tenants) and not getattr(enforcer, "knows_tenants", False):
        return f"the scenario has tenants, whose addresses may be the same, and {enforcer.name} goes by address alone"
    return missing(scenario.backend, enforcer.needs())


def demands(scenario: Scenario, enforcers: Iterable[Enforcer]) -> Mapping[str, frozenset[str]]:
    """By place (a host, the router, the switch), the features that these arms need there: no more is granted."""
    found: dict[str, frozenset[str]] = {}
    for enforcer in enforcers:
        if missing("docker", enforcer.needs()):
            continue  # it will not run, so nobody needs anything for it
        everywhere = frozenset(feature.name for feature in enforcer.needs())
        needed_at: Callable[[Point], Iterable[Feature]] | None = getattr(enforcer, "needs_at", None)
        native = enforcer.compile(scenario.policy, scenario.topology)
        for point in enforcer.render(native, scenario.topology):
            place = docker_specs.place_of(point)
            needs = frozenset(need.name for need in needed_at(point)) if needed_at else everywhere
            found[place] = found.get(place, frozenset()) | needs
    return found
