"""What the instruments are worth on this machine: the noise floor, what they cost themselves, where the traffic bends.

With nothing enforced, on the three-tier lab. The figures come from the code of `labctl run`; every window is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import assemble, environment, honest, registry
from bench.costs import WINDOWED
from bench.experiment import BASELINE, Collected, Options, Say, execute
from bench.instruments import datapath, knee, probe
from bench.instruments.datapath import Design
from bench.instruments.traffic import Traffic
from bench.instruments.yardstick import Yardstick
from bench.selection import select
from bench.store import ResultStore
from lab.backends import mininet_lab
from lab.backends.base import Testbed
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.model import Flow, Scenario
from lab.policy_sets import Oracle
from lab.scenario import load

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios" / "three-tier.yaml"
BLOCKS = 12
WINDOWS = Design(crr=10, rr=10, warmup=1, window_s=0.04)
PROBES, READINGS, RATE, TRAFFIC_S = 4000, 300, 100.0, 2.0


def run(me: RunIdentity, results: Path, say: Say) -> tuple[dict[str, Any], Path]:
    """In the run's namespaces: calibrate, and store it. What was found, and where it is kept.

    Raises LabDownError, ServiceError, TrafficError, InstrumentError or OSError where the lab does not stand.
    """
    scenario = load(SCENARIO)
    flows = select(scenario).flows
    with ResultStore.create(results, "calibration") as store:
        say("standing up the three-tier lab")
        honest.share_packages()
        with mininet_lab.up(scenario.topology, build(), me.cgroup, actors(scenario.topology, flows)) as testbed, \
                honest.clients(scenario, testbed) as traffic:
            assert traffic is not None, "the three-tier scenario has traffic"
            found = {"format": 1, "environment": environment.facts(), "noise": noise(scenario, testbed, store, say),
                     "instruments": instruments(scenario, flows, testbed, traffic, say),
                     "knee": asdict(knee.find(traffic, say=say))}
        store.document("calibration.json", found)
        return found, store.directory


def noise(scenario: Scenario, testbed: Testbed, store: ResultStore, say: Say) -> dict[str, Any]:
    """`none` against itself in blocks, by figure: ratio, 95 % interval, smallest effect seen in 4 of 5 runs.

    `yardstick`: how far the yardstick's reading goes with each figure over all windows (Spearman's rank correlation).
    """
    bare = replace(scenario, traffic=None, attack=None)
    collected = Collected(bare, Options(blocks=BLOCKS, quick=True, design=WINDOWS), select(bare),
                          {BASELINE: registry.load(BASELINE)})
    execute(collected, testbed, None, store, say)
    summary, costs = assemble.summary(collected), assemble.costs_of(collected)
    return {
        "blocks": summary.blocks, "invalid": summary.invalid, "differs": summary.aa.differs,
        "figures": {name: {"value": _median(costs.raw(BASELINE, name)), "ratio": one.ratio, "low": one.low,
                           "high": one.high, "detectable": summary.mde.get(name)}
                    for name, one in summary.aa.cost.items() if one.ratio is not None},
        "yardstick": {name: _correlation(collected, loop, field) for name, (loop, field) in WINDOWED.items()},
    }


def _median(blocks: list[float | None]) -> float | None:
    """The median of the blocks that were measured."""
    present = [value for value in blocks if value is not None]
    return float(np.median(present)) if present else None


def _correlation(collected: Collected, loop: str, field: str) -> float | None:
    pairs = [(value, before) for cell in collected.cells if (series := cell.series.get(loop))
             for value, before in zip(getattr(series, field)[series.warmup:], series.before_us[series.warmup:],
                                      strict=True) if value is not None]
    if len(pairs) < 10:
        return None
    ranks = np.argsort(np.argsort(np.array(pairs), axis=0), axis=0)
    first, second = (one - one.mean() for one in ranks.T)
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


def instruments(scenario: Scenario, flows: tuple[Flow, ...], testbed: Testbed, traffic: Traffic,
                say: Say) -> dict[str, Any]:
    """What a probe, a request of locust's and a reading of the yardstick cost, in their own time and CPU."""
    say("what a probe costs")
    verdicts = Oracle(scenario.policy, scenario.topology).verdicts(flows)
    opened = [f for f, v in zip(flows, verdicts, strict=True) if v.allow and f.proto == "tcp"]
    many = (opened * (PROBES // len(opened) + 1))[:PROBES]
    probed, hosts_s, own_s, took = _timed(testbed, lambda: probe.probe(testbed.services, many, scenario.topology))
    say("what a request costs")
    window, traffic_hosts_s, _own, _took = _timed(testbed, lambda: traffic.run(RATE, TRAFFIC_S))
    say("what a reading of the yardstick costs")
    with closing(Yardstick(datapath.last_cpu())) as yardstick:
        begin = time.perf_counter()
        readings = [yardstick.read() for _ in range(READINGS)]
        reading_us = (time.perf_counter() - begin) / READINGS * 1e6
    return {
        "probe": {"n": len(many), "open": sum(o.outcome == "OPEN" for o in probed.observations),
                  "per_s": len(many) / took, "labctl_cpu_us": own_s / len(many) * 1e6,
                  "hosts_cpu_us": hosts_s / len(many) * 1e6 if hosts_s else None},
        "locust": {"requests": len(window.latencies_us), "rate": RATE, "invalid": window.invalid,
                   "generator_cpu": dict(window.cpu),
                   "generator_cpu_us": sum(window.cpu.values()) / RATE * 1e6,
                   "hosts_cpu_us": traffic_hosts_s / max(len(window.latencies_us), 1) * 1e6 if traffic_hosts_s
                   else None},
        "yardstick": {"n": READINGS, "takes_us": reading_us, "reads_us": float(np.median(readings)),
                      "spread": float(np.quantile(readings, 0.9) / np.quantile(readings, 0.1) - 1)},
    }


def _timed(testbed: Testbed, act: Callable[[], Any]) -> tuple[Any, float, float, float]:
    """What `act` gave; CPU seconds of the hosts and of labctl itself meanwhile, and the time it took."""
    hosts, own, begin = _hosts_s(testbed), sum(os.times()[:2]), time.monotonic()
    result = act()
    return result, _hosts_s(testbed) - hosts, sum(os.times()[:2]) - own, time.monotonic() - begin


def _hosts_s(testbed: Testbed) -> float:
    return sum(testbed.usage(memory=False).host_cpu_s.values())
