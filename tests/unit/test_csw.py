from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pytest

from lab.importers.csw import CswError, import_csw
from lab.policy_sets import Oracle
from lab.scenario import loads

ROOT = Path(__file__).resolve().parents[2]
G21 = Path(os.environ.get("LABCTL_CSW", ROOT.parent / "shared/data/csw-g21"))
needs_g21 = pytest.mark.skipif(
    not (G21 / "groupings.gt.txt").is_file(), reason=f"{G21} is not there; set LABCTL_CSW to the csw-g21 directory"
)
HOURS = (
    "g9\t1\t3\t1p6-10,2p6-1,5p17-0\ng9\t2\t3\t1p6-10,2p6-1,5p17-2\n",
    "g9\t3\t3\t7p6-1\ng9\t1\t3\t1p6-4\ng9\t8\t4\t9p1-1,99999p6-1\n",
    "g9\t1\t4\t6p6-3\ng9\t2\t4\t6p6-3\ng9\t8\t3\t1p6-1\ng9\t1\t3\t2p6-3\n",
)


def dataset(directory: Path, hours=HOURS, groups: str = "1,2\n3\n4\n5\n") -> Path:
    edges = directory / "dir_includes_packets_and_other_nodes"
    edges.mkdir(parents=True)
    for number, text in enumerate(hours):
        (edges / f"edges_to_ports_20220210{number:02}00.anon.txt.gz").write_bytes(gzip.compress(text.encode()))
    (directory / "groupings.gt.txt").write_text(groups)
    return directory


def replayed(scenario, foreseen: bool) -> set[str]:
    return {f"{r.flow.source}>{r.flow.target} {r.flow.port}/{r.flow.proto} {r.count}" for r in scenario.replay
            if r.foreseen == foreseen}  # fmt: skip


def rules(scenario) -> list[tuple]:
    return [
        (dict(r.source.keys), dict(r.target.keys), [(s.proto, s.low, s.high) for s in r.services])
        for r in scenario.policy.rules
    ]


def test_grouped_takes_the_groups_and_learns_what_the_first_hours_showed(tmp_path):
    made = import_csw(dataset(tmp_path), train_hours=2, arms=("none",))
    scenario = loads(made.text, "g9.yaml")
    assert list(scenario.topology.hosts) == ["n1", "n2", "n3", "n4", "n5"], (
        "a grouped node without traffic is a host too"
    )
    assert scenario.topology.hosts["n2"].labels == {"group": "g01"} and scenario.name == "g9-grouped"
    assert rules(scenario) == [
        ({"group": ("g01",)}, {"group": ("g02",)}, [("tcp", 10001, 10002), ("udp", 10005, 10005)]),
        ({"group": ("g02",)}, {"group": ("g02",)}, [("tcp", 10007, 10007)]),
    ]
    assert replayed(scenario, True) == {
        "n1>n3 10001/tcp 2", "n1>n3 10002/tcp 2", "n1>n3 10005/udp 1", "n2>n3 10001/tcp 1", "n2>n3 10002/tcp 1",
        "n2>n3 10005/udp 1", "n3>n3 10007/tcp 1",
    }  # fmt: skip
    assert replayed(scenario, False) == {"n1>n4 10006/tcp 1", "n2>n4 10006/tcp 1"}
    assert (made.hosts, made.rules, made.foreseen, made.unforeseen) == (5, 2, 7, 2)
    assert scenario.attack is not None and scenario.attack.goals == ("n3",) and scenario.attack.foothold_host != "n3"
    assert scenario.topology.processes["n3d"].vulnerable and scenario.arms == ("none",)


def test_all_takes_every_active_node_and_says_what_it_left_out(tmp_path):
    made = import_csw(dataset(tmp_path), nodes="all", train_hours=2)
    scenario = loads(made.text, "g9.yaml")
    assert list(scenario.topology.hosts) == ["n1", "n2", "n3", "n4", "n8"]
    assert scenario.topology.hosts["n8"].labels == {"group": "none"}
    assert "n8>n3 10001/tcp 1" in replayed(scenario, False)
    assert made.left_out == (
        "left out: 1 triples of protocols other than 6 (tcp) and 17 (udp)",
        "left out: 1 triples with a service code outside 1 to 50000",
        "left out: 1 nodes that have a group and no traffic",
    )
    assert set(made.left_out) <= set(scenario.invented)


def test_nodes_without_a_group_are_named_as_hosts(tmp_path):
    made = import_csw(dataset(tmp_path, groups="3\n"), nodes="all", train_hours=2)
    learnt = rules(loads(made.text, "x.yaml"))
    assert ({"host": ("n1", "n2")}, {"group": ("g01",)}, [("tcp", 10001, 10002), ("udp", 10005, 10005)]) in learnt


def test_host_level_merges_sources_with_the_same_services(tmp_path):
    made = import_csw(dataset(tmp_path), train_hours=2, policy_level="host")
    assert rules(loads(made.text, "x.yaml")) == [
        ({"host": ("n1", "n2")}, {"host": ("n3",)}, [("tcp", 10001, 10002), ("udp", 10005, 10005)]),
        ({"host": ("n3",)}, {"host": ("n3",)}, [("tcp", 10007, 10007)]),
    ]


def test_the_seed_decides_and_nothing_else(tmp_path):
    directory = dataset(tmp_path)
    texts = [import_csw(directory, train_hours=2, seed=seed).text for seed in (1, 1, 2, 3, 4, 5)]
    assert texts[0] == texts[1] and len(set(texts)) > 2


def test_without_traffic_among_the_nodes_there_is_no_attack(tmp_path):
    made = import_csw(dataset(tmp_path, groups="5,6\n"), train_hours=2)
    scenario = loads(made.text, "x.yaml")
    assert scenario.attack is None and not scenario.policy.rules and not scenario.replay


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda d: (d / "groupings.gt.txt").unlink(),
            "groupings.gt.txt: No such file or directory; name the directory",
        ),
        (
            lambda d: (d / "groupings.gt.txt").write_text("1,x"),
            "is not lines of node,node,…; take the file as published",
        ),
        (lambda d: [f.unlink() for f in d.rglob("*.gz")], "there are no edges_to_ports_*.txt.gz; name the directory"),
        (lambda d: next(d.rglob("*.gz")).write_bytes(b"x"), "cannot be read (BadGzipFile); take the file as published"),
        (
            lambda d: next(d.rglob("*.gz")).write_bytes(gzip.compress(b"g9 1 2")),
            "is not graph, client, server, services",
        ),
        (lambda d: next(d.rglob("*.gz")).write_bytes(gzip.compress(b"g9\t1\t2\t3q")), "'3q' is not code, protocol and"),
        (lambda d: next(d.rglob("*.gz")).write_bytes(gzip.compress(b"g8\t1\t2\t3p6-1")), "edges of 2 graphs; keep the"),
    ],
)
def test_wrong_data_is_one_line(tmp_path, spoil, message):
    spoil(dataset(tmp_path))
    with pytest.raises(CswError) as caught:
        import_csw(tmp_path, train_hours=2)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_there_must_be_later_hours(tmp_path):
    with pytest.raises(CswError, match="has 3 hours; train on 1 to 2 of them"):
        import_csw(dataset(tmp_path), train_hours=3)


@needs_g21
@pytest.mark.parametrize(("nodes", "hosts", "kept"), [("grouped", 59, 10_415), ("all", 317, 10_851)])
def test_g21_as_its_readme_counts_it(nodes, hosts, kept):
    made = import_csw(G21, nodes=nodes)
    begun = time.monotonic()
    scenario = loads(made.text, "g21.yaml")
    assert time.monotonic() - begun < 60
    assert len(scenario.topology.hosts) == hosts and made.foreseen + made.unforeseen == len(scenario.replay) == kept
    assert len({h.labels["group"] for h in scenario.topology.hosts.values()} - {"none"}) == 23
    groups_of: dict[str, set[str]] = {}
    for host in scenario.topology.hosts.values():
        groups_of.setdefault(host.segment, set()).add(host.labels["group"])
    assert len(groups_of) == 6 and all(len(groups - {"none"}) >= 3 for groups in groups_of.values())
    oracle = Oracle(scenario.policy, scenario.topology)
    assert all(v.allow for v in oracle.verdicts([r.flow for r in scenario.replay if r.foreseen])), "learnt, so allowed"
    later = [v.allow for v in oracle.verdicts([r.flow for r in scenario.replay if not r.foreseen])]
    assert 0 < sum(later) < len(later), "groups generalise, but not to everything"
