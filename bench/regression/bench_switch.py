"""How long a change of 10,000 entries takes to be in force at every switch port, in a whole lab. `make bench`."""

from __future__ import annotations

import os
import statistics

import pytest

from tests.e2e.isolated import call

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")


def test_a_policy_of_ten_thousand_entries(benchmark) -> None:  # type: ignore[no-untyped-def]
    """The seconds of each change are in the extra information: a round holds ten, each seen by the next packet."""
    found = benchmark.pedantic(call, ("tests.e2e.switch_lab", "unseen", None), rounds=1)
    benchmark.extra_info["seconds"] = found["seconds"]
    benchmark.extra_info["median_ms"] = round(statistics.median(found["seconds"]) * 1e3, 1)
    assert found["met"] == ["TIMED_OUT", "OPEN"] * 5
