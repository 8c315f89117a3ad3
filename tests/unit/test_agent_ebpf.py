"""agent-ebpf: what it places and says, whole and without root; and what its daemon makes of bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from bench.contract import EnforcerError, Guarded
from enforcers.agent.agent_ebpf import AgentEbpf, AgentEbpfMonitor
from enforcers.agent.ebpf import bundle
from enforcers.agent.ebpf.classes import Executable, Rules
from enforcers.agent.ebpf.daemon import cli, executables, service, telemetry
from enforcers.agent.ebpf.daemon.lookups import Lookups
from enforcers.agent.ebpf.daemon.place import AgentError, Place
from enforcers.agent.ebpf.document import files
from enforcers.agent.ebpf.encode import address_bytes, port_prefixes
from enforcers.agent.records import sightings
from enforcers.none import NoEnforcer
from lab.model import Flow, Point
from lab.policy import decide, flows
from lab.scenario import load
from tests.unit.ebpf_model import Hosts, Kernel, executable_id, uid

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "agent-ebpf"
SCENARIO = load(str(ROOT / "scenarios/three-tier.yaml"))
TOPOLOGY, POLICY = SCENARIO.topology, SCENARIO.policy


def test_golden() -> None:
    """Compare with tests/golden; to accept a change, delete the folder's files and run this test once."""
    native = AgentEbpf().compile(POLICY, TOPOLOGY)
    found = {f"{point.host}.json": text for point, text in native.rules.items()}
    if not GOLDEN.is_dir() or not any(GOLDEN.iterdir()):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for name, text in found.items():
            (GOLDEN / name).write_text(text)
        pytest.fail(f"{GOLDEN} was empty; it is written now: look at it, and run this again")
    assert {path.name: path.read_text() for path in GOLDEN.iterdir()} == found


def test_three_tier_is_not_approximated() -> None:
    native = AgentEbpf().compile(POLICY, TOPOLOGY)
    assert (native.effective, native.approximations) == (POLICY, ())
    assert {point.host for point in native.rules} == {host.name for host in TOPOLOGY.hosts.values() if host.takes_agent}


def test_the_plan_is_the_same_every_time_and_a_contract_s() -> None:
    arm = Guarded("agent-ebpf", AgentEbpf())
    native = arm.compile(POLICY, TOPOLOGY)
    first, second = arm.render(native, TOPOLOGY), arm.render(native, TOPOLOGY)
    assert first == second
    plan = first[Point("host", "web-1")]
    assert {Path(path).name for path in plan.files} == {
        "agent.pyz", "agent.bpf.o", "ask", "policy.json", "tables.bin"}
    assert plan.up == (bundle.quick("web-1", "start"),)
    assert plan.up[0][4:] == bundle.command("web-1", "start"), "what it leaves to the agent is the whole command"
    assert plan.files[f"{bundle.AGENT_DIR}/agent.bpf.o"].startswith(b"\x7fELF")


def test_the_zipapp_holds_the_daemon_and_its_binding_and_nothing_of_the_project() -> None:
    data = bundle.zipapp()
    assert data.startswith(b"#!/usr/bin/python3 -IS\n")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = set(archive.namelist())
        assert {"__main__.py", "daemon/cli.py", "lab/bpf/libbpf.py", "lab/bpf/syscall.py"} <= names
        sources = {name for name in names if name.endswith(".py")}
        assert {f"{name}c" for name in sources} == names - sources
        for name in sources:
            text = archive.read(name).decode()
            imported = re.findall(r"^\s*(?:from|import) ((?:lab|enforcers|bench)[\w.]*)", text, re.MULTILINE)
            assert all(module.startswith("lab.bpf") or f"{module}.background".replace(".", "/") + ".py" in names
                       for module in imported), (name, imported)


def test_a_monitor_decides_nothing_and_says_so() -> None:
    arm = AgentEbpfMonitor()
    native = arm.compile(POLICY, TOPOLOGY)
    flow = next(iter(flows(SCENARIO)))
    assert decide(native.effective, flow, TOPOLOGY).allow and not arm.covers(flow, TOPOLOGY)
    assert json.loads(native.rules[Point("host", "db")])["mode"] == "monitor"
    assert native.approximations[0].kind == "omitted"


def test_both_ends_without_an_agent_are_not_covered() -> None:
    arm = AgentEbpf()
    assert not arm.covers(Flow("cam", "stream", "svc", "cam", "stream", "tcp", 554, 4), TOPOLOGY)
    assert arm.covers(Flow("cam", "stream", "svc", "db", "store", "tcp", 6379, 4), TOPOLOGY)


def test_only_arms_with_agents_can_be_asked() -> None:
    assert Guarded("agent-ebpf", AgentEbpf()).ask("db", "status") == bundle.command("db", "status")
    with pytest.raises(EnforcerError, match="has no agent that can be asked"):
        Guarded("none", NoEnforcer()).ask("db", "status")


# --- the daemon's own words -----------------------------------------------------------------------


@pytest.mark.parametrize(("path", "sha256"), [("/opt/shop/api", None), ("/srv/x", "0" * 64)])
def test_daemon_and_compiler_number_executables_alike(path: str, sha256: str | None) -> None:
    assert executables.number_of(path, sha256 or "") == Executable(path, sha256).id


def test_lookups_for_people_are_those_of_the_kernel() -> None:
    rules = Rules(POLICY, TOPOLOGY)
    hosts = Hosts(rules)
    for flow in list(flows(SCENARIO))[::7]:
        if flow.source not in hosts.kernels:
            continue
        kernel = hosts.kernels[flow.source]
        about = kernel.about
        config = {**about, "default_in": about["default"], "default_out": about["default"]}
        lookups = Lookups({name: kernel.maps.get(name, {}) for name in
                           ("owners", "peers", "peer_prefixes", "services", "service_ranges", "verdicts")}, config)
        here = (executable_id(flow.process, rules), uid(flow.user, TOPOLOGY))
        there = None
        if flow.source == flow.target:
            owner = TOPOLOGY.processes.get(flow.target_process)
            there = (executable_id(flow.target_process, rules), owner.uid if owner else 65534)
        found = lookups.decide(True, flow.proto, flow.port, TOPOLOGY.hosts[flow.target].address(flow.family), here,
                               there)
        asked = hosts._ask(flow, out=True)
        assert (found["verdict"] == "allow", found["rule"]) == (asked.allow, asked.rule), flow


def test_an_executable_is_read_if_a_rule_asks_for_its_content_and_once_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    known = executables.Executables()

    def look() -> executables.Named:
        handle = os.open(file, os.O_RDONLY)
        try:
            return known.look(handle, "/opt/x")[1]
        finally:
            os.close(handle)

    first = look()
    assert look() is first and known.hashed == 0 and first.id == executables.number_of("/opt/x")
    known.expect([("/opt/x", hashlib.sha256(b"two").hexdigest())])
    assert look().id == first.id and known.hashed == 1, "its content is another one"
    file.write_bytes(b"two")
    second = look()
    assert look() is second and known.hashed == 2
    assert second.id == executables.number_of("/opt/x", second.sha256) != first.id
    file.chmod(0o700)  # its ctime moves: whoever may write to it may also have put its content back
    assert look().id == second.id and known.hashed == 3


def record(**more: object) -> bytes:
    values = {"kind": 1, "size": 128, "proto": 6, "dir": 1, "verdict": 1, "state": 0, "opened": 1_500_000_000,
              "closed": 2_000_000_000, "sent": 10, "received": 20, "packets_sent": 3, "packets_received": 4,
              "local": address_bytes("10.10.1.2"), "remote": address_bytes("10.10.2.2"), "local_port": 40000,
              "remote_port": 8080, "exe_id": 7, "uid": 20001, "tgid": 99, "peer_exe_id": 0, "peer_uid": 0xFFFFFFFF,
              "rule": 2, "cgroup": 5, "netns": 77, **more}
    return struct.pack("<HHBBBBQQQQII16s16sHHIIIIII4xQQ", *values.values())


TELLER = telemetry.Teller({7: "/opt/shop/frontend", 8: "/opt/shop/api"}.get, {20001: "www", 20002: "shop"},
                          ["users to shop", "shop calls api"], ["10.10.1.2", "fd10:1::2"])


def test_a_flow_is_told_from_the_side_that_asks() -> None:
    told = TELLER.flow(record())
    assert (told["source"], told["sport"], told["target"], told["dport"]) == ("10.10.1.2", 40000, "10.10.2.2", 8080)
    assert (told["process"], told["user"], told["target_process"]) == ("/opt/shop/frontend", "www", None)
    assert (told["bytes"], told["packets"], told["verdict"], told["rule"]) == (30, 7, "allow", "shop calls api")
    got = TELLER.flow(record(dir=0, local_port=8080, remote_port=40000, peer_exe_id=8, peer_uid=20002))
    assert (got["source"], got["sport"], got["target"], got["dport"]) == ("10.10.2.2", 40000, "10.10.1.2", 8080)
    assert (got["process"], got["user"], got["target_process"]) == ("/opt/shop/api", "shop", "/opt/shop/frontend")


def test_what_was_refused_before_it_had_an_address_has_the_host_s() -> None:
    assert TELLER.flow(record(local=bytes(16), verdict=0))["source"] == "10.10.1.2"
    assert TELLER.flow(record(local=bytes(16), remote=address_bytes("fd10::1"), verdict=0))["source"] == "fd10:1::2"


def test_an_echo_is_known_by_its_identifier() -> None:
    told = TELLER.flow(record(proto=1, local_port=555, remote_port=0, verdict=0, rule=0))
    assert (told["proto"], told["sport"], told["dport"], told["rule"]) == ("icmp", 555, 0, "default")


def test_records_in_a_row_are_told_apart_and_read_as_sightings() -> None:
    row = record() + record(verdict=2, netns=78)
    assert [telemetry.kind_of(one) for one in telemetry.split(row)] == [1, 1]
    assert [telemetry.netns_of(one) for one in telemetry.split(row)] == [77, 78]
    lines = list(telemetry.lines([{"t": "header"}, *(TELLER.flow(one) for one in telemetry.split(row))]))
    first, second = sightings(Point("host", "web-1"), lines)
    assert (first.point, first.verdict, second.verdict, first.rule) == ("web-1", "allow", "would-deny",
                                                                      "shop calls api")
    with pytest.raises(ValueError, match="web-1: not a telemetry line"):
        list(sightings(Point("host", "web-1"), [b'{"t": "flow"}']))


def test_a_range_of_ports_is_the_fewest_prefixes() -> None:
    for low, high in ((0, 65535), (1, 65535), (1024, 65535), (80, 80), (1000, 1063)):
        held = [port for first, bits in port_prefixes(low, high) for port in range(first, first + (1 << 16 - bits))]
        assert held == list(range(low, high + 1))


def test_files_are_small_and_say_what_is_in_them() -> None:
    about, blob = files((GOLDEN / "web-1.json").read_text())
    policy = json.loads(about)
    assert policy["mode"] == "enforce" and policy["rules"] == [rule.name for rule in POLICY.rules]
    assert Kernel(policy["tables"], blob).maps["verdicts"]


def test_the_bytecode_is_the_same_wherever_it_is_made_and_runs_in_place_of_the_source(tmp_path: Path) -> None:
    """Two other processes, with other hashes of strings, make the same; and no source is compiled with it."""
    make = "import sys; from enforcers.agent.ebpf import bundle; sys.stdout.buffer.write(bundle.zipapp())"
    made = {subprocess.run([sys.executable, "-c", make], cwd=ROOT, capture_output=True, check=True,
                           env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"}).stdout for seed in ("1", "2")}
    assert made == {bundle.zipapp()}
    (tmp_path / "agent.pyz").write_bytes(bundle.zipapp())
    ask = ("import sys, builtins; sys.path.insert(0, sys.argv[1]); "
           "import zipimport; zipimport._compile_source = None; import daemon.cli; print(*sys.modules)")
    said = subprocess.run([sys.executable, "-I", "-S", "-c", ask, str(tmp_path / "agent.pyz")], capture_output=True,
                          text=True, check=True).stdout.split()
    heavy = {"socket", "json", "contextlib", "collections", "ctypes", "typing", "enum", "re"}
    assert "daemon.cli" in said and not heavy & set(said)


class Shared:
    """Where an agent and its locks are, without a kernel to enforce in."""

    take = Place.take

    def __init__(self, directory: Path) -> None:
        self.shared, self.log, self.socket = str(directory), str(directory / "log"), str(directory / "sock")
        self.host, self.directory, self.container = "web-1", "/run/agent", 0
        self.ways = ("/", "/proc", "/proc/self/ns/net")


class Serving:
    """An agent that has nothing to do."""

    def __init__(self, place: Shared) -> None:
        (Path(place.shared) / "served").touch()

    def run(self) -> None:
        """At once."""


def test_an_agent_that_is_leaving_is_waited_for_and_one_that_stays_is_told(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose last host has left holds its lock for a moment more, and the next arm's is there already."""
    monkeypatch.setattr(service, "Service", Serving)
    place = Shared(tmp_path)
    held = place.take("lock")  # type: ignore[arg-type]
    assert held is not None
    leaving = threading.Timer(0.3, os.close, (held,))
    leaving.start()
    service.daemonise(place)  # type: ignore[arg-type]
    leaving.join()
    assert (tmp_path / "served").exists()
    monkeypatch.setattr(service, "_LEAVING_S", 0.1)
    held = place.take("lock")  # type: ignore[arg-type]
    with pytest.raises(AgentError, match="another agent is running there; stop it first"):
        service.daemonise(place)  # type: ignore[arg-type]
    assert held is not None
    os.close(held)


@pytest.mark.parametrize("dies", ["before it reads", "after it read", "after it agreed"])
def test_an_agent_that_dies_while_it_is_asked_is_none_any_more(tmp_path: Path, dies: str) -> None:
    """The kernel tells it as a reset where it had not read all, else as an end; `start` goes on to the next agent."""
    place = Shared(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place.socket)
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as client:
                client.recv(65536 if dies != "before it reads" else 1)
                if dies == "after it agreed":
                    client.sendall(b"ok\nhalf")
                    client.recv(1)  # a part of what comes next

        agent = threading.Thread(target=serve)
        agent.start()
        if dies == "after it agreed":
            answer = cli.ask(place, "prepare")  # type: ignore[arg-type]
            answer._client.sendall(b"never read")
            agent.join()
            with pytest.raises(cli.NoAgentError, match="ended without an answer; start it again"):
                list(answer.parts())
            answer.close()
        else:
            with pytest.raises(cli.NoAgentError, match="ended without an answer; start it again"):
                cli.ask(place, "prepare")  # type: ignore[arg-type]
            agent.join()
