"""Datapath figures: CRR, RR and bulk between two declared processes, along a flow that the policy allows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from bench.analysis.stats import percentile
from lab.backends.base import HostProcess, Testbed
from lab.hosts.attempts import Actor, LoopResult
from lab.model import Flow

BULK_BYTES = "400M"  # about half a second; iperf3 counts time in whole seconds only


class InstrumentError(RuntimeError):
    """An instrument could not measure; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Window:
    """One arm's figures in one block, by name; None where the window could not be measured."""

    figures: Mapping[str, float | None]
    errors: int


def measure(testbed: Testbed, flow: Flow, seconds: float) -> Window:
    """CRR, RR and bulk along `flow`, in that order. Both ends are held on one processor for CRR and RR.

    On one processor the rate is the inverse of the CPU spent on a connection by client, server and all that the
    kernel does between, which is what an enforcer changes; two processors would hide it behind idle time.
    """
    client = Actor(flow.source, flow.process, flow.user)
    server = _server(testbed, flow)
    address = testbed.topology.hosts[flow.target].address(flow.family)
    cpu = str((os.cpu_count() or 1) - 1)
    _pin(testbed, (client, server), cpu)
    before = _cpu_s(testbed)
    crr: LoopResult = testbed.services.crr(client, flow.family, address, flow.port, seconds)
    spent = _cpu_s(testbed) - before
    rr: LoopResult = testbed.services.rr(client, flow.family, address, flow.port, seconds)
    _pin(testbed, (client, server), "-1")
    figures = {**_latency("crr", crr), **_latency("rr", rr)}
    figures["crr_rate"] = crr.n / crr.elapsed_s if crr.n else None
    figures["cpu_per_conn_us"] = spent * 1e6 / crr.n if crr.n and spent > 0 else None
    figures["bulk_bps"] = _bulk(testbed, flow, server, address)
    return Window(figures, crr.errors + rr.errors)


def _server(testbed: Testbed, flow: Flow) -> Actor:
    return Actor(flow.target, flow.target_process, testbed.topology.processes[flow.target_process].user)


def _pin(testbed: Testbed, actors: tuple[Actor, ...], cpu: str) -> None:
    for actor in actors:
        testbed.services.request(actor, "pin", cpu)


def _cpu_s(testbed: Testbed) -> float:
    usage = testbed.usage(memory=False)
    return sum(usage.host_cpu_s.values()) + sum(usage.daemon_cpu_s.values())


def _latency(name: str, result: LoopResult) -> dict[str, float | None]:
    return {f"{name}_p{q}_us": percentile(result.latencies_us, q) for q in (50, 99)}


def _bulk(testbed: Testbed, flow: Flow, server: Actor, address: str) -> float | None:
    """Received bits per second of one iperf3 stream. The service lends its port, so that the policy applies."""
    port = str(flow.port)
    testbed.services.request(server, "unlisten", "tcp", port)
    try:
        listener = testbed.spawn(flow.target, ["iperf3", "-s", "-1", "-p", port, "--forceflush"],
                                 process=flow.target_process)
        try:
            _await_listening(listener)
            done = testbed.run(flow.source, ["iperf3", "-c", address, "-p", port, "-n", BULK_BYTES, "-J",
                                             "--connect-timeout", "2000"])
        finally:
            _end(listener)
    finally:
        testbed.services.request(server, "listen", "tcp", port)
    try:
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])
    except (ValueError, KeyError):
        return None


def _end(listener: HostProcess) -> None:
    """It ends by itself after one client; only then is its port free again."""
    try:
        listener.wait(3.0)
    except TimeoutError:
        listener.kill()


def _await_listening(listener: HostProcess) -> None:
    for raw in listener.stdout:
        if b"listening" in raw:
            return
    raise InstrumentError("bulk: iperf3 ended before it listened; is the package iperf3 installed?")
