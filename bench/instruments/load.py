"""One load window with its whole certificate: the traffic, packets beside it, connection tracking elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.analysis.stats import percentile
from bench.instruments import certificate, onhost, wire
from bench.instruments.phases import Phases
from bench.instruments.traffic import Piped, Traffic, TrafficWindow
from lab.backends.base import Testbed

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """A window at `rate` requests a second. `window.certificate` is whole: its own, the wire's, the other hosts'.

    `own_us`: of the median latency, what lies in the generator rather than on the wire (None without packets).
    """

    rate: float
    window: TrafficWindow
    own_us: float | None

    @property
    def figures(self) -> dict[str, float | None]:
        """By name; all None where the certificate says INVALID. Latencies in microseconds, rates a second."""
        w = self.window
        names = [f"app_{what}_us" for what in ("p50", "p90", "p99", "p99_9")]
        found: dict[str, float | None] = dict(zip(
            names, (percentile(w.from_intended_us, q) for q in PERCENTILES), strict=True))
        found |= {f"{name}_p{q}_us": percentile(values, q) for q in (50, 99)
                  for name, values in (("ttfb", w.ttfb_us), ("ttlb", w.ttlb_us))}
        found |= {"transactions_per_s": len(w.latencies_us) / w.sustain_s,
                  "connections_per_s": len(w.ttfb_us) / w.sustain_s}
        return found if w.certificate.valid else dict.fromkeys(found)


def measure(testbed: Testbed, traffic: Traffic, rate: float, phases: Phases, *, packets: bool = True) -> LoadWindow:
    """One window. `packets`: listen on the clients' wires; costs no processor time in the window, some 50 ms around it.

    `onhost.place` on the clients first. Raises TrafficError, WireError.
    """
    clients = list(traffic.per_client)

    def spawn(host: str, argv: Sequence[str]) -> Piped:
        return testbed.spawn(host, argv)

    with contextlib.ExitStack() as stack:
        traces: Mapping[str, wire.Trace] = {}
        if packets:
            traces = stack.enter_context(wire.tapped(spawn, clients, onhost.PYTHON, onhost.TAP))
        window = traffic.run_phases(rate, phases)
    asked = {truth.target for truth in window.truths} & set(testbed.topology.hosts)
    tables = certificate.occupied(testbed, [testbed.topology.router, *sorted(asked | set(clients))])
    more = [certificate.conntrack(tables), *(wire.check(window, traces) if packets else ())]
    whole = replace(window, certificate=window.certificate.and_checks(more))
    return LoadWindow(rate, whole, wire.own_share_us(window, traces) if packets else None)
