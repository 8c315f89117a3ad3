"""Every plant comes out where its detector works, and fails the self-test where it does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import blocks, costs
from bench.analysis import matrices, visibility
from bench.instruments import datapath, probe
from bench.selftest import session
from bench.selftest.findings import Finding, exit_status
from bench.selftest.intervals import Interval, against, difference, judged, share
from bench.selftest.plants import PLANTS, Plant
from lab.model import Outcome
from tests.unit.selftest_fake import lab

Removal = Callable[[pytest.MonkeyPatch], None]


def tried(name: str, tmp_path: Path) -> Finding:
    with lab(tmp_path) as standing:
        (finding,) = session.try_all(session.chosen([name]), standing, lambda _plant: None)
    return finding


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_what_is_planted_comes_out(plant: Plant, tmp_path: Path) -> None:
    finding = tried(plant.name, tmp_path)
    assert finding.outcome == "PASS", finding
    assert finding.planted and finding.found


# --- without its detector ---------------------------------------------------------------------


def rows(**blind: bool) -> Removal:
    """The matrix does not judge this any more."""
    def remove(patch: pytest.MonkeyPatch) -> None:
        judge = matrices._row
        patch.setattr(matrices, "_row", lambda *args: replace(judge(*args), **blind))
    return remove


def no_proof_of_arrival(patch: pytest.MonkeyPatch) -> None:
    see = probe.observation
    patch.setattr(probe, "observation", lambda *args: replace(see(*args), arrived=False))


def no_control(patch: pytest.MonkeyPatch) -> None:
    """Whatever does not answer counts as blocked, as if everything had been open with nothing enforced."""
    judge = matrices.matrix

    def without(flows: Any, *, baseline: Any, **more: Any) -> Any:
        opened = {flow: replace(seen, outcome=Outcome.OPEN) for flow, seen in baseline.items()}
        return judge(flows, baseline=opened, **more)
    patch.setattr(matrices, "matrix", without)


def sent_is_received(patch: pytest.MonkeyPatch) -> None:
    """A datagram that was sent counts as one that was answered."""
    see = probe.observation

    def without(flow: Any, got: Any) -> Any:
        seen = see(flow, got)
        return replace(seen, outcome=Outcome.OPEN) if flow.proto == "udp" and flow.port in range(7100, 7150) else seen
    patch.setattr(probe, "observation", without)


def all_matches(patch: pytest.MonkeyPatch) -> None:
    """Whatever was done counts as seen."""
    match = visibility.match

    def without(*given: Any) -> Any:
        found, unexplained = match(*given)
        return [replace(one, right=dict.fromkeys(one.right, True)) for one in found], unexplained
    patch.setattr(visibility, "match", without)


def offered_is_received(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(datapath, "bulk", lambda *_args: 1e10)


def whole_milliseconds(patch: pytest.MonkeyPatch) -> None:
    """As a load generator's own statistics show them."""
    exact = datapath.percentile
    patch.setattr(datapath, "percentile", lambda values, q: 1000.0 * np.ceil((exact(values, q) or 0.0) / 1000))


def no_pairing(patch: pytest.MonkeyPatch) -> None:
    """Both arms are told as one figure: the difference is lost."""
    measure = costs.Costs.raw
    patch.setattr(costs.Costs, "raw", lambda self, _name, figure: measure(self, "answers late", figure))


def no_shuffle(patch: pytest.MonkeyPatch) -> None:
    class Ordered(random.Random):
        def shuffle(self, x: Any) -> None:
            """Nothing."""
    patch.setattr(blocks, "random", SimpleNamespace(Random=Ordered))


def no_aa(patch: pytest.MonkeyPatch) -> None:
    ratios = costs.Costs.ratios
    patch.setattr(costs.Costs, "ratios",
                  lambda self, name, figure: np.zeros(len(self.numbers)) if name == blocks.AA
                  else ratios(self, name, figure))


REMOVED: dict[str, tuple[str, Removal]] = {
    "leaks are not judged": ("leaked-port", rows(leak=False, defect=False)),
    "no proof of arrival": ("silent-leak", no_proof_of_arrival),
    "breaks are not judged": ("dropped-rule", rows(broken=False, defect=False)),
    "no positive control": ("dead-server", no_control),
    "sent is received": ("loss", sent_is_received),
    "everything matches": ("lost-telemetry", all_matches),
    "offered is received": ("rate-cap", offered_is_received),
    "whole milliseconds": ("delay", whole_milliseconds),
    "one figure for both arms": ("delay", no_pairing),
    "no shuffle": ("biased-order", no_shuffle),
    "no A/A": ("biased-order", no_aa),
}


@pytest.mark.parametrize("removed", REMOVED)
def test_without_its_detector_a_plant_fails(removed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, remove = REMOVED[removed]
    remove(monkeypatch)
    finding = tried(name, tmp_path)
    assert finding.outcome == "FAIL", finding
    assert exit_status([finding]) == 1


def test_every_plant_has_its_detector_removed() -> None:
    assert {name for name, _remove in REMOVED.values()} == {plant.name for plant in PLANTS}


# --- outcomes ---------------------------------------------------------------------------------


def finding(outcome: Any) -> Finding:
    return Finding("x", "", "", "", outcome, None, 0.0)


@pytest.mark.parametrize(("outcomes", "status"), [
    ((), 0), (("PASS", "UNSUPPORTED"), 0), (("PASS", "NOISY"), 4), (("NOISY", "FAIL", "PASS"), 1)])
def test_exit_status(outcomes: tuple[str, ...], status: int) -> None:
    assert exit_status([finding(outcome) for outcome in outcomes]) == status


def test_what_cannot_be_planted_is_told_with_the_reason(tmp_path: Path) -> None:
    with lab(tmp_path) as standing:
        (found,) = session.try_all(session.chosen(["delay"]), standing, lambda _plant: "clang is not installed")
    assert found.outcome == "UNSUPPORTED" and "because clang is not installed" in found.found


def test_an_unknown_plant_is_named() -> None:
    with pytest.raises(LookupError, match="no plant 'nonsense'; there are: leaked-port"):
        session.chosen(["nonsense"])


def test_judgement_of_an_interval() -> None:
    assert judged(Interval(200, 190, 210), 200, 0) == "PASS"
    assert judged(Interval(100, 90, 110), 200, 0) == "FAIL"
    assert judged(Interval(100, -50, 250), 200, 0) == "NOISY"
    assert judged(Interval(0, -1, 1), 200, 0) == "FAIL"
    assert judged(Interval(None, None, None), 200, 0) == "NOISY"


def test_difference_is_in_the_unit_of_its_values() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(80, 5, 12)
    found = difference(list(base + 200 + rng.normal(0, 2, 12)), list(base))
    assert found.holds(200) and found.low is not None and found.high is not None and found.high - found.low < 10
    assert difference([1.0, None], [None, 2.0]).low is None


def test_difference_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = sum(difference(list(200 + rng.normal(0, 10, 10)), [0.0] * 10).holds(200) for _ in range(300))
    assert 270 <= hits <= 300


def test_share_is_exact() -> None:
    assert share(0, 100).low == 0.0 and share(0, 100).high == pytest.approx(0.0362, abs=1e-4)  # 1 - 0.025^(1/100)
    assert share(10, 100).holds(0.1) and not share(10, 100).holds(0.3)
    assert share(5, 5).high == 1.0 and share(0, 0).value is None


def test_against_is_relative() -> None:
    found = against([1.9, 2.0, 2.1, 2.0], 2.0)
    assert found.holds(1.0) and not found.holds(2.0)
