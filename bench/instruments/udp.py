"""A UDP stream along a flow: loss and jitter, one way. No connection beside it, so a policy for UDP alone suffices.

iperf3 -u asks for TCP on the same port first, which such a policy forbids; the end-to-end tests compare with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.instruments import onhost
from lab.backends.base import Testbed
from lab.model import Flow

RATE, SIZE = 1000.0, 200  # datagrams a second, bytes of payload: telephony's order of magnitude, far below any knee


@dataclass(frozen=True, slots=True)
class Stream:
    """`loss` is a share of what left the sender; `jitter_us` RFC 3550's at the end of the stream.

    `transits_us`: one way, in order of arrival, from before the sender's system call to the receiver's kernel.
    `late_us`: how late the sender sent at worst, which jitter does not contain. `refused`: its kernel would not send.
    """

    sent: int
    refused: int
    received: int
    reordered: int
    loss: float | None
    jitter_us: float | None
    bps: float
    late_us: float
    transits_us: NDArray[np.float64]


def measure(testbed: Testbed, flow: Flow, seconds: float, rate: float = RATE, size: int = SIZE) -> Stream:
    """One stream of `rate` datagrams a second along a UDP `flow`; `onhost.place` first. Raises ProgramError."""
    address = testbed.topology.hosts[flow.target].address(flow.family)
    with onhost.lent_port(testbed, flow):
        receiver = onhost.start(testbed, flow.target, onhost.CLIENT, "udp-receive", str(flow.family), str(flow.port),
                                process=flow.target_process)
        try:
            onhost.said(receiver, flow.target, "udp-receive")
            out = onhost.client(testbed, flow.source, "udp-send", address, str(flow.port), str(rate), str(seconds),
                                str(size), process=flow.process)
            receiver.stdin.close()
            got = onhost.said(receiver, flow.target, "udp-receive")
        finally:
            receiver.kill()
    return Stream(sent=out["sent"], refused=out["refused"], received=got["unique"], reordered=got["reordered"],
                  loss=1 - got["unique"] / out["tried"] if out["tried"] else None,
                  jitter_us=got["jitter_us"] if got["received"] > 1 else None, bps=8 * got["bytes"] / out["seconds"],
                  late_us=out["late_us"], transits_us=np.array(got["transits_us"]))
