"""Concurrent connections: opened one after the other, all kept, all asked once at the end."""

from __future__ import annotations

from dataclasses import dataclass

from bench.instruments import onhost
from lab.backends.base import Testbed
from lab.model import Flow

MOST = 2000  # connections; a bound of the instrument, not of what is measured
OPENING_S = 3.0


@dataclass(frozen=True, slots=True)
class Held:
    """`open`: connections that answered while all were open, the figure. `opened`: that were ever established.

    `why` the count ended: at `most` it says nothing of a limit, and is to be read as "at least".
    """

    open: int
    opened: int
    per_s: float
    why: str


def measure(testbed: Testbed, flow: Flow, most: int = MOST, opening_s: float = OPENING_S) -> Held:
    """Hold up to `most` connections along a TCP `flow`; `onhost.place` first. Raises ProgramError."""
    address = testbed.topology.hosts[flow.target].address(flow.family)
    got = onhost.client(testbed, flow.source, "hold", address, str(flow.port), str(most), str(opening_s),
                        process=flow.process)
    return Held(got["open"], got["opened"], got["opened"] / got["seconds"], got["why"])
