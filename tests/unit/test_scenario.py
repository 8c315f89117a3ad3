from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.model import Attack, Selector, Service
from lab.policy import decide, flows
from lab.scenario import ScenarioError, load, loads
from lab.yaml_text import MAX_BYTES

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/scenario-errors"
THREE_TIER = ROOT / "scenarios/three-tier.yaml"
ARMS = ("none", "agent-nft", "chokepoint")
SMALL = """
version: 1
name: small
topology:
  segments: {office: {}, dmz: {v4: 10.1.0.0/16}}
  hosts:
    user: {segment: office, count: 2, labels: {role: user, floor: 3}, runs: [browser]}
    web: {segment: dmz, labels: {role: web}, runs: [frontend]}
processes:
  browser: {exe: /opt/client/browser}
  frontend: {exe: /opt/shop/frontend, user: www, listens: [80/tcp, 8000-8002/udp]}
policy:
  default: deny
  rules:
    - allow: {from: {host: user}, to: {role: web}, service: frontend, family: 6}
"""


def problems(text: str, name: str = "x.yaml") -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        loads(text, name, ARMS)
    return [str(problem) for problem in caught.value.problems]


def small(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new)


# --- what a right file means --------------------------------------------------------------------


def test_three_tier_is_what_the_file_says():
    scenario = load(THREE_TIER, ARMS)
    topology = scenario.topology
    assert list(topology.hosts) == ["user-1", "user-2", "web-1", "web-2", "api-1", "api-2", "db", "cam"]
    assert topology.hosts["api-2"].runs == ("api", "backup") and not topology.hosts["cam"].takes_agent
    assert [rule.name for rule in scenario.policy.rules] == ["users to shop", "shop calls api", "api reads store"]
    assert scenario.policy.rules[1].source == Selector({"role": ("web",), "process": ("frontend",)})
    assert scenario.attack == Attack("web-1", "frontend", ("db",))
    assert scenario.traffic is not None and scenario.traffic.rate == 200.0
    assert scenario.traffic.clients == ("user-1", "user-2") and scenario.traffic.target_hosts == ("web-1", "web-2")
    assert scenario.traffic.locustfile == str(THREE_TIER.with_name("shop.py"))
    assert scenario.arms == ARMS and scenario.seed == 1 and scenario.path == str(THREE_TIER)


def test_three_tier_allows_what_its_policy_says_and_no_more():
    scenario = load(THREE_TIER)
    allowed = {
        (f.source[:3], f.process, f.target[:3], f.port)
        for f in flows(scenario)
        if decide(scenario.policy, f, scenario.topology).allow
    }
    assert allowed == {
        ("use", "browser", "web", 80), ("use", "shopper", "web", 80), ("use", "(stranger)", "web", 80),
        ("web", "frontend", "api", 8080), ("api", "api", "db", 6379),
    }  # fmt: skip


def test_users_get_uids_in_order_of_first_appearance_and_services_never_run_as_root():
    topology = loads(SMALL, "x.yaml").topology
    assert topology.users == {"svc": 20000, "www": 20001, "nobody": 65534}
    assert topology.processes["frontend"].uid == 20001


def test_segments_without_prefix_get_one_that_is_free_and_hosts_follow_the_router():
    topology = loads(SMALL, "x.yaml").topology
    office, dmz = topology.segments["office"], topology.segments["dmz"]
    assert (office.v4, office.v6, dmz.v4, dmz.v6) == ("10.2.0.0/16", "fd10:1::/64", "10.1.0.0/16", "fd10:2::/64")
    assert (office.gateway4, office.gateway6) == ("10.2.0.1", "fd10:1::1")
    assert [h.v4 for h in topology.hosts.values()] == ["10.2.0.2", "10.2.0.3", "10.1.0.2"]
    assert [h.v6 for h in topology.hosts.values()] == ["fd10:1::2", "fd10:1::3", "fd10:2::2"]
    assert [h.mac for h in topology.hosts.values()] == [f"02:00:00:00:00:0{i}" for i in (1, 2, 3)]


def test_stated_addresses_are_kept_and_the_others_go_round_them():
    text = small("labels: {role: web}", "v4: 10.1.0.2").replace("role: web", "host: web")
    text = text.replace("processes:\n", "    peer: {segment: dmz, external: true}\nprocesses:\n")
    hosts = loads(text, "x.yaml").topology.hosts
    assert (hosts["web"].v4, hosts["peer"].v4, hosts["web"].v6) == ("10.1.0.2", "10.1.0.3", "fd10:2::2")
    assert not hosts["peer"].takes_agent


def test_a_prefix_is_used_to_its_last_address():
    text = small("v4: 10.1.0.0/16", "v4: 10.1.0.0/29").replace("web: {", "web: {count: 5, ", 1)
    hosts = [h for h in loads(text, "x.yaml").topology.hosts.values() if h.segment == "dmz"]
    assert [h.v4 for h in hosts] == [f"10.1.0.{n}" for n in range(2, 7)]
    assert all(ip_address(h.v4) in ip_network("10.1.0.0/29") for h in hosts)
    assert "has no room for 6 hosts" in problems(text.replace("count: 5", "count: 6"))[0]


def test_a_host_entry_stands_for_all_its_hosts_and_a_process_for_its_services():
    (rule,) = loads(SMALL, "x.yaml").policy.rules
    assert rule.name == "rule-1" and rule.source.keys == {"host": ("user-1", "user-2")}
    assert rule.services == (Service("tcp", 80, 80, 6), Service("udp", 8000, 8002, 6))


def test_labels_are_text_and_keep_their_spelling():
    text = small("floor: 3", "floor: 3, a: no, b: 1.10, c: 007, d: true, e: 22:22")
    labels = loads(text, "x.yaml").topology.hosts["user-1"].labels
    assert labels == {"role": "user", "floor": "3", "a": "no", "b": "1.10", "c": "007", "d": "true", "e": "22:22"}
    assert loads(text.replace("{host: user}", "{floor: 3}"), "x.yaml").policy.rules[0].source.keys == {"floor": ("3",)}


def test_any_selects_everything():
    assert loads(small("{host: user}", "{any: true}"), "x.yaml").policy.rules[0].source == Selector({})


def test_arms_default_to_all_that_the_caller_knows():
    assert loads(SMALL, "x.yaml").arms == ("none",) and loads(SMALL, "x.yaml", ARMS).arms == ARMS


def test_recorded_flows_come_with_the_processes_at_both_ends():
    rows = "replay: {foreseen: [[user-1, web, 80/tcp, 5]], unforeseen: [[user-2, web, 8001/udp, 0]]}\ninvented: [x]\n"
    scenario = loads(SMALL + rows, "x.yaml")
    assert [(str(r.flow), r.count, r.foreseen) for r in scenario.replay] == [
        ("user-1/browser(svc) > web/frontend 80/tcp v4", 5, True),
        ("user-2/browser(svc) > web/frontend 8001/udp v4", 0, False),
    ]
    assert scenario.invented == ("x",)


def test_traffic_finds_its_process_and_its_targets(tmp_path):
    (tmp_path / "shop.py").touch()
    text = small("family: 6", "family: 4") + "traffic: {clients: {role: user}, locustfile: shop.py, rate: 20}\n"
    traffic = loads(text, str(tmp_path / "x.yaml")).traffic
    assert traffic is not None and (traffic.process, traffic.target_hosts, traffic.rate) == ("browser", ("web",), 20.0)


def test_an_alias_repeats_a_value():
    text = small("runs: [browser]", "runs: &r [browser]").replace("runs: [frontend]", "runs: [frontend, browser]")
    assert loads(text, "x.yaml").topology.hosts["web"].runs == ("frontend", "browser")


# --- what a wrong file says ---------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(path.stem for path in GOLDEN.glob("*.yaml")))
def test_every_mistake_is_one_line_and_all_come_at_once(case, monkeypatch):
    monkeypatch.chdir(GOLDEN)
    with pytest.raises(ScenarioError) as caught:
        load(f"{case}.yaml", ARMS)
    lines = [str(problem) for problem in caught.value.problems]
    assert lines == (GOLDEN / f"{case}.txt").read_text().splitlines()
    assert str(caught.value) == "\n".join(lines)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes(b"version: 1\nname: caf\xe9\n")
    (tmp_path / "big").write_bytes(b"#" * (MAX_BYTES + 1))
    expected = {
        "latin": "latin:2: byte 0xe9 is not UTF-8; save the file as UTF-8",
        "big": "big: has more than 16 MiB; write a smaller scenario",
        "none": "none: cannot be read: No such file or directory; name a scenario file",
        ".": ": is a directory; name a scenario file in it",
        "a\0b": "a\\x00b: cannot be a file's name; name a scenario file",
    }
    for name, message in expected.items():
        with pytest.raises(ScenarioError) as caught:
            load(tmp_path / name)
        assert str(caught.value).endswith(message)
    with pytest.raises(ScenarioError, match="is not a regular file"):
        load("/dev/null")


def test_aliases_cannot_blow_a_file_up():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for one, other in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{other}: &{other} [{', '.join(['*' + one] * 10)}]\n"
    assert problems(bomb) == ["x.yaml:6: more than 1000000 values, aliases expanded; write a smaller scenario"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [*a]", "x.yaml:1: the alias *a names nothing above; write the value"),
        ("[" * 1000, "x.yaml:1: nested more than 24 deep; a scenario never is"),
        ("a: 1\n---\nb: 2", "x.yaml:2: a second document starts here; write one scenario a file"),
        ("a: \x01", "x.yaml: not YAML: a control character or half a character is in it; write plain UTF-8 text"),
        ("a: \ud800", "x.yaml: not YAML: a control character or half a character is in it; write plain UTF-8 text"),
        ("? [a]\n: b", "x.yaml:1: a key under the top is not text"),
    ],
)
def test_odd_yaml(text, expected):
    assert problems(text) == [expected]


def test_a_file_name_cannot_break_the_line():
    assert problems("", "a\nb\x1b[31m") == [
        "a\\nb\\x1b[31m: the file is empty; write a scenario, beginning with version: 1"
    ]


def test_traffic_that_the_policy_lets_go_nowhere(tmp_path):
    (tmp_path / "shop.py").touch()
    text = SMALL + "traffic: {clients: {role: user}, locustfile: shop.py, rate: 20}\n"
    (line,) = problems(text, str(tmp_path / "x.yaml"))
    assert line.endswith("traffic: the policy lets 'browser' reach no tcp service; allow one, or write to: …")


# --- 500 mutated files --------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 4096, 5000, 2**70, 10**30, 1.5, float("inf"), float("nan"), "", " ", "\n", "no",
    "http", "80/tcp", "0-99999/tcp", "1-65535/udp", "10.0.0.0/8", "::/0", "fd10::/127", "99.99.99.99", "web", "router",
    "any", "(stranger)", "root", "nobody", "../../etc/passwd", "/opt/../etc", "/opt/shop/api/x", "x" * 10_000,
    "\U0001f600", "é\u202e\u2028", "nul\0", "\x1b[2J", [], {}, [[]], [None], ["web"] * 50, {"": {}}, {"any": True},
    {"any": [1, {}]}, {"from": {}}, {"x" * 5000: 1}, {"role": ["web", ["db"]]}, {"cidr": "10.10.0.0/99"},
    {"process": "api", "user": "x"},
)  # fmt: skip


def _places(data: Any, inside: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in items for place in ((*inside, key), *_places(value, (*inside, key)))]


def _mutate_data(data: Any, rng: random.Random) -> None:
    place = rng.choice(_places(data) or [()])
    if not place:
        return
    parent = data
    for key in place[:-1]:
        parent = parent[key]
    key, action = place[-1], rng.randrange(5)
    if action == 0:
        del parent[key]
    elif action == 1:
        parent[key] = rng.choice(ODD)
    elif action == 2 and isinstance(parent, dict):
        parent[rng.choice((f"{key}s", str(key)[:-1], "x\ny", key * 2, rng.choice("abc")))] = parent.pop(key)
    elif action == 3 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), parent[key])
    else:
        other = data
        for part in rng.choice(_places(data)):
            other = other[part]
        parent[key] = yaml.safe_load(yaml.safe_dump(other))


def _mutate_text(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    index = rng.randrange(len(lines))
    column = rng.randrange(len(lines[index]) + 1)
    edits: tuple[Callable[[str], str], ...] = (
        lambda line: line[:column] + rng.choice("{}[]:,&*!|>'\"%@`#-?\t\0\x85\ufeff\ud800é") + line[column:],
        lambda line: line[:column] + line[column + 1 :],
        lambda line: line + "\n" + line,
        lambda line: " " * rng.randrange(4) + line,
        lambda line: line[:column],
        lambda line: line.replace(": ", rng.choice((": &a ", ": *a ", ": !!binary ", ":", " : ", ": !x ")), 1),
        lambda line: "",
    )
    lines[index] = rng.choice(edits)(lines[index])
    return "\n".join(lines)


def mutant(seed: int) -> str:
    """three-tier, a little wrong: in its data, in its text, or in both."""
    rng = random.Random(seed)
    text = THREE_TIER.read_text()
    if rng.random() < 0.6:
        data = yaml.safe_load(text)
        for _ in range(rng.randint(1, 4)):
            _mutate_data(data, rng)
        text = yaml.safe_dump(data, sort_keys=False, default_flow_style=rng.choice((None, True, False)))
    for _ in range(rng.randint(0, 3)):
        text = _mutate_text(text, rng)
    return text


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**63))
def test_mutated_files_give_clear_errors_or_load(seed):
    try:
        scenario = loads(mutant(seed), str(THREE_TIER.with_name("mutant.yaml")), ARMS)
    except ScenarioError as err:
        assert err.problems
        for problem in err.problems:
            line = str(problem)
            assert problem.message and line.isprintable() and len(line.splitlines()) == 1 and len(line) < 1000
    else:
        assert scenario.topology.hosts


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_clear_errors(text):
    assert all(line.isprintable() for line in problems(text))
