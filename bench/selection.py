"""Which flows are probed: all of them, or above a limit a seeded sample, stratified so that no class is missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.model import Flow, Scenario
from lab.policy_sets import FlowArrays, Oracle

MATRIX_LIMIT = 200_000


@dataclass(frozen=True, slots=True)
class Selection:
    """The flows to probe out of `total`; per stratum how many were taken of how many."""

    flows: tuple[Flow, ...]
    total: int
    strata: Mapping[str, tuple[int, int]]

    @property
    def sampled(self) -> bool:
        return len(self.flows) < self.total


def select(scenario: Scenario, limit: int = MATRIX_LIMIT) -> Selection:
    """Every intended-allow flow while they fit, and of the denied ones as many of each class as fit.

    A stratum is (intended verdict, protocol, family, same host or not).
    """
    oracle = Oracle(scenario.policy, scenario.topology)
    arrays = oracle.encode_all(scenario)
    allow, _rules = oracle.decide_many(arrays)
    stratum = _strata(arrays, allow)
    chosen = np.arange(len(arrays)) if len(arrays) <= limit else _sample(stratum, limit, scenario.seed)
    counts = {_label(int(s)): (int((stratum[chosen] == s).sum()), int((stratum == s).sum()))
              for s in np.unique(stratum)}
    return Selection(oracle.decode(arrays.take(chosen)), len(arrays), counts)


def _strata(arrays: FlowArrays, allow: NDArray[np.bool_]) -> NDArray[np.int64]:
    same = arrays.source == arrays.target
    bits = allow.astype(np.int64)
    for column, width in ((arrays.proto.astype(np.int64), 4), ((arrays.family == 6).astype(np.int64), 2),
                          (same.astype(np.int64), 2)):
        bits = bits * width + column
    return bits


def _label(stratum: int) -> str:
    stratum, same = divmod(stratum, 2)
    stratum, six = divmod(stratum, 2)
    allow, proto = divmod(stratum, 4)
    where = "same host" if same else "between hosts"
    return f"{'allow' if allow else 'deny'}, {('tcp', 'udp', 'icmp')[proto]}, IPv{6 if six else 4}, {where}"


def _sample(stratum: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.intp]:
    """Equal shares, small strata whole; what they leave is shared among the larger ones."""
    rng = np.random.default_rng(seed)
    members = sorted((np.flatnonzero(stratum == s) for s in np.unique(stratum)), key=len)
    taken, left = [], limit
    for index, indices in enumerate(members):
        share = min(len(indices), left // (len(members) - index))
        taken.append(rng.choice(indices, share, replace=False))
        left -= share
    return np.sort(np.concatenate(taken))
