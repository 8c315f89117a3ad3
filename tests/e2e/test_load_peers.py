"""The instruments beside those of others, against the same hosts in the same blocks, in either order.

Both ends are on one processor where the rate is compared, so it is the inverse of the work that is done, and not of how
fast a sleeping processor wakes. What remains is the client's own work, which differs from tool to tool: it is measured
too (CPU time of its process) and explains what is beyond five per cent.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.analysis import bootstrap
from tests.e2e.isolated import call, needs_root

# slow: it judges figures, so it needs a quiet machine; docs/load.md tells how far they agree
pytestmark = [needs_root, pytest.mark.e2e, pytest.mark.slow]
HERE = "tests.e2e.test_load_peers"
BLOCKS = {"crr": 40, "rr": 40, "requests": 40, "wrk": 14, "events": 14, "bulk": 14, "iperf3": 12}
WINDOW_S = 0.1
AGREE = 0.05
BULK_BYTES = 400_000_000
_CPU_S = "import resource,subprocess,sys; d=subprocess.run(sys.argv[1:],capture_output=True,text=True); " \
          "u=resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_utime + u.ru_stime, d.stdout)"


def rates(me: Any, _argument: Any) -> dict[str, Any]:
    """Each pair of tools (PAIRS) block by block: what each got a second; microseconds of CPU a request of clients."""
    from bench.instruments import datapath, web
    from lab.hosts.control import Actor
    from tests.e2e.load_lab import RAW, flow, in_place_of_the_service, lab, place_raw

    cpu = str(max(os.sched_getaffinity(0)))
    used: dict[str, list[float]] = {"wrk": [], "raw http": []}
    with lab(me) as (testbed, _scenario):
        place_raw(testbed)
        client, server = Actor("user", "shopper", "buyer"), Actor("web", "frontend", "www")
        address = testbed.topology.hosts["web"].v4

        def on_user(*argv: str) -> tuple[float, str]:
            done = testbed.run("user", ["taskset", "-c", cpu, sys.executable, "-I", "-S", "-c", _CPU_S, *argv])
            cpu_s, _, text = done.stdout.decode().partition(" ")
            return float(cpu_s), text

        def raw(kind: str, seconds: float = WINDOW_S) -> float:
            cpu_s, text = on_user(RAW, kind, address, "80", str(seconds))
            n, took_s = text.split()
            if kind == "http":
                used["raw http"].append(cpu_s / int(n) * 1e6)
            return int(n) / float(took_s)

        def wrk() -> float:
            cpu_s, text = on_user("wrk", "-t1", "-c1", "-d1s", f"http://{address}/")
            n = int(re.findall(r"(\d+) requests in", text)[0])
            used["wrk"].append(cpu_s / n * 1e6)
            return float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0])

        def ours(loop: Callable[..., Any]) -> float:
            got = loop(client, 4, address, 80, WINDOW_S)
            assert not got.errors
            return float(got.n / got.elapsed_s)

        def raw_bulk() -> float:
            with in_place_of_the_service(testbed, RAW, "sink", "80") as sink:
                testbed.run("user", [RAW, "bulk", address, "80", str(BULK_BYTES)])
                size, seconds = sink.stdout.readline().split()
            return 8 * int(size) / float(seconds)

        def iperf_timed() -> float:
            with in_place_of_the_service(testbed, "iperf3", "-s", "-p", "80", "--forceflush"):
                done = testbed.run("user", ["iperf3", "-c", address, "-p", "80", "-t", "1", "-J"])
            return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])

        tools: dict[str, Callable[[], float]] = {
            "ours crr": lambda: ours(testbed.services.crr), "raw crr": lambda: raw("crr"),
            "ours rr": lambda: ours(testbed.services.rr), "raw rr": lambda: raw("rr"),
            "ours http": lambda: ours(lambda *a: web.requests(testbed.services, *a)),
            "raw http": lambda: raw("http"), "wrk": wrk, "raw events": lambda: raw("wrklike", 1.0),
            "ours bulk": lambda: datapath.bulk(testbed, flow()) or 0.0,
            "raw bulk": raw_bulk, "iperf3 -t": iperf_timed}
        rng = random.Random(1)
        found: dict[str, list[tuple[float, float]]] = {}
        for name, (a, b) in PAIRS.items():
            for actor in (client, server):
                testbed.services.request(actor, "pin", "-1" if "bulk" in a else cpu)
            for _ in range(BLOCKS[name]):  # the two of a block follow each other at once, in either order
                got = {tool: tools[tool]() for tool in rng.sample([a, b], 2)}
                found.setdefault(name, []).append((got[a], got[b]))
    return {"rates": found, "cpu_us": {name: float(np.median(values)) for name, values in used.items()}}


PAIRS = {"crr": ("ours crr", "raw crr"), "rr": ("ours rr", "raw rr"), "requests": ("ours http", "raw http"),
         "wrk": ("ours http", "wrk"), "events": ("raw events", "wrk"),
         "bulk": ("ours bulk", "raw bulk"), "iperf3": ("ours bulk", "iperf3 -t")}
WITHOUT = "wrk, its own work taken out"


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk; apt-get install -y wrk")
def test_rates_agree_with_other_tools() -> None:
    found = call(HERE, "rates", timeout_s=400)
    pairs = {name: np.array(values) for name, values in found["rates"].items()}
    # What wrk does more for a request (it parses, keeps statistics, asks epoll) is taken out, as measured.
    extra_s = (found["cpu_us"]["wrk"] - found["cpu_us"]["raw http"]) / 1e6
    pairs[WITHOUT] = np.column_stack([pairs["wrk"][:, 0], 1 / (1 / pairs["wrk"][:, 1] - extra_s)])
    effects = {}
    for name, both in pairs.items():
        effects |= bootstrap.compare({name: bootstrap.log_ratios(both[:, 0].tolist(), both[:, 1].tolist())})
        effect, medians = effects[name], np.median(both, axis=0)
        print(f"{name}: ours / theirs {effect.ratio:.3f} ({effect.low:.3f} to {effect.high:.3f}), n {effect.n}; "
              f"medians {medians[0]:.0f} and {medians[1]:.0f}")
    print(found["cpu_us"])
    for name in ("crr", "rr", "requests", WITHOUT, "bulk", "iperf3"):
        effect = effects[name]
        assert effect.low is not None and effect.high is not None
        # It fails where the whole interval lies beyond what is allowed: a wide one says that the machine was busy.
        assert effect.low <= 1 + AGREE and effect.high >= 1 - AGREE, (name, effect)
