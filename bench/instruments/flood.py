"""Floods along a few flows from their own hosts, bounded in rate and time, as the process that each flow names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.instruments import onhost
from lab.backends.base import HostProcess, Testbed
from lab.model import STRANGER, Flow

_PROGRAM = "/run/host/load/flood.py"


class Flood:
    """Under way from `flooding` on; `told` gives what each source did once it has ended."""

    def __init__(self, programs: Sequence[tuple[Flow, HostProcess]]) -> None:
        self._programs = programs

    def told(self) -> list[str]:
        found = []
        for flow, program in self._programs:
            said = onhost.said(program, flow.source, "flood")
            found.append(f"{said['sent']:,} new flows in {said['seconds']:.1f} s along {flow}"
                         + (f", {said['refused']:,} refused by the sender's own host" if said["refused"] else ""))
        return found


@contextlib.contextmanager
def flooding(testbed: Testbed, flows: Sequence[Flow], rate: float, seconds: float) -> Iterator[Flood]:
    """Every flow at an equal share of `rate` new flows a second, for `seconds`; ended with the block at the latest."""
    here = Path(__file__).with_name("host_flood.py").read_bytes()
    onhost.place(testbed, [flow.source for flow in flows])
    programs: list[tuple[Flow, HostProcess]] = []
    try:
        for flow in flows:
            testbed.put(flow.source, {_PROGRAM: here})
            address = testbed.topology.hosts[flow.target].address(flow.family)
            programs.append((flow, onhost.start(
                testbed, flow.source, _PROGRAM, flow.proto, address, str(flow.port), f"{rate / len(flows):g}",
                f"{seconds:g}", process=None if flow.process == STRANGER else flow.process)))
        yield Flood(programs)
    finally:
        for _flow, program in programs:
            program.kill()
