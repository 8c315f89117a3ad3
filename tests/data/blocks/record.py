"""Record long series of short windows on a real lab: what the statistics are tested against. Needs root.

    python -m tests.data.blocks.record OUT.npz [--minutes M]

One three-tier lab. Three parts: `none` alone in back-to-back windows (CRR, RR, bulk), and visits that alternate
`none` and agent-nft through the enforcer's own `up` and `down`, as a cost block does.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import registry
from bench.analysis.stats import percentile
from bench.blocks import pick_flow
from bench.instruments import datapath
from bench.instruments.yardstick import Yardstick
from lab.backends import mininet_lab
from lab.backends.base import Testbed
from lab.hosts.attempts import Actor
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity, run_isolated
from lab.model import Flow
from lab.policy_sets import Oracle
from lab.scenario import load

ROOT = Path(__file__).parents[3]
WINDOW_S = 0.05
FIELDS = ("begin_s", "p50_us", "p90_us", "p99_us", "rate", "cpu_us", "steal_s", "busy_s", "pressure_s", "errors",
          "spin_us", "net_us")
JIFFY_S = 1 / os.sysconf("SC_CLK_TCK")
SERIES = {"crr": 2000, "rr": 600, "bulk": 80}
VISITS, VISIT_WINDOWS = 70, 8


def machine() -> tuple[float, float, float]:
    """Seconds, since boot: stolen by the hypervisor, busy on any processor, and with somebody waiting for one."""
    user, nice, system, _idle, _io, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    some = Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]
    return steal * JIFFY_S, (user + nice + system + irq + soft) * JIFFY_S, int(some) / 1e6


BLOCK = bytes(range(256)) * 1024


def spin_us(cpu: int) -> float:
    """The least time of five for a computation alone, on processor `cpu`."""
    home, times = os.sched_getaffinity(0), []
    os.sched_setaffinity(0, {cpu})
    for _ in range(5):
        begin = time.perf_counter_ns()
        zlib.crc32(BLOCK)
        times.append((time.perf_counter_ns() - begin) / 1e3)
    os.sched_setaffinity(0, home)
    return min(times)


class Recorder:
    def __init__(self, testbed: Testbed, flow: Flow) -> None:
        self.testbed, self.flow = testbed, flow
        self.client = Actor(flow.source, flow.process, flow.user)
        self.server = datapath._server(testbed, flow)
        self.address = testbed.topology.hosts[flow.target].address(4)
        self.zero = time.monotonic()
        self.cpu = (os.cpu_count() or 1) - 1
        self.yardstick = Yardstick(self.cpu)

    def readings(self) -> tuple[float, float]:
        return spin_us(self.cpu), self.yardstick.read()

    def pin(self, cpu: str) -> None:
        datapath._pin(self.testbed, (self.client, self.server), cpu)

    def window(self, kind: str) -> list[float]:
        first = self.readings()
        before, cpu, begin = machine(), datapath._cpu_s(self.testbed), time.monotonic()
        loop = getattr(self.testbed.services, kind)
        got = loop(self.client, 4, self.address, self.flow.port, WINDOW_S)
        spent = datapath._cpu_s(self.testbed) - cpu
        quantiles = [percentile(got.latencies_us, q) or np.nan for q in (50, 90, 99)]
        return [begin - self.zero, *quantiles, got.n / got.elapsed_s, spent * 1e6 / max(got.n, 1),
                *(b - a for a, b in zip(before, machine(), strict=True)), got.errors, *first]

    def bulk(self) -> list[float]:
        before, begin = machine(), time.monotonic()
        rate = datapath.bulk(self.testbed, self.flow) or np.nan
        steal = (b - a for a, b in zip(before, machine(), strict=True))
        return [begin - self.zero, np.nan, np.nan, np.nan, rate, np.nan, *steal, 0, *self.readings()]


def record(me: RunIdentity, out: Path, share: float) -> int:
    scenario = load(ROOT / "scenarios/three-tier.yaml")
    oracle = Oracle(scenario.policy, scenario.topology)
    flows = oracle.decode(oracle.encode_all(scenario))
    allowed = {f for f, v in zip(flows, oracle.verdicts(flows), strict=True) if v.allow}
    flow = pick_flow(flows, lambda f: f in allowed, scenario.topology)
    assert flow is not None
    with mininet_lab.up(scenario.topology, build(), me.cgroup, actors(scenario.topology, flows)) as testbed:
        here = Recorder(testbed, flow)
        kept: dict[str, Any] = {"fields": np.array(FIELDS), "flow": np.array(str(flow))}
        cpu = str((os.cpu_count() or 1) - 1)
        for kind, count in SERIES.items():
            here.pin("-1" if kind == "bulk" else cpu)
            take = here.bulk if kind == "bulk" else partial(here.window, kind)
            kept[kind] = [take() for _ in range(int(count * share))]
            save(out, kept)
        here.pin(cpu)
        kept["visits"], kept["switch_s"] = [], []
        for row, switch in visits(here, scenario, testbed, int(VISITS * share)):
            kept["visits"].append(row)
            kept["switch_s"].append(switch)
            save(out, kept)
    return 0


def save(out: Path, kept: dict[str, Any]) -> None:
    """As it comes, so that a lab that falls over costs what it had not shown yet."""
    np.savez_compressed(out, **{k: v if isinstance(v, np.ndarray) else np.array(v, np.float32)
                                for k, v in kept.items()})


def visits(here: Recorder, scenario: Any, testbed: Any, count: int) -> Iterator[tuple[list[Any], list[float]]]:
    """Per visit: none's windows, then the agent's; shape (visits, 2 arms, 2 kinds, windows, fields); and up, down."""
    enforcer = registry.load("agent-nft")
    native = enforcer.compile(scenario.policy, scenario.topology)
    place = testbed.enforcement("agent-nft", lambda f: enforcer.covers(f, scenario.topology))
    place.install(native, enforcer.render(native, scenario.topology))
    place.down()
    for _ in range(count):
        row = [[[here.window(kind) for _ in range(VISIT_WINDOWS)] for kind in ("crr", "rr")]]
        a = time.monotonic()
        place.up()
        b = time.monotonic()
        row.append([[here.window(kind) for _ in range(VISIT_WINDOWS)] for kind in ("crr", "rr")])
        c = time.monotonic()
        place.down()
        testbed.services.drain_events()
        yield row, [b - a, time.monotonic() - c]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the full length")
    args = parser.parse_args()
    return run_isolated(lambda me: record(me, args.out.resolve(), args.share))


if __name__ == "__main__":
    sys.exit(main())
