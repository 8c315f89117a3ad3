"""How fast raw data is written: 200,000 observations are a matrix, and every arm writes one. `make bench`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from bench.store import ResultStore
from lab.model import Flow, Observation, Outcome

_MANY = 50_000


def _observed(i: int) -> Observation:
    flow = Flow(f"n{i % 317}", f"n{i % 317}d", "ungrouped", f"n{i % 313}", f"n{i % 313}d", "tcp", 10_000 + i % 2000, 4)
    return Observation(flow, Outcome.OPEN, 0, True, 123.5 + i / 7, 12.25, 34.5 + i, i % 60_000)


def test_observations_to_disk(benchmark) -> None:  # type: ignore[no-untyped-def]
    many = [_observed(i) for i in range(_MANY)]

    def write() -> int:
        with TemporaryDirectory() as place, ResultStore(Path(place) / "r") as store:
            store.append("observations", many, arm="none", phase="matrix")
            return (store.directory / "observations.jsonl.gz").stat().st_size

    assert benchmark.pedantic(write, rounds=3) > _MANY
