"""Requests a second over HTTP on one connection that stays open: the closed loop that `wrk` runs, by our service."""

from __future__ import annotations

import numpy as np

from lab.backends.base import Services
from lab.hosts.attempts import Actor, LoopResult
from lab.model import Family

_GRACE_S = 10.0


def requests(services: Services, actor: Actor, family: Family, address: str, port: int, seconds: float) -> LoopResult:
    """GET / and read the whole answer, one after the other for `seconds`, as the declared process.

    The rate is `n / elapsed_s`. An answer other than 200 is an error. Raises ServiceError.
    """
    n, errors, elapsed, cpu, samples = services.request(actor, "http", str(family), address, str(port),
                                                        f"{seconds:.6f}", timeout_s=seconds + _GRACE_S)
    latencies = np.array([float(one) for one in samples.split(",")]) / 10 if samples else np.empty(0)
    return LoopResult(int(n), int(errors), int(elapsed) / 1e9, int(cpu) / 1e9, latencies)
