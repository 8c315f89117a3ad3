"""Scenarios for people and editors: starter, list, tree, drawing, JSON Schema."""

from __future__ import annotations

import io
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema
import pytest
import yaml
from rich.console import Console

from bench.report.graph import svg
from bench.report.groups import by_labels, by_policy, edges
from bench.report.starter import starter
from bench.report.tree import as_data, tree
from lab.policy import decide, iter_flows
from lab.scenario import ScenarioError, load, loads
from lab.schema_json import fields, scenario_schema

ROOT = Path(__file__).parents[2]
THREE_TIER = ROOT / "scenarios/three-tier.yaml"
ARMS = ("none", "agent-nft", "agent-nft-monitor", "chokepoint")


def large(hosts: int = 60) -> str:
    entries = "".join(f"    n{i}: {{segment: s{i % 3}, labels: {{group: g{i % 7}}}, runs: [p{i}]}}\n"
                      for i in range(hosts))
    runs = "".join(f"  p{i}: {{exe: /opt/x/p{i}, listens: [{1000 + i % 4}/tcp]}}\n" for i in range(hosts))
    rules = "".join(f"    - allow: {{from: {{group: g{i}}}, to: {{group: g{j}}}, service: 1000-1003/tcp}}\n"
                    for i in range(7) for j in range(7) if i != j)
    return (f"version: 1\nname: large\ntopology:\n  segments: {{s0: {{}}, s1: {{}}, s2: {{}}}}\n  hosts:\n{entries}"
            f"processes:\n{runs}policy:\n  default: deny\n  rules:\n{rules}"
            "attack: {foothold: {host: n1, process: p1}, goal: {host: n2}}\n")


def shown(scenario: object, **more: bool) -> str:
    console = Console(width=120, no_color=True, record=True, file=io.StringIO())
    console.print(tree(scenario, **more))  # type: ignore[arg-type]
    return console.export_text()


# --- starter ------------------------------------------------------------------------------------


@pytest.mark.parametrize("locustfile", [None, "shop.py"])
def test_the_starter_is_right_and_explains_every_part(tmp_path: Path, locustfile: str | None) -> None:
    if locustfile:
        shutil.copy(ROOT / "scenarios" / locustfile, tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(starter("mine", str(file), ARMS, locustfile=locustfile, schema=None))
    scenario = load(file, ARMS)
    assert scenario.name == "mine" and scenario.attack and scenario.arms == ("none", "agent-nft", "chokepoint")
    assert (scenario.traffic is not None) == bool(locustfile)
    text = file.read_text()
    assert "\n#   yaml-language-server" in text and not text.startswith("# yaml-language-server")
    for part in ("topology", "processes", "policy", "traffic", "attack", "arms"):
        assert f"# --- {part}: " in text
    allowed = {(f.source, f.process, f.target) for f in iter_flows(scenario)
               if decide(scenario.policy, f, scenario.topology).allow}
    assert ("web", "frontend", "db") in allowed and ("web", "(stranger)", "db") not in allowed


def test_the_starter_fits_the_schema_it_names() -> None:
    text = starter("mine", "mine.yaml", ARMS, locustfile=None, schema="../docs/scenario.schema.json")
    assert text.splitlines()[0] == "# yaml-language-server: $schema=../docs/scenario.schema.json"
    jsonschema.validate(yaml.safe_load(text), scenario_schema(ARMS))


# --- schema -------------------------------------------------------------------------------------


def refused(document: object, arms: tuple[str, ...] = ()) -> bool:
    return not jsonschema.Draft202012Validator(scenario_schema(arms)).is_valid(document)


def test_the_schema_is_one_and_takes_every_scenario_there_is() -> None:
    jsonschema.Draft202012Validator.check_schema(scenario_schema())
    for path in (ROOT / "scenarios").glob("*.yaml"):
        assert not refused(yaml.safe_load(path.read_text())), path


MISTAKES = [
    ("version: 1", "version: 2"), ("name: three-tier", "name: Three Tier"), ("default: deny", "default: maybe"),
    ("default: deny", ""), ("vulnerable: true", "vulnerabel: true"), ("count: 2, l", "count: 0, l"),
    ("count: 2, l", "count: two, l"),
    ("exe: /opt/ops/backup", "exe: /usr/bin/backup"), ("user: backup", "user: root"),
    ("agent: impossible", "agent: never"), ("rate: 200/s", "rate: fast"), ("from: {role: user}", "from: {}"),
    ("from: {role: user}", "from: {any: true, role: user}"), ("{name: users to shop, allow:", "{name: users, alow:"),
    ("labels: {role: camera}", "labels: {host: camera}"), ("service: 80/tcp}", "service: []}"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), MISTAKES)
def test_a_mistake_of_shape_is_refused_by_schema_and_loader_alike(old: str, new: str) -> None:
    text = THREE_TIER.read_text()
    assert old in text
    wrong = text.replace(old, new, 1)
    assert refused(yaml.safe_load(wrong))
    with pytest.raises(ScenarioError):
        loads(wrong, str(THREE_TIER))


@pytest.mark.parametrize("path", sorted((ROOT / "tests/golden/scenario-errors").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_the_schema_refuses_the_loader_refuses(path: Path) -> None:
    try:
        document = yaml.safe_load(path.read_text())
    except yaml.YAMLError:
        return
    if refused(document):
        with pytest.raises(ScenarioError):
            load(path)


def test_unknown_arms_are_refused_where_the_installed_ones_are_known() -> None:
    document = yaml.safe_load(THREE_TIER.read_text())
    assert not refused(document, ARMS) and refused({**document, "arms": ["none", "agent-ntf"]}, ARMS)


def test_every_field_says_what_it_means_and_what_to_write() -> None:
    found = fields()
    assert len(found) > 45 and all(f.means and f.write for f in found)
    assert {"policy.rules[].allow.from", "topology.hosts.<name>.agent", "traffic.rate"} <= {f.place for f in found}


# --- tree and drawing ---------------------------------------------------------------------------


def test_the_tree_tells_topology_and_policy() -> None:
    text = shown(load(THREE_TIER))
    for words in ("segment dmz", "web-1", "foothold", "crown jewel", "no agent possible", "listens on 8080/tcp",
                  "as www", "allow role=web, process=frontend → role=api on 8080/tcp (shop calls api)"):
        assert words in text, words


def test_a_large_scenario_is_summed_up_and_says_so() -> None:
    scenario = loads(large(), "x.yaml")
    text = shown(scenario)
    assert len(text.splitlines()) < 60 and "more; --all shows them" in text and "foothold n1" in text
    everything = shown(scenario, everything=True)
    assert all(f" n{i} " in everything for i in range(60)) and "--all" not in everything


def test_as_data_leaves_nothing_out() -> None:
    found = as_data(loads(large(), "x.yaml"))
    assert sum(len(segment["hosts"]) for segment in found["segments"]) == 60 and len(found["policy"]["rules"]) == 42
    assert json.loads(json.dumps(found)) == found


def test_the_drawing_is_xml_always_the_same_and_shows_what_matters() -> None:
    scenario = load(THREE_TIER)
    drawn = svg(scenario)
    assert drawn == svg(scenario)
    texts = [e.text for e in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    for words in ("dmz", "web-1", "80/tcp", "8080/tcp", "6379/tcp", "crown jewel", "no agent",
                  "foothold: web-1, in frontend"):
        assert words in texts, words


def test_texts_of_the_user_are_escaped() -> None:
    text = THREE_TIER.read_text().replace("users to shop", "<script>&$x$").replace("role: user", 'role: "<b>"')
    drawn = svg(loads(text, str(THREE_TIER)))
    assert "<script>" not in drawn and "&lt;script&gt;&amp;$x$" in drawn
    ElementTree.fromstring(drawn)


def test_a_large_drawing_is_a_table_of_groups() -> None:
    scenario = loads(large(), "x.yaml")
    drawn = svg(scenario)
    assert "asks ↓" in drawn and drawn.count("group=g") < 200
    assert sum(len(group.hosts) for group in by_labels(scenario)) == 60


def test_arrows_are_what_the_oracle_allows_host_by_host() -> None:
    """One host speaks for its group: whatever any pair of hosts may do, the arrow says, and nothing else."""
    text = large(20) + "    # none\n"
    text = text.replace("  rules:\n", "  rules:\n    - deny: {from: {host: n3}, to: {any: true}, service: any}\n"
                                      "    - allow: {from: {cidr: 10.1.0.0/28}, to: {host: n5}, service: 1001/tcp}\n")
    scenario = loads(text.replace("    # none\n", ""), "x.yaml")
    groups = by_policy(scenario)
    place = {host.name: i for i, group in enumerate(groups) for host in group.hosts}
    arrows = {(e.source, e.target): set(e.services) for e in edges(scenario, groups)}
    real: dict[tuple[int, int], set[str]] = {}
    for flow in iter_flows(scenario):
        if (flow.source != flow.target and flow.family == 4 and flow.process.startswith("p") and flow.port < 2000
                and flow.proto == "tcp" and decide(scenario.policy, flow, scenario.topology).allow):
            real.setdefault((place[flow.source], place[flow.target]), set()).add(f"{flow.port}/tcp")
    assert arrows == real
