"""Running again on the fake network: a gate finds what was planted and nothing else; a replay agrees with itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import assemble, experiment, gating, replaying
from bench.analysis import gate
from bench.analysis.gate import Baseline, GateError
from bench.blocks import Cell
from bench.experiment import Collected, Options, execute
from bench.instruments.datapath import Design
from bench.instruments.yardstick import Yardstick
from bench.report.saved import SavedError
from bench.report.saved import read as read_saved
from bench.report.summary import Attack, Figure, Recall, to_json
from bench.selection import select
from bench.session import Finished
from bench.store import ResultStore
from enforcers.none import NoEnforcer
from lab.backends.fake import Lies, up
from lab.model import Scenario
from lab.scenario import load
from tests.mirror import Mirror
from tests.unit.test_costs import ARMS
from tests.unit.test_costs import run as cells_of

SCENARIOS = Path(__file__).parents[2] / "scenarios"
MARGIN = 0.10
SMALL = Design(crr=4, rr=4, warmup=1)  # the fake network has no weather: few windows tell as much


def scenario() -> Scenario:
    return replace(load(SCENARIOS / "three-tier.yaml"), traffic=None)


def ran(tmp_path: Path, lies: Lies | None = None, blocks: int = 12, quick: bool = False) -> Finished:
    """A run on the fake network, saved as a session saves it."""
    one = scenario()
    options = Options(blocks=blocks, extras_every=0, design=SMALL, quick=quick)
    collected = Collected(one, options, select(one), {"none": NoEnforcer(), "mirror": Mirror()})
    with (up(one.topology, {"mirror": lies or Lies()}) as testbed, ResultStore.create(tmp_path, one.name) as store,
          pytest.MonkeyPatch.context() as patched):
        patched.setattr(Yardstick, "read", lambda _self: 50.0)  # the fake network goes at one speed
        execute(collected, testbed, None, store, lambda _text: None)
        summary = assemble.summary(collected)
        store.document("summary.json", to_json(summary))
        store.document("scenario.yaml", Path(one.path).read_text())
    return Finished(collected, summary, store.directory)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return ran(tmp_path_factory.mktemp("honest"))


@pytest.fixture(scope="module")
def stored(honest: Finished) -> Baseline:
    text = gating.baseline(honest, gating.digest(scenario())).model_dump_json()
    return gate.read(text, "gate.json")  # as it is read back from a file


# --- gate -------------------------------------------------------------------------------------


def test_a_gate_passes_against_itself(tmp_path: Path, stored: Baseline) -> None:
    again = ran(tmp_path)
    found = gating.judge(stored, again, MARGIN)
    assert (found.exit_code, found.worse, found.doubts) == (0, (), ()), found
    text = "\n".join(gating.lines(found, again.summary, MARGIN))
    assert "no regression (12 blocks, margin 10%)" in text and "mirror: connection p50" in text


def test_a_slower_arm_is_a_regression_and_is_named_with_its_size(tmp_path: Path, stored: Baseline) -> None:
    slower = ran(tmp_path, Lies(slow_us=20.0))
    found = gating.judge(stored, slower, MARGIN)
    assert found.exit_code == 1 and found.costs is not None
    assert {(one.arm, one.figure) for one in found.costs.regressions} == {("mirror", f) for f in gate.FIGURES}
    crr = next(one for one in found.costs.regressions if one.figure == "crr_p50_us")
    assert crr.worse == pytest.approx(20 / 70.6, abs=0.03)
    assert "worse  mirror: connection p50: +" in "\n".join(gating.lines(found, slower.summary, MARGIN))
    assert found.as_data()["outcome"] == "regression"


def test_a_new_leak_is_a_regression_though_costs_are_alike(tmp_path: Path, stored: Baseline) -> None:
    found = gating.judge(stored, ran(tmp_path, Lies(leak_port=6379)), MARGIN)
    assert found.exit_code == 1
    assert any(text.startswith("mirror: leaks: 0 before") for text in found.worse)
    assert any(text.startswith("mirror: defects: 0 before") for text in found.worse)


def test_an_invalid_run_tells_nothing(honest: Finished, stored: Baseline) -> None:
    spoilt = replace(honest, summary=honest.summary.model_copy(update={"invalid": ("mirror: …",)}))
    assert gating.judge(stored, spoilt, MARGIN).exit_code == 4
    stopped = replace(honest, summary=honest.summary.model_copy(update={"interrupted": True}))
    assert gating.judge(stored, stopped, MARGIN).exit_code == 130


def test_too_few_blocks_are_too_noisy_to_tell(tmp_path: Path, stored: Baseline) -> None:
    found = gating.judge(stored, ran(tmp_path, blocks=3), MARGIN)
    assert found.exit_code == 4 and found.as_data()["outcome"] == "noisy"


def test_an_arm_that_cannot_run_any_more_is_a_doubt(honest: Finished, stored: Baseline) -> None:
    gone = honest.summary.arms["mirror"].model_copy(update={"unsupported": "the kernel has no mirror"})
    arms = honest.summary.arms | {"mirror": gone}
    without = replace(honest, summary=honest.summary.model_copy(update={"arms": arms}))
    found = gating.judge(stored, without, MARGIN)
    assert found.exit_code == 4 and "mirror cannot run on this machine: the kernel has no mirror" in found.doubts


def test_a_baseline_of_another_scenario_or_design_is_refused_before_the_run(stored: Baseline) -> None:
    options = Options(blocks=12, extras_every=0, design=SMALL)
    other = replace(scenario(), policy=replace(scenario().policy, rules=scenario().policy.rules[1:]))
    with pytest.raises(GateError, match="another scenario"):
        gating.gate_scenario(other, options, stored, "gate.json", MARGIN)
    with pytest.raises(GateError, match="in another way \\(blocks\\)"):
        gating.gate_scenario(scenario(), replace(options, blocks=13), stored, "gate.json", MARGIN)


def test_the_digest_is_of_what_is_run_alone(tmp_path: Path) -> None:
    here = load(SCENARIOS / "three-tier.yaml")
    for name in ("three-tier.yaml", "shop.py"):
        (tmp_path / name).write_bytes((SCENARIOS / name).read_bytes())
    moved = load(tmp_path / "three-tier.yaml")
    assert gating.digest(here) == gating.digest(moved) == gating.digest(replace(here, seed=99))
    (tmp_path / "shop.py").write_text((SCENARIOS / "shop.py").read_text() + "\n# more\n")
    assert gating.digest(moved) != gating.digest(here)


# --- replay -----------------------------------------------------------------------------------


def agreement(saved: Finished, again: Finished) -> replaying.Agreement:
    was, now = read_saved(saved.directory), read_saved(again.directory)
    return replaying.Agreement(tuple(replaying.compared(was, now)), now.summary.invalid, replaying.around(was, now))


def disagreeing(found: replaying.Agreement) -> set[tuple[str, str]]:
    return {(one.arm, one.what) for one in found.findings if one.agrees is False}


def test_a_replay_agrees_with_what_it_replays(tmp_path: Path, honest: Finished) -> None:
    again = ran(tmp_path)
    found = agreement(honest, again)
    assert found.exit_code == 0 and not disagreeing(found), found
    assert {one.what for one in found.findings} == {"verdicts", "flows", "attack", "telemetry", "cost"}
    text = "\n".join(replaying.lines(found, read_saved(honest.directory), read_saved(again.directory)))
    assert "the outcome agrees" in text and "same" in text


@pytest.mark.parametrize(("lies", "where"), [
    (Lies(leak_port=6379), {("mirror", "verdicts"), ("mirror", "flows")}),
    (Lies(lose_telemetry=0.5), {("mirror", "telemetry")}),
    (Lies(slow_us=20.0), {("mirror", "cost")}),
])
def test_a_replay_names_what_came_out_otherwise(tmp_path: Path, honest: Finished, lies: Lies,
                                                where: set[tuple[str, str]]) -> None:
    found = agreement(honest, ran(tmp_path, lies))
    assert found.exit_code == 1 and where <= disagreeing(found)
    assert all(arm == "mirror" for arm, _ in disagreeing(found))


def test_other_surroundings_are_named(honest: Finished) -> None:
    was = read_saved(honest.directory)
    elsewhere = replace(was, summary=was.summary.model_copy(update={
        "labctl": "0.0.9", "environment": {"kernel": "5.10", "bpf_jit_enable": "0"}}))
    here = replace(was, summary=was.summary.model_copy(update={
        "environment": {"kernel": "6.1", "bpf_jit_enable": "1"}}))
    told = replaying.around(elsewhere, here)
    assert any("labctl: 0.0.9" in line for line in told)
    assert any("kernel" in line for line in told) and any("JIT" in line for line in told)


def test_an_arm_that_no_longer_runs_and_an_attack_that_stops_elsewhere_do_not_agree(honest: Finished) -> None:
    was = read_saved(honest.directory)

    def with_arm(**more: Any) -> Any:
        arm = was.summary.arms["mirror"].model_copy(update=more)
        return replace(was, summary=was.summary.model_copy(update={"arms": was.summary.arms | {"mirror": arm}}))

    gone = tuple(replaying.compared(was, with_arm(unsupported="no")))
    assert ("mirror", False) in {(one.arm, one.agrees) for one in gone}
    further = Attack(reached=True, blast_radius=1.0, time_to_goal_s=1.0, taken=("web-1", "db"))
    moved = tuple(replaying.compared(was, with_arm(attack=further)))
    assert [one.what for one in moved if one.agrees is False] == ["attack"]


def test_costs_that_a_run_says_are_not_to_be_judged_are_not(honest: Finished) -> None:
    was = read_saved(honest.directory)
    odd = replace(was, summary=was.summary.model_copy(update={
        "aa": was.summary.aa.model_copy(update={"differs": ("crr_p50_us",)})}))
    found = replaying.Agreement(tuple(replaying.compared(was, odd)), (), ())
    assert found.exit_code == 4
    assert replaying.Agreement((), ("spoilt",), ()).exit_code == 4


def test_shares_and_ratios_agree_within_their_errors_alone() -> None:
    assert replaying.alike(Recall(recall=0.90, n=200), Recall(recall=0.93, n=200), 5)
    assert not replaying.alike(Recall(recall=0.90, n=5000), Recall(recall=0.95, n=5000), 5)
    assert not replaying.alike(Recall(recall=None, n=0), Recall(recall=0.5, n=9), 5)
    one = Figure(ratio=1.20, low=1.18, high=1.22, n=28)
    assert not replaying.apart(one, Figure(ratio=1.21, low=1.19, high=1.23, n=28), 20)
    assert replaying.apart(one, Figure(ratio=1.35, low=1.33, high=1.37, n=28), 20)
    assert not replaying.apart(one, Figure(ratio=1.35, low=0.9, high=2.0, n=3), 20)


def test_a_result_without_its_scenario_cannot_be_replayed(tmp_path: Path, honest: Finished) -> None:
    saved = read_saved(honest.directory)
    with pytest.raises(SavedError, match=r"scenario\.yaml: cannot be read"):
        replaying.scenario_of(replace(saved, path=tmp_path))
    (tmp_path / "scenario.yaml").write_text("version: 9\n")
    with pytest.raises(SavedError, match="cannot run the result's scenario again"):
        replaying.scenario_of(replace(saved, path=tmp_path))


def test_what_programs_get_is_json(honest: Finished, stored: Baseline) -> None:
    assert json.loads(json.dumps(gating.judge(stored, honest, MARGIN).as_data()))["exit_code"] == 0
    assert json.loads(json.dumps(agreement(honest, honest).as_data()))["exit_code"] == 0


# --- how long a run goes on -------------------------------------------------------------------


def stopping(options: Options, elapsed_s: float, monkeypatch: pytest.MonkeyPatch, cells: list[Cell]) -> Collected:
    one = scenario()
    collected = Collected(one, options, select(one), {}, begun=0.0)
    collected.arms = dict.fromkeys(ARMS)  # type: ignore[arg-type]
    collected.cells = cells
    monkeypatch.setattr(experiment.time, "monotonic", lambda: elapsed_s)
    return collected


def test_a_run_whose_blocks_were_not_chosen_ends_in_time_but_not_before_sixteen(
        monkeypatch: pytest.MonkeyPatch) -> None:
    late = stopping(Options(), 700.0, monkeypatch, [])
    assert not experiment._enough(late, 15) and experiment._enough(late, 16)
    assert not experiment._enough(stopping(Options(), 100.0, monkeypatch, []), 27)
    assert not experiment._enough(stopping(Options(blocks=40), 700.0, monkeypatch, []), 39)
    assert not experiment._enough(stopping(experiment.quickly(Options()), 700.0, monkeypatch, []), 2)


def test_until_looks_where_the_rule_does_and_stops_when_narrow_or_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Options(until=0.05)
    found = stopping(narrow, 10.0, monkeypatch, cells_of(16))
    assert not experiment._enough(found, 15) and found.look is None
    assert experiment._enough(found, 16) and found.look is not None and found.look.enough
    wanting = stopping(Options(until=0.0001), 10.0, monkeypatch, cells_of(16))
    assert not experiment._enough(wanting, 16) and wanting.look is not None and wanting.look.needed > 16
    spent = stopping(Options(until=0.0001, budget_s=5.0), 10.0, monkeypatch, cells_of(7))
    assert experiment._enough(spent, 7) and spent.look is not None and not spent.look.enough
