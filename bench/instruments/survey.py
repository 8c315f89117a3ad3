"""What every position of a lab can take, each tried once with real packets: edges that campaigns would walk.

What a position can do does not hang on how an attacker came to it, so a scan that campaigns from hundreds of footholds
would repeat is made once. That the lab stood still meanwhile is not taken for granted: some of it is tried again at the
end, and what differs is told.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.instruments.attack import SCAN_TIMEOUT_S, actor, attempt, targets
from lab.backends.base import Services
from lab.model import STRANGER, Flow, Topology

BATCH = 20_000
AGAIN = 500  # scans, and as many exploits, that are tried a second time
Progress = Callable[[int, int], None]  # attempts made, and in all


@dataclass(frozen=True, slots=True)
class Survey:
    """`proven`: flows over which the target's process obeyed the exploit, one for each pair of positions.

    `again`: attempts that were made a second time; `differed`: those that ended otherwise.
    """

    scanned: int
    opened: int
    exploits: int
    proven: tuple[Flow, ...]
    again: int
    differed: tuple[str, ...]


def survey(services: Services, topology: Topology, seed: int, progress: Progress) -> Survey:
    """Scan from every process of every host and from a binary dropped on it, and exploit what answers."""
    rng = random.Random(seed)
    flows = [flow for host in topology.hosts.values() for name in (*host.runs, STRANGER)
             for flow in targets(actor(host.name, name, topology), topology)]
    rng.shuffle(flows)
    opened = list(_open(services, flows, topology, progress))
    proven, exploits = _exploited(services, opened, topology, rng)
    is_open, owned = set(opened), set(proven)
    scans = rng.sample(flows, min(AGAIN, len(flows)))
    takes = rng.sample(proven, min(AGAIN, len(proven)))
    seen = set(_open(services, scans, topology, lambda _done, _all: None))
    taken = {flow for flow, _target in _owned(services, takes, topology, rng)}
    differed = [*(f"{flow}: {'open' if flow in is_open else 'not open'} at first, otherwise later"
                  for flow in scans if (flow in is_open) != (flow in seen)),
                *(f"{flow}: obeyed at first, not later" for flow in takes if flow in owned and flow not in taken)]
    return Survey(len(flows), len(opened), exploits, tuple(proven), len(scans) + len(takes), tuple(differed))


def _open(services: Services, flows: Sequence[Flow], topology: Topology, progress: Progress) -> Iterator[Flow]:
    for begin in range(0, len(flows), BATCH):
        part = flows[begin:begin + BATCH]
        got = services.probe([attempt(flow, topology) for flow in part], SCAN_TIMEOUT_S)
        yield from (flow for flow, seen in zip(part, got, strict=True) if seen.outcome == "OPEN")
        progress(begin + len(part), len(flows))


def _exploited(services: Services, opened: Iterable[Flow], topology: Topology,
               rng: random.Random) -> tuple[list[Flow], int]:
    """One port after another of each pair of positions, until the exploit is obeyed or none is left."""
    left: dict[tuple[str, str, str, str], list[Flow]] = defaultdict(list)
    for flow in opened:
        left[flow.source, flow.process, flow.target, flow.target_process].append(flow)
    proven, made = list[Flow](), 0
    while left:
        tried = [flows.pop() for flows in left.values()]
        won = dict(_owned(services, tried, topology, rng))
        made += len(tried)
        proven += won.values()
        left = {key: flows for (key, flows), flow in zip(left.items(), tried, strict=True)
                if flows and flow not in won}
    return proven, made


def _owned(services: Services, flows: Sequence[Flow], topology: Topology,
           rng: random.Random) -> Iterator[tuple[Flow, Flow]]:
    """The flows over which the exploit was obeyed, each with the same flow to whoever answered by its nonce."""
    for begin in range(0, len(flows), BATCH):
        part = flows[begin:begin + BATCH]
        got = services.exploit_all([attempt(flow, topology) for flow in part], [rng.getrandbits(63) for _ in part],
                                   SCAN_TIMEOUT_S)
        for flow, one in zip(part, got, strict=True):
            if one.owned:
                yield flow, replace(flow, target=one.host, target_process=one.process)
