"""How fast blast radius from every foothold comes of the observed matrix of 1,000 hosts. `make bench`."""

from __future__ import annotations

import random
import time

import pytest

from bench.analysis.paths import Positions, Spread, vulnerable
from lab.model import STRANGER, Flow, Host, Process, Service, Topology

HOSTS, OPEN = 1000, 1_000_000


def _world() -> tuple[Topology, list[Flow]]:
    rng = random.Random(1)
    processes = {f"p{i}": Process(f"p{i}", f"/opt/p{i}", f"u{i}", 20000 + i, (Service("tcp", 1000 + i, 1000 + i),))
                 for i in range(50)}
    hosts = {f"h{i}": Host(f"h{i}", "s", f"10.0.{i // 250}.{i % 250 + 2}", f"fd00::{i:x}", f"02:00:00:00:{i >> 8:02x}:"
                           f"{i & 255:02x}", {}, tuple(rng.sample(sorted(processes), 3))) for i in range(HOSTS)}
    names, opened = list(hosts), []
    for _ in range(OPEN):
        source, target = rng.choice(names), rng.choice(names)
        process, owner = rng.choice((*hosts[source].runs, STRANGER)), rng.choice(hosts[target].runs)
        user = "nobody" if process == STRANGER else processes[process].user
        opened.append(Flow(source, process, user, target, owner, "tcp", processes[owner].listens[0].low, 4))
    return Topology({}, hosts, processes, {}), opened


@pytest.mark.benchmark(timer=time.process_time)  # others on the machine are no cost of ours
def test_every_foothold_of_a_thousand_hosts(benchmark) -> None:  # type: ignore[no-untyped-def]
    topology, opened = _world()

    def spread(share: float) -> Spread:
        return Positions(opened, topology, vulnerable(topology, share)).spread()

    everything = benchmark.pedantic(spread, (1.0,), rounds=3)
    assert everything.footholds == 3 * HOSTS and everything.mean == 1
    assert spread(0.02).worst < 1
    assert benchmark.stats["median"] <= 5, "every foothold of 1,000 hosts takes at most 5 s"
