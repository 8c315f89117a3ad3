"""`labctl selftest` from the call to the exit status: one standing lab, plant after plant."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bench import registry
from bench.experiment import BASELINE, Say
from bench.instruments.datapath import InstrumentError
from bench.selftest.findings import Finding, exit_status
from bench.selftest.measure import Lab
from bench.selftest.plants import ARMS, PLANTS, Plant
from lab import features
from lab.backends import mininet_lab
from lab.bpf.build import BpfBuildError, compiled
from lab.deploy.enforcement import DeployError
from lab.hosts.build import build
from lab.hosts.control import ServiceError
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.model import Enforcer, Feature
from lab.scenario import load

SCENARIO = Path(__file__).parent / "lab.yaml"


def chosen(names: Iterable[str]) -> tuple[Plant, ...]:
    """The plants of these names, all if there are none. Raises LookupError with the names there are."""
    names = tuple(names)
    for name in names:
        if name not in {plant.name for plant in PLANTS}:
            raise LookupError(f"there is no plant '{name}'; there are: {', '.join(p.name for p in PLANTS)}")
    return tuple(plant for plant in PLANTS if not names or plant.name in names)


def try_all(plants: Iterable[Plant], lab: Lab, unsupported: Callable[[Plant], str | None]) -> Iterator[Finding]:
    """Each plant's finding as it comes. One that this machine cannot plant is told, never left out."""
    for plant in plants:
        begin = time.monotonic()
        reason = unsupported(plant)
        if reason:
            yield Finding(plant.name, plant.detector, "", f"unsupported, because {reason}", "UNSUPPORTED", None, 0.0)
            continue
        came = plant.attempt(lab)
        yield Finding(plant.name, plant.detector, came.planted, came.found, came.outcome, came.interval,
                      time.monotonic() - begin)


def delay_object() -> tuple[bytes, str | None]:
    """The compiled delay, or why there is none. To be asked outside of a run's namespaces."""
    try:
        return compiled(registry.delay_source()), None
    except BpfBuildError as err:
        return b"", str(err)


def make(delay: bytes) -> Callable[[str], Enforcer]:
    """Enforcers by arm: the baseline, and the liars of `ARMS`."""
    return lambda name: registry.load(name) if name == BASELINE else registry.liar(name, delay, **ARMS[name])


def run(me: RunIdentity, plants: tuple[Plant, ...], delay: tuple[bytes, str | None], say: Say,
        told: Callable[[Finding], None]) -> int:
    """In the run's namespaces: stand the lab up, try the plants, tell each finding. Exit status as documented."""
    scenario = load(SCENARIO)
    findings: list[Finding] = []
    say("standing up the self-test's lab")
    labhost = build()

    def unsupported(plant: Plant) -> str | None:
        return (delay[1] or features.missing((Feature("tc-bpf", "the delay is a program in the kernel"),))
                if plant.needs_bpf else None)

    try:
        with tempfile.TemporaryDirectory(prefix="labctl-selftest-") as store, \
                mininet_lab.up(scenario.topology, labhost, me.cgroup, actors(scenario.topology)) as testbed:
            lab = Lab(scenario, testbed, make(delay[0]), Path(store), say)
            for finding in try_all(plants, lab, unsupported):
                findings.append(finding)
                told(finding)
    except (mininet_lab.LabDownError, DeployError, InstrumentError, ServiceError, OSError) as err:
        if isinstance(err.__context__, KeyboardInterrupt):  # hosts were gone when the plant was taken away
            return 130
        print(f"labctl: {err}", file=sys.stderr)
        return 3
    return exit_status(findings)
