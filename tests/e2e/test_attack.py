"""Every technique on real packets: it succeeds with nothing enforced; an arm stops it, or none can and why is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.attacks.catalogue import TECHNIQUES
from bench.report.techniques import Techniques
from lab import features
from lab.importers.csw import import_csw
from lab.model import Feature
from tests.e2e.isolated import ROOT, call, needs_root

G21 = Path(os.environ.get("LABCTL_CSW", ROOT.parent / "shared/data/csw-g21"))
LACKS = {"agent-nft": (), "chokepoint": (), "agent-ebpf": ("bpf", "btf", "cgroup2", "cgroup-bpf", "libbpf", "clang"),
         "virtual-switch": ("tc-bpf", "clang", "libbpf")}
pytestmark = [needs_root, pytest.mark.e2e]

# technique -> the arms that stop it; for all others it is expected to succeed. Why, by arm:
#   agent-nft and chokepoint decide by address, so a wrong process, a tunnel and a spoofed address pass; rules of an
#   agent can be flushed by root. chokepoint sees only what crosses segments. virtual-switch sees each port, and lets
#   nobody be another, but no process. agent-ebpf knows processes, on hosts that have it; root can let go of it.
STOPPED = {
    "discovery": {"agent-ebpf"}, "living-off": set(), "wrong-process": {"agent-ebpf"}, "exploitation": {"agent-ebpf"},
    "pivot": {"agent-nft", "agent-ebpf"}, "credentials": {"agent-nft", "agent-ebpf", "virtual-switch"},
    "tool-transfer": {"agent-nft", "agent-ebpf", "virtual-switch"}, "tunnel": {"agent-ebpf"}, "names": set(),
    "echoes": {"agent-nft", "agent-ebpf", "chokepoint", "virtual-switch"},
    "unmanaged": {"chokepoint", "virtual-switch"},
    "exfiltration": {"agent-nft", "agent-ebpf", "chokepoint", "virtual-switch"},
    "arp": {"virtual-switch"}, "address": {"virtual-switch"}, "departed": {"virtual-switch"},
    "riding": {"agent-nft", "agent-ebpf", "chokepoint", "virtual-switch"},
    "flood": {"agent-nft", "agent-ebpf", "chokepoint", "virtual-switch"},
    "kill-agent": {"agent-nft", "agent-ebpf", "chokepoint", "virtual-switch"},
    "flush-firewall": {"chokepoint", "virtual-switch"},
}


# What the arms made of two, and the others of the network, let succeed.
LET = {
    "hairpin": set(STOPPED) - {t for t, arms in STOPPED.items() if "chokepoint" in arms}
    - {"credentials", "tool-transfer", "arp"},
    "virtual-switch-nft": {t for t, arms in STOPPED.items() if "virtual-switch" not in arms},
    "unified": {t for t, arms in STOPPED.items() if not {"agent-ebpf", "virtual-switch"} & arms},
    "unified-nft": {t for t, arms in STOPPED.items() if not {"agent-nft", "virtual-switch"} & arms},
}


def labctl(*argv: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "bench.cli", "attack", *argv)


@pytest.fixture(scope="module")
def found() -> Techniques:
    done = subprocess.run(labctl("techniques", "--techniques", "--json"), cwd=ROOT, capture_output=True, text=True,
                          timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Techniques.model_validate_json(done.stdout)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda one: str(one.name))
def test_it_succeeds_with_nothing_enforced(found: Techniques, technique: Any) -> None:
    tried = found.arms["none"].tried[technique.name]
    assert tried.ending == "succeeded", tried.detail


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda one: str(one.name))
def test_an_arm_stops_it_or_none_can(found: Techniques, technique: Any) -> None:
    assert bool(technique.unstoppable) == (STOPPED[technique.name] == set())
    for arm, lacks in LACKS.items():
        if features.missing(tuple(Feature(name, "the arm") for name in lacks)):
            continue
        tried = found.arms[arm].tried[technique.name]
        wanted = "stopped" if arm in STOPPED[technique.name] else "succeeded"
        assert tried.ending == wanted, f"{arm}: {tried.detail}"


@pytest.mark.slow
@pytest.mark.parametrize("arm", LET)
def test_the_other_arms_stop_what_they_are_made_of(arm: str) -> None:
    done = subprocess.run(labctl("techniques", "--techniques", "--arms", arm, "--json"), cwd=ROOT, capture_output=True,
                          text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    tried = Techniques.model_validate_json(done.stdout).arms[arm]
    if tried.unsupported:
        pytest.skip(f"{arm} cannot run here: {tried.unsupported}")
    assert {name for name, one in tried.tried.items() if one.ending == "succeeded"} == LET[arm]
    assert {one.ending for one in tried.tried.values()} == {"succeeded", "stopped"}


def test_the_flood_reaches_the_state_table_and_spares_who_stood_before(found: Techniques) -> None:
    said = found.arms["chokepoint"].tried["flood"].detail
    held = int(said.partition("the router held ")[2].partition(" ")[0].replace(",", ""))
    assert held > 65_535 and "one from before lives on" in said
    assert "the router held 0 " in found.arms["none"].tried["flood"].detail
    switch = found.arms["virtual-switch"]
    assert switch.unsupported or "one from before lives on" in switch.tried["flood"].detail


def test_nothing_was_sent_before_the_lab_was_found_closed(found: Techniques) -> None:
    hosts = 10
    assert all((arm.devices or 0) > 2 * hosts for arm in found.arms.values() if not arm.unsupported)


def test_what_was_denied_raised_alerts(found: Techniques) -> None:
    assert sum(one.seen for one in found.arms["none"].tried.values()) == 0
    for arm in ("agent-nft", "chokepoint"):
        scan = found.arms[arm].tried["discovery"]
        assert 0 < scan.alerted <= scan.seen <= scan.attempts and scan.alerted > 0.9 * scan.blocked > 0
        assert scan.first_alert_s is not None and scan.first_alert_s < scan.seconds + 1


def test_a_lab_with_a_way_out_is_not_attacked() -> None:
    assert "leads out of the lab" in call("tests.e2e.attack_lab", "with_a_way_out", None, timeout_s=60)


def test_a_planted_blind_spot_is_named_with_its_count() -> None:
    """Real flows and real telemetry, with the records of one protocol removed."""
    told = call("tests.e2e.attack_lab", "blind", None, timeout_s=60)
    n = told["udp"]
    assert n > 20 and told["removed"] > 0
    assert f"did not see {n} of {n} flows over UDP" in told["planted"]
    assert not any("flows over UDP" in spot for spot in told["whole"]), told["whole"]


def test_an_interrupt_keeps_what_was_tried() -> None:
    with subprocess.Popen(labctl("techniques", "--techniques", "--arms", "none", "--json"), cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr and process.stdout
        for line in process.stderr:
            if "4 of" in line:
                os.kill(process.pid, signal.SIGINT)
                break
        said = process.stdout.read()
        process.stderr.read()
    assert process.returncode == 130
    kept = Techniques.model_validate(json.loads(said))
    assert kept.interrupted and 3 <= len(kept.arms["none"].tried) < len(TECHNIQUES)


def test_campaigns_from_every_foothold() -> None:
    done = subprocess.run(labctl("three-tier", "--every-foothold", "--runs", "2", "--arms", "agent-nft", "--json"),
                          cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    arms = json.loads(done.stdout)["arms"]
    open_, shut = arms["none"], arms["agent-nft"]
    assert len(open_["made"]) == len(shut["made"]) == 2 * 12, "four hosts with two processes, four with one"
    assert min(open_["shares"]) > max(0.5, sum(shut["shares"]) / len(shut["shares"]))
    assert open_["attempts_to_goal"]["reached"] == open_["attempts_to_goal"]["n"] == 22
    assert shut["alerted"] > 0 and shut["blocked"] > 0 and open_["seen"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not (G21 / "groupings.gt.txt").is_file(), reason=f"{G21} is not there; set LABCTL_CSW")
def test_every_foothold_of_a_real_enterprise(tmp_path: Path) -> None:
    """59 grouped nodes of g21, every position with real packets: a policy closes most flows, and fewer of the ways."""
    file = tmp_path / "g21.yaml"
    file.write_text(import_csw(G21, policy_level="host").text)
    done = subprocess.run(labctl(str(file), "--every-foothold", "--shared", "--arms", "agent-nft", "--json"), cwd=ROOT,
                          capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    arms = json.loads(done.stdout)["arms"]
    flat, shut = arms["none"], arms["agent-nft"]
    assert flat["scanned"] == flat["opened"] == shut["scanned"] == 286_056 and flat["differ"] == shut["differ"] == 0
    assert shut["opened"] < 0.05 * shut["scanned"] and 0 < shut["proven"] < flat["proven"]
    for rule in ("everything is vulnerable", "a seeded 10 %"):
        assert 0 < shut["spread"][rule]["mean"] < flat["spread"][rule]["mean"] < 1, rule


def test_one_shared_scan_leads_as_far_as_all_campaigns() -> None:
    """With real packets: edges proven once give every foothold's reach; campaigns from each of them find the same."""
    means = []
    for shared in (["--shared"], ["--all-vulnerable"]):
        done = subprocess.run(labctl("three-tier", "--every-foothold", "--arms", "agent-nft", "--json",
                                     *shared), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        means.append({name: arm["spread"]["everything is vulnerable"]["mean"] if "spread" in arm
                      else sum(arm["shares"]) / len(arm["shares"])
                      for name, arm in json.loads(done.stdout)["arms"].items()})
    assert means[0] == pytest.approx(means[1])
    assert 0 < means[0]["agent-nft"] < means[0]["none"] < 1
