"""Honest traffic on a testbed: the locust processes of a scenario, placed and started as its declared process."""

from __future__ import annotations

import contextlib
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.instruments import traffic
from bench.instruments.traffic import Traffic
from lab.backends.base import HostProcess
from lab.backends.served import ServedTestbed
from lab.isolation import mount
from lab.model import Scenario
from lab.policy_sets import Oracle

SITE = Path("/run/site")  # this environment's packages, readable by every user of the lab wherever they really lie
_PLACE = "/run/host/traffic"
_PYTHON = "/run/host/python"
_MS_BIND = 0x1000


def share_packages() -> None:
    """Show this environment's packages at SITE, before any host stands: its own path may be closed to other users."""
    SITE.mkdir()
    mount(sysconfig.get_path("purelib"), str(SITE), None, _MS_BIND)


@contextlib.contextmanager
def clients(scenario: Scenario, testbed: ServedTestbed) -> Iterator[Traffic | None]:
    """The scenario's clients, ready; None where it has no traffic."""
    wanted = scenario.traffic
    if wanted is None:
        yield None
        return
    locustfile = Path(wanted.locustfile)
    files = {f"{_PLACE}/worker.py": traffic.WORKER.read_bytes(),
             **{f"{_PLACE}/{part.name}": part.read_bytes() for part in traffic.BESIDE_WORKER},
             f"{_PLACE}/{locustfile.name}": locustfile.read_bytes(), _PYTHON: traffic.interpreter().read_bytes()}
    path = scenario.topology.processes[wanted.process].path
    for host in wanted.clients:
        testbed.put(host, files)
        # Over the built-in service of the same path, which goes on running: both have the declared identity.
        done = testbed.shadow(host, _PYTHON, path)
        if done.status:
            raise traffic.TrafficError(f"traffic: {host}: {done.stderr.decode(errors='replace').strip()}")

    def spawn(host: str, argv: Sequence[str], env: Mapping[str, str]) -> HostProcess:
        return testbed.spawn(host, argv, process=wanted.process, env={**env, "PYTHONPATH": str(SITE)})

    with Traffic(spawn, scenario.topology, process=wanted.process, locustfile=f"{_PLACE}/{locustfile.name}",
                 per_client=targets(scenario), seed=scenario.seed, worker=f"{_PLACE}/worker.py") as running:
        yield running


def targets(scenario: Scenario) -> dict[str, tuple[traffic.Target, ...]]:
    """What each client asks for: every declared TCP service that the policy allows its process, and that is named."""
    wanted, topology = scenario.traffic, scenario.topology
    assert wanted is not None
    oracle = Oracle(scenario.policy, topology)
    arrays = oracle.encode_all(scenario)
    allow, _rule = oracle.decide_many(arrays)
    flows = [f for f in oracle.decode(arrays.take(allow.nonzero()[0]))
             if f.process == wanted.process and f.source in wanted.clients and f.target != f.source
             and f.user == topology.processes[wanted.process].user
             and (not wanted.target_hosts or f.target in wanted.target_hosts)]
    return {client: traffic.targets([f for f in flows if f.source == client], topology) for client in wanted.clients}
