"""What a matrix of open flows offers an attacker from every foothold, and what stands between it and its goal. Pure.

A position is a process that could be taken on a host, or a binary dropped there (`STRANGER`). Who holds a process can
drop a binary beside it. An open TCP flow to a vulnerable process gives that process. Ports that only labctl's own
probes use (`lab.policy.WRONG_PORTS`) give nothing: in a network nobody listens there.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, maximum_flow, shortest_path

from lab.model import STRANGER, Flow, Topology
from lab.policy import WRONG_PORTS, owner_user

Place = tuple[str, str]  # host, process
Ints = NDArray[np.int64]
VALUES = {"crown-jewel": 10.0}  # what a host counts by its label `value`; a number counts as written, no label as 1
EVERYTHING, DECLARED, TENTH = "everything is vulnerable", "as declared", "a seeded 10 %"
_MANY = 1 << 20  # a capacity that no cut is worth: far more than flows between two positions


@dataclass(frozen=True, slots=True)
class Spread:
    """The share of the other hosts that footholds lead to, 0..1: over all of them. `worst_at` is one of the worst."""

    footholds: int
    mean: float
    p95: float
    worst: float
    worst_at: str
    weighted_mean: float
    weighted_worst: float


@dataclass(frozen=True, slots=True)
class Way:
    """How the goal is reached: hops of a shortest way, ways without a position in common, and what would cut all.

    `mend`: the fewest processes ("host/process") to mend, the goal's own excepted; None: the foothold has a flow to the
    goal itself, so that there is nothing in between. `close`: the fewest flows to close. All empty: out of reach.
    """

    hops: int | None
    shortest: tuple[Flow, ...]
    disjoint: int | None
    mend: tuple[str, ...] | None
    close: tuple[Flow, ...]


def vulnerable(topology: Topology, share: float | None = None, seed: int = 1) -> frozenset[Place]:
    """Which (host, process) can be taken: as declared; or with a `share` of all that listen, seeded, at least one."""
    listening = [(host.name, name) for host in topology.hosts.values() for name in host.runs
                 if topology.processes[name].listens]
    if share is None:
        return frozenset(place for place in listening if topology.processes[place[1]].vulnerable)
    return frozenset(random.Random(seed).sample(listening, max(1, round(share * len(listening)))) if listening else ())


def value(topology: Topology, host: str) -> float:
    """What a host counts in the weighted figures, by its label `value`; see VALUES."""
    text = topology.hosts[host].labels.get("value", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        return VALUES.get(text, 1.0)


class Positions:
    """The graph of positions for one arm and one rule of what is vulnerable."""

    def __init__(self, opened: Iterable[Flow], topology: Topology, takeable: Collection[Place]) -> None:
        self.topology = topology
        self._hosts = {name: index for index, name in enumerate(topology.hosts)}
        self._at = {place: index for index, place in enumerate(
            (host.name, name) for host in topology.hosts.values() for name in (*host.runs, STRANGER))}
        self._places = tuple(self._at)
        self._host_of = np.array([self._hosts[host] for host, _process in self._places])
        self._flows = self._useful(opened, frozenset(takeable))
        dropped = [(index, self._at[host, STRANGER]) for index, (host, name) in enumerate(self._places)
                   if name != STRANGER]
        self._dropped: Ints = np.array(dropped, np.int64).reshape(-1, 2)
        pairs = np.fromiter(self._flows, np.int64, len(self._flows))
        self._edges: Ints = np.concatenate([np.stack(np.divmod(pairs, len(self._places)), axis=1), self._dropped])

    def _useful(self, opened: Iterable[Flow], takeable: Collection[Place]) -> dict[int, Flow]:
        """One flow for each pair of positions, as source * n + target; the last one met, as `opened` is ordered."""
        n, found = len(self._places), {}
        acts = {(*place, owner_user(place[1], self.topology)): index * n for place, index in self._at.items()}
        taken = {place: self._at[place] for place in takeable}
        for flow in opened:  # a million of them: two look-ups each
            target = taken.get((flow.target, flow.target_process))
            if target is not None and flow.proto == "tcp" and flow.port not in WRONG_PORTS:
                source = acts.get((flow.source, flow.process, flow.user))
                if source is not None:
                    found[source + target] = flow
        return found

    # --- from everywhere ---

    def spread(self) -> Spread:
        """The blast radius of every foothold: each process of each host, the binary where a host runs none."""
        footholds = [index for index, (host, name) in enumerate(self._places)
                     if (name != STRANGER) != (not self.topology.hosts[host].runs)]
        weights = np.array([value(self.topology, name) for name in self._hosts])
        n, total = len(self._hosts), float(weights.sum())
        reached = self._reached(footholds)
        own = self._host_of[footholds]
        plain = (reached.sum(axis=1) - 1) / max(1, n - 1)
        worth = total - weights[own]
        weighted = np.where(worth > 0, (reached @ weights - weights[own]) / np.where(worth > 0, worth, 1), 0.0)
        worst = int(plain.argmax())
        return Spread(len(footholds), float(plain.mean()), float(np.percentile(plain, 95)), float(plain.max()),
                      "/".join(self._places[footholds[worst]]), float(weighted.mean()), float(weighted.max()))

    def _reached(self, footholds: Sequence[int]) -> NDArray[np.float64]:
        """For each foothold a row with 1 for every host it leads to, its own too."""
        n = len(self._places)
        count, group = connected_components(self._matrix(n, self._edges), directed=True, connection="strong")
        hosts = [0] * count
        for position, component in enumerate(group.tolist()):
            hosts[component] |= 1 << int(self._host_of[position])
        ends = group[self._edges].astype(np.int64)
        between = np.unique(ends[ends[:, 0] != ends[:, 1]] @ np.array([count, 1]))
        onward: dict[int, list[int]] = {component: [] for component in range(count)}
        for source, target in zip(*(part.tolist() for part in np.divmod(between, count)), strict=True):
            onward[source].append(target)
        for component in TopologicalSorter(onward).static_order():  # those it leads to come before it
            for following in onward[component]:
                hosts[component] |= hosts[following]
        size = (len(self._hosts) + 7) // 8
        packed = {c: np.frombuffer(hosts[c].to_bytes(size, "little"), np.uint8) for c in set(group[footholds].tolist())}
        rows = np.stack([packed[int(group[index])] for index in footholds])
        bits = np.unpackbits(rows, axis=1, bitorder="little")[:, :len(self._hosts)]
        return bits.astype(np.float64)

    # --- to the goal ---

    def way(self, foothold: Place, goals: Collection[str]) -> Way:
        """What lies between one foothold and the nearest of `goals` (hosts)."""
        start, n = self._at[foothold], len(self._places)
        jewels = [index for index, (host, _name) in enumerate(self._places) if host in goals]
        shortest = self._shortest(start, jewels)
        if shortest is None:
            return Way(None, (), None, (), ())
        ways, mended = self._cut(self._split(start, jewels), start, 2 * n)
        _, closed = self._cut(self._unit(jewels), start, n)
        direct = ways >= _MANY
        pairs = [s * n + t for s, t in closed if s * n + t in self._flows]
        return Way(len(shortest), shortest, None if direct else ways,
                   None if direct else tuple(sorted("/".join(self._places[t - n]) for s, t in mended if t == s + n)),
                   tuple(sorted(self._flows[pair] for pair in pairs)))

    def _shortest(self, start: int, jewels: Sequence[int]) -> tuple[Flow, ...] | None:
        """The flows of a way with the fewest exploits; dropping a binary is no hop."""
        weighted = self._matrix(len(self._places), self._edges, np.where(
            np.arange(len(self._edges)) < len(self._flows), 1.0, 1e-6))
        away, before = shortest_path(weighted, indices=start, return_predecessors=True)
        goal = min(jewels, key=lambda index: away[index])
        if not np.isfinite(away[goal]):
            return None
        steps, at = [], goal
        while at != start:
            steps.append(int(before[at]) * len(self._places) + at)
            at = int(before[at])
        return tuple(self._flows[step] for step in reversed(steps) if step in self._flows)

    def _unit(self, jewels: Sequence[int]) -> tuple[Ints, Ints]:
        """Every flow is worth one; dropping a binary cannot be closed."""
        sink = len(self._places)
        ends = np.array([(jewel, sink) for jewel in jewels], np.int64)
        worth = np.full(len(self._edges) + len(ends), _MANY)
        worth[:len(self._flows)] = 1
        return np.concatenate([self._edges, ends]), worth

    def _split(self, start: int, jewels: Sequence[int]) -> tuple[Ints, Ints]:
        """Every process is an edge from position to position + n, worth one, but the foothold's and the goal's own.

        A dropped binary is no weakness of its own: it goes when the process does.
        """
        n = len(self._places)
        through = np.stack([np.arange(n), np.arange(n) + n], axis=1)
        worth = np.array([1 if name != STRANGER else _MANY for _host, name in self._places])
        worth[[start, *jewels]] = _MANY
        ends = np.array([(jewel + n, 2 * n) for jewel in jewels], np.int64)
        edges = np.concatenate([through, self._edges + np.array([n, 0]), ends])
        return edges, np.concatenate([worth, np.full(len(self._edges) + len(ends), _MANY)])

    def _cut(self, network: tuple[Ints, Ints], start: int, sink: int) -> tuple[int, list[tuple[int, int]]]:
        """The least worth whose removal parts start and sink, and the edges removed (max-flow min-cut)."""
        edges, worth = network
        capacity = self._matrix(sink + 1, edges, worth).astype(np.int32)
        flow = maximum_flow(capacity, start, sink)
        if flow.flow_value >= _MANY:
            return _MANY, []
        left = capacity - flow.flow
        left.data = np.where(left.data > 0, left.data, 0)
        left.eliminate_zeros()
        near = np.zeros(sink + 1, bool)
        near[breadth_first_order(left, start, return_predecessors=False)] = True
        return int(flow.flow_value), [(s, t) for s, t in edges.tolist() if near[s] and not near[t]]

    @staticmethod
    def _matrix(n: int, edges: Ints, worth: NDArray[np.float64] | Ints | None = None) -> csr_array:
        data = np.ones(len(edges)) if worth is None else worth
        return csr_array((data, (edges[:, 0], edges[:, 1])), shape=(n, n))


def rules(topology: Topology, seed: int) -> Mapping[str, frozenset[Place]]:
    """What can be taken, by rule: everything that listens, as declared, and a seeded tenth of what listens."""
    return {EVERYTHING: vulnerable(topology, 1.0), DECLARED: vulnerable(topology),
            TENTH: vulnerable(topology, 0.1, seed)}
