"""Blast radius, ways and cuts against brute force; Kaplan-Meier against a textbook; campaigns against what can be."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import networkx
import pytest
from typer.testing import CliRunner

from bench import lateral, registry
from bench.analysis import survival
from bench.analysis.paths import EVERYTHING, Positions, value, vulnerable
from bench.analysis.walks import Walks
from bench.cli import app
from bench.report.lateral import advice
from lab.model import STRANGER, Flow, Host, Process, Service, Topology
from lab.policy import WRONG_PORTS, flows, owner_user
from lab.scenario import load

THREE_TIER = load(Path(__file__).parents[2] / "scenarios" / "three-tier.yaml")


def world(n: int, labels: dict[str, dict[str, str]] | None = None) -> Topology:
    """h0..hn-1, each running `a` and `b`, both listening."""
    hosts = {f"h{i}": Host(f"h{i}", "s", f"10.0.0.{i + 1}", f"fd00::{i + 1}", f"02:00:00:00:00:{i:02x}",
                           (labels or {}).get(f"h{i}", {}), ("a", "b")) for i in range(n)}
    processes = {name: Process(name, f"/opt/{name}", name, 20000 + k, (Service("tcp", 80 + k, 80 + k),),
                               vulnerable=True) for k, name in enumerate("ab")}
    return Topology({}, hosts, processes, {"a": 20000, "b": 20001})


def flow(source: str, process: str, target: str, owner: str = "a") -> Flow:
    user = "nobody" if process == STRANGER else process
    return Flow(source, process, user, target, owner, "tcp", 80 + "ab".index(owner), 4)


def drawn(topology: Topology, rng: random.Random, share: float) -> list[Flow]:
    every = [flow(s, p, t, o) for s in topology.hosts for p in ("a", "b", STRANGER) for t in topology.hosts
             for o in "ab" if s != t]
    return [one for one in every if rng.random() < share]


def graph(opened: list[Flow], topology: Topology, weak: frozenset[tuple[str, str]]) -> networkx.DiGraph:
    """The same positions by other means: a graph of networkx."""
    found = networkx.DiGraph()
    for host in topology.hosts:
        found.add_edges_from(((host, p), (host, STRANGER)) for p in "ab")
    found.add_edges_from(((f.source, f.process), (f.target, f.target_process)) for f in opened
                         if (f.target, f.target_process) in weak)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_blast_radius_ways_and_cuts_are_those_of_a_general_graph(seed: int) -> None:
    rng, topology = random.Random(seed), world(6)
    opened, weak = drawn(topology, rng, 0.08), vulnerable(topology, 0.7, seed)
    positions, other = Positions(opened, topology, weak), graph(opened, topology, weak)
    spread = positions.spread()
    shares = {place: len({h for h, _p in networkx.descendants(other, place)} - {place[0]}) / 5
              for place in other if place[1] != STRANGER}
    assert spread.footholds == 12 and spread.mean == pytest.approx(sum(shares.values()) / 12)
    assert spread.worst == max(shares.values()) == shares[tuple(spread.worst_at.split("/"))]  # type: ignore[index]
    way, goals = positions.way(("h0", "a"), ["h5"]), [("h5", p) for p in ("a", "b", STRANGER)]
    if not any(networkx.has_path(other, ("h0", "a"), goal) for goal in goals):
        assert way.hops is None and way.close == ()
        return
    assert len(way.shortest) == way.hops and way.shortest[-1].target == "h5"
    closed = graph([f for f in opened if f not in way.close], topology, weak)
    assert not any(networkx.has_path(closed, ("h0", "a"), goal) for goal in goals), "the cut does not cut"
    smaller = combinations([f for f in opened if (f.target, f.target_process) in weak], len(way.close) - 1)
    for some in smaller if len(way.close) <= 3 else ():
        left = graph([f for f in opened if f not in some], topology, weak)
        assert any(networkx.has_path(left, ("h0", "a"), goal) for goal in goals), "fewer flows would do"
    if way.mend is not None:
        mended = weak - {tuple(text.split("/")) for text in way.mend}
        left = graph(opened, topology, frozenset(mended))  # type: ignore[arg-type]
        assert not any(networkx.has_path(left, ("h0", "a"), goal) for goal in goals)
        assert len(way.mend) == way.disjoint


def test_a_process_that_is_not_held_does_not_act_and_a_dropped_binary_does() -> None:
    topology = world(3)
    weak = vulnerable(topology, 1.0)
    held = Positions([flow("h0", "a", "h1"), flow("h1", "b", "h2")], topology, weak)
    assert held.way(("h0", "a"), ["h2"]).hops is None
    dropped = Positions([flow("h0", "a", "h1"), flow("h1", STRANGER, "h2")], topology, weak)
    assert dropped.way(("h0", "a"), ["h2"]).hops == 2


def test_what_only_probes_use_gives_nothing() -> None:
    topology = world(2)
    odd = replace(flow("h0", "a", "h1"), port=WRONG_PORTS[1])
    assert Positions([odd], topology, vulnerable(topology, 1.0)).spread().worst == 0


def test_values_weigh() -> None:
    topology = world(3, {"h1": {"value": "7"}, "h2": {"value": "crown-jewel"}})
    assert [value(topology, h) for h in topology.hosts] == [1, 7, 10]
    spread = Positions([flow("h0", "a", "h2")], topology, vulnerable(topology, 1.0)).spread()
    assert spread.worst == 0.5 and spread.weighted_worst == pytest.approx(10 / 17)


def test_the_seeded_share_is_of_what_listens() -> None:
    topology = world(10)
    assert len(vulnerable(topology, 0.1, 3)) == 2 and vulnerable(topology, 0.1, 3) == vulnerable(topology, 0.1, 3)
    assert vulnerable(topology, 0.1, 3) != vulnerable(topology, 0.1, 4)


def test_kaplan_meier_is_that_of_the_textbook() -> None:
    """Remission under 6-MP: Freireich et al., Blood 21 (1963), an example in every textbook of survival analysis."""
    spent = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
    reached = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    curve = survival.kaplan_meier(spent, list(map(bool, reached)))
    at = dict(zip(curve.times, curve.surviving, strict=True))
    for time, share in {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}.items():
        assert at[time] == pytest.approx(share, abs=5e-4)
    found = survival.middle(spent, list(map(bool, reached)))
    assert (found.median, found.low, found.high, found.n, found.reached) == (23, 13, None, 21, 9)


def test_who_never_gets_there_is_no_median_and_no_multiple() -> None:
    found = survival.middle([4.0, 5.0, 6.0], [False, False, True])
    assert found.median is None or found.median == 6.0
    assert survival.multiple([9.0] * 20, [False] * 20, [3.0] * 20, [True] * 20, 1).never
    nothing = survival.multiple([9.0] * 20, [True] * 20, [3.0] * 20, [False] * 20, 1)
    assert nothing.ratio in (0, None) and not nothing.never


def test_a_multiple_is_that_of_the_medians_and_its_interval_covers_it() -> None:
    rng = random.Random(5)
    base = [rng.uniform(50, 150) for _ in range(200)]
    found = survival.multiple([4 * b for b in base], [True] * 200, base, [True] * 200, 1)
    assert found.ratio == pytest.approx(4) and found.low == pytest.approx(4) and found.high == pytest.approx(4)


def test_campaigns_take_what_is_open_count_every_attempt_and_repeat_by_seed() -> None:
    topology = world(3)
    tried = {flow(s, p, t, o): False for s in topology.hosts for p in ("a", "b", STRANGER)
             for t in topology.hosts for o in "ab" if s != t}
    tried |= {flow("h0", "a", "h1"): True, flow("h1", STRANGER, "h2", "b"): True}
    walks = Walks(tried, topology, vulnerable(topology, 1.0))
    found = walks.run(("h0", "a"), ["h2"], range(50))
    assert found == walks.run(("h0", "a"), ["h2"], range(50)) and len({walk.attempts for walk in found}) > 5
    assert all(walk.reached and 4 <= walk.attempts <= 18 for walk in found)
    del tried[flow("h1", STRANGER, "h2", "b")]
    cut = Walks(tried, topology, vulnerable(topology, 1.0))
    assert not any(walk.reached for walk in cut.run(("h0", "a"), ["h2"], range(5)))


def test_three_tier_by_hand() -> None:
    every = [f for f in flows(THREE_TIER) if f.proto == "tcp"]
    open_to_all = dict.fromkeys(every, True)
    allowed = {("web", "frontend", "api"), ("api", "api", "db")}
    policy = {f: (f.user == owner_user(f.process, THREE_TIER.topology)
                       and (f.source.split("-")[0], f.process, f.target_process) in {
                           (s, p, "api" if t == "api" else "store") for s, p, t in allowed}) for f in every}
    found = lateral.laterals(THREE_TIER, {"none": open_to_all, "ideal": policy})
    assert found["none"].way is not None and found["none"].way.hops == 1 and found["none"].way.mend is None
    ideal = found["ideal"]
    assert ideal.way is not None and ideal.way.hops == 2 and ideal.way.disjoint == 2
    assert ideal.way.mend == ("api-1/api", "api-2/api")
    assert all("rule shop calls api" in text or "rule api reads store" in text for text in ideal.way.close)
    assert any("mend first: api-1/api; api-2/api" in line for line in advice(ideal))
    assert ideal.spread[EVERYTHING].mean < found["none"].spread[EVERYTHING].mean
    assert ideal.difficulty is not None and ideal.difficulty.attempts_multiple.ratio is not None
    assert found["none"].difficulty is not None and found["none"].difficulty.attempts_multiple.ratio == 1


def test_the_command_shows_what_is_expected_and_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    got = CliRunner().invoke(app, ["attack", "three-tier", "--arms", "agent-nft", "--json"])
    assert got.exit_code == 0, got.output
    found = json.loads(got.output)
    assert found["source"] == "expected" and list(found["arms"]) == ["none", "agent-nft"]
    assert found["arms"]["agent-nft"]["way"]["mend"] == ["api-1/api", "api-2/api"]
    shown = CliRunner().invoke(app, ["attack", "three-tier"])
    assert shown.exit_code == 0 and "no packet was sent" in shown.output
    bad = CliRunner().invoke(app, ["attack", str(tmp_path)])
    assert bad.exit_code == 2 and "no summary.json" in bad.output


SEGMENTED = ("flat-network", "environment-separation", "ring-fence", "tier-segmentation")


def test_the_four_scenarios_are_one_network_and_each_cut_is_harder_for_an_arm_that_sees_hosts() -> None:
    """By what is expected; agent-nft is on every host there, so that nothing but the policy differs."""
    found = {}
    loaded = [load(Path(__file__).parents[2] / "scenarios" / f"{name}.yaml") for name in SEGMENTED]
    assert all((one.topology, one.attack) == (loaded[0].topology, loaded[0].attack) for one in loaded)
    for one in loaded:
        every = [f for f in flows(one) if f.proto == "tcp" and f.family == 4]
        arms = {name: registry.load(name) for name in ("none", "agent-nft")}
        found[one.name] = lateral.laterals(one, lateral.expected(one, arms, every))["agent-nft"].difficulty
    multiples = [one.attempts_multiple.ratio for one in found.values() if one is not None]
    assert multiples[0] == 1 and multiples == sorted(multiples) and multiples[1] > 2, multiples
