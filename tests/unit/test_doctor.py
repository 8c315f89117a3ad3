"""`labctl doctor` and `labctl arms`: what is planted as wrong is said to be wrong, with what mends it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from bench import checkup
from bench.installed import CLASSES, Checkup, Entry, Features, Installed
from bench.report import arms as arms_report
from bench.report import doctor
from lab import conditions
from lab.features import CHECKS, Lack
from lab.model import Feature
from tests.e2e.isolated import ROOT, needs_root

SOUND: dict[str, Any] = {
    "cpus": 4, "cpus_usable": 4, "load_average": [0.1, 0.1, 0.1], "cpu_busy_share": 0.02, "cpu_steal_share": 0.0,
    "cpu_pressure_percent": 0.5, "bpf_jit_enable": "1", "bpf_is_compiled": True, "bridge_nf_call_iptables": "0",
    "governor": "performance", "turbo": "off", "clocksource": "tsc", "conntrack_max": 262144, "conntrack_count": 12,
    "memory_total_bytes": 8 << 30, "memory_available_bytes": 6 << 30, "swap_used_bytes": 0, "virtual": "none",
}
HERE: dict[str, Lack | None] = dict.fromkeys(CHECKS)


@pytest.mark.parametrize(("fact", "value", "name", "remedy"), [
    ("cpus_usable", 1, "processors", "at least 2"),
    ("cpu_busy_share", 0.6, "busy neighbours", "end or pause"),
    ("cpu_pressure_percent", 55.0, "busy neighbours", "end or pause"),
    ("cpu_steal_share", 0.1, "stolen time", "dedicated"),
    ("bpf_is_compiled", False, "BPF compiler (JIT)", "sysctl -w net.core.bpf_jit_enable=1"),
    ("governor", "powersave", "processor frequency", "cpupower frequency-set -g performance"),
    ("turbo", "on", "processor frequency", "switch turbo off"),
    ("clocksource", "hpet", "clock", "tsc"),
    ("conntrack_count", 200_000, "connection tracking", "conntrack -F"),
    ("memory_available_bytes", 1 << 20, "memory", "end what fills it"),
    ("swap_used_bytes", 1 << 30, "swap", "swapoff -a"),
])
def test_what_spoils_figures_is_named_with_its_remedy(fact: str, value: object, name: str, remedy: str) -> None:
    (found,) = conditions.spoiling({**SOUND, fact: value})
    assert found.name == name and found.effect and remedy in found.remedy


def test_a_sound_machine_spoils_nothing() -> None:
    assert conditions.spoiling(SOUND) == ()


def test_what_the_machine_does_not_tell_is_no_alarm() -> None:
    untold = {**dict.fromkeys(SOUND), "cpus": 4, "cpus_usable": 4, "load_average": [0.0] * 3, "virtual": "none"}
    assert conditions.spoiling(untold) == ()


def test_facts_of_this_machine_can_be_judged_and_kept() -> None:
    facts = conditions.facts(0.02)
    assert facts.keys() == SOUND.keys()
    assert json.loads(json.dumps(facts)) == facts
    assert len({condition.name for condition in conditions.judge(facts)}) == 11


def test_a_busy_process_is_found() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert any(share > 0.1 for _name, share in conditions.busiest(0.5, most=20))
    finally:
        child.kill()
        child.wait()


def entry(name: str = "mine", needs: tuple[str, ...] = ("nftables",), broken: str | None = None) -> Entry:
    arm = Installed(name, f"{name}:Mine", "labctl-mine", "1.0")
    return Entry(arm, "Mine.", tuple(Feature(need, "why") for need in needs), dict.fromkeys(CLASSES, "yes"), broken)


def text(found: Checkup) -> str:
    out = io.StringIO()
    doctor.show(found, Console(file=out, width=160, highlight=False))
    return out.getvalue()


def checked(**changes: Any) -> Checkup:
    found = Checkup((), (), Features(HERE, SOUND), conditions.judge(SOUND), (), ())
    found = replace(found, **{key: value for key, value in changes.items() if key != "entries"})
    return replace(found, arms=checkup.arms(changes.get("entries", [entry()]), found.features, found.missing))


def test_all_here() -> None:
    found = checked()
    assert found.can_run and "1 of 1 arms will run here: mine" in text(found)
    assert "nothing was seen that spoils figures" in text(found) and "\x1b" not in text(found)


def test_a_missing_feature_stops_the_arms_that_need_it_and_says_what_mends_it() -> None:
    lacks = {**HERE, "nftables": Lack("nft is not installed", "apt-get install nftables")}
    found = checked(features=Features(lacks, SOUND), entries=[entry(), entry("free", needs=())])
    assert found.can_run
    assert [bool(arm.why_not) for arm in found.arms] == [True, False]
    said = text(found)
    assert "1 of 2 arms will run here: free" in said
    assert "will not run: nftables: nft is not installed" in said and "mend: apt-get install nftables" in said


def test_missing_packages_are_one_line_to_type_and_nothing_runs() -> None:
    found = checked(missing=("mininet", "nftables"))
    assert not found.can_run and all(arm.why_not for arm in found.arms)
    line = "apt-get install -y --no-install-recommends mininet nftables"
    assert f"as root type: {line}" in text(found) and doctor.as_data(found)["packages"]["remedy"] == line


def test_refused_namespaces_stop_everything() -> None:
    found = checked(features=Features({}, {}, "the kernel refuses private namespaces"))
    assert not found.can_run and "nothing can run here: the kernel refuses" in text(found)


def test_a_broken_arm_is_shown_with_its_error_and_stops_no_other() -> None:
    found = checked(entries=[entry("bad", broken="arm 'bad' (bad:Bad) is broken: [x] ImportError: no"), entry()])
    assert found.can_run and "ImportError: no" in text(found) and "1 of 2 arms" in text(found)
    out = io.StringIO()
    arms_report.show(found.arms, Console(file=out, width=160, highlight=False))
    assert "broken" in out.getvalue() and "[x] ImportError: no" in out.getvalue() and "Mine." in out.getvalue()


def labctl(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.cli", *args], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, check=False, env=dict(os.environ))


@needs_root
@pytest.mark.parametrize("command", ["doctor", "arms"])
def test_on_this_machine(command: str) -> None:
    plain, data = labctl(command), labctl(command, "--json")
    assert plain.returncode == data.returncode == 0, plain.stderr + data.stderr
    assert "\x1b" not in plain.stdout and "Traceback" not in plain.stderr
    told = json.loads(data.stdout)
    for arm in told["arms"] if command == "doctor" else told:
        assert arm["name"] in plain.stdout


def test_the_names_of_arms_are_whole_however_narrow_the_terminal() -> None:
    out = io.StringIO()
    arms = checkup.arms(checkup.catalogue(), Features(), ())
    arms_report.show(arms, Console(file=out, width=60))
    heads = [line for line in out.getvalue().splitlines() if line.startswith("claims ")]
    assert sorted(" ".join(head.removeprefix("claims") for head in heads).split()) == sorted(
        one.entry.arm.name for one in arms if one.entry.coverage is not None)


def test_two_arms_claim_what_their_technique_can() -> None:
    found = {one.arm.name: one.coverage for one in checkup.catalogue()}
    assert found["chokepoint"]["same segment"] == "no" and found["chokepoint"]["across segments"] == "yes"
    assert found["agent-nft"]["same host"] == "yes" and found["agent-nft"]["between unmanaged"] == "no"
    switch = found["virtual-switch"]
    assert [name for name, answer in switch.items() if answer == "no"] == ["same host", "process", "user"]
    assert {found[name]["spoofed source"] for name in ("none", "agent-nft", "chokepoint")} == {"no"}
    assert set(found["none"].values()) == {"no", "–"}


def test_a_run_without_packages_is_the_one_line_to_type(monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from bench.cli import app
    from lab import packages

    monkeypatch.setattr(packages, "missing_packages", lambda: ("mininet", "nftables"))
    done = CliRunner().invoke(app, ["run", "three-tier"])
    said = done.stderr.strip()
    assert done.exit_code == 3
    assert said == ("labctl: packages are missing; as root type: "
                    "apt-get install -y --no-install-recommends mininet nftables")
