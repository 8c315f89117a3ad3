"""Which few flows a continuous probe watches: seeded, and as unlike each other as there are kinds. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest

from lab.model import STRANGER, Flow, Topology

ALLOWED, DENIED = 6, 12


def choose(verdicts: Mapping[Flow, bool], topology: Topology, seed: int, allowed: int = ALLOWED,
           denied: int = DENIED) -> tuple[Flow, ...]:
    """At most so many allowed and so many denied flows to declared services, in the order of the scenario's hosts.

    Turn by turn of each kind there is: where it goes (same host, same segment, across), to which service, and whether
    the same hosts may talk under another process. Within a kind by `seed`.
    """
    known = {flow: allow for flow, allow in verdicts.items() if _declared(flow, topology)}
    open_pairs = {_pair(flow) for flow, allow in known.items() if allow}
    rng = random.Random(seed)
    chosen: list[Flow] = []
    for wanted, count in ((True, allowed), (False, denied)):
        kinds: dict[tuple[object, ...], list[Flow]] = {}
        for flow, allow in known.items():
            if allow is wanted:
                kinds.setdefault(_kind(flow, topology, _pair(flow) in open_pairs), []).append(flow)
        for flows in kinds.values():
            rng.shuffle(flows)
            if wanted:  # what is allowed to anyone is asked for by who is declared, where there is one
                flows.sort(key=lambda flow: flow.process == STRANGER)
        names = sorted(kinds, key=str)
        rng.shuffle(names)
        chosen += _in_turn([kinds[name] for name in names])[:count]
    return tuple(chosen)


def place(flow: Flow, topology: Topology) -> str:
    """Where a flow goes, in the words of `labctl arms`."""
    if flow.source == flow.target:
        return "same host"
    same = topology.hosts[flow.source].segment == topology.hosts[flow.target].segment
    return "same segment" if same else "across segments"


def _declared(flow: Flow, topology: Topology) -> bool:
    process = topology.processes.get(flow.target_process)
    return process is not None and any(
        s.proto == flow.proto and s.low <= flow.port <= s.high for s in process.listens)


def _pair(flow: Flow) -> tuple[object, ...]:
    return flow.source, flow.target, flow.proto, flow.port, flow.family


def _kind(flow: Flow, topology: Topology, pair_open: bool) -> tuple[object, ...]:
    managed = topology.hosts[flow.source].takes_agent, topology.hosts[flow.target].takes_agent
    return place(flow, topology), flow.proto, flow.target_process, pair_open, managed


def _in_turn(groups: Sequence[Iterable[Flow]]) -> list[Flow]:
    return [flow for flow in chain.from_iterable(zip_longest(*groups)) if flow is not None]
