"""The Docker backend's pure part, and how it speaks with an engine: a server of the tests' own answers."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import registry, testbeds
from enforcers.agent.ebpf.daemon import cli, place
from lab import runs
from lab.backends import docker_engine, docker_left, docker_pods, docker_specs
from lab.backends.docker_specs import SERVE, START, ContainerSpec, capabilities, containers, networks
from lab.model import Feature
from lab.scenario import load
from tests.e2e.isolated import ROOT

SCENARIO = load(ROOT / "scenarios/three-tier.yaml")
TOPOLOGY = SCENARIO.topology
KNOWN = docker_specs.sysctl_names()


# --- what is asked for ------------------------------------------------------------------------


def test_with_nothing_enforced_a_host_may_serve_and_nothing_more() -> None:
    for one in containers(TOPOLOGY, "labctl-1", {}, KNOWN):
        assert one.keep == SERVE and "NET_ADMIN" not in one.keep
        assert set(one.capabilities) == SERVE | START
        assert one.keep_bits == (1 << 5 | 1 << 6 | 1 << 7 | 1 << 13)  # capabilities(7): KILL, SETGID, SETUID, NET_RAW


def test_an_arm_s_capabilities_are_granted_where_it_enforces_and_nowhere_else() -> None:
    def granted(arm: str) -> dict[str, frozenset[str]]:
        demands = testbeds.demands(SCENARIO, [registry.load("none"), registry.load(arm)])
        return {one.host: one.keep for one in containers(TOPOLOGY, "labctl-1", demands, KNOWN)}

    choke, agent = granted("chokepoint"), granted("agent-nft")
    assert {name for name, keep in choke.items() if keep != SERVE} == {TOPOLOGY.router}
    assert "NET_ADMIN" in choke[TOPOLOGY.router] and "SYS_ADMIN" not in choke[TOPOLOGY.router]
    without = {TOPOLOGY.router, "cam"}  # the camera takes no agent
    assert {name for name, keep in agent.items() if keep == SERVE} == without
    assert agent["db"] == SERVE | {"NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"}


def test_an_arm_that_containers_cannot_carry_is_unsupported_with_the_reason_and_demands_nothing() -> None:
    needs = (Feature("nftables", "rules"), Feature("br-netfilter", "verdicts at a bridge"))
    assert docker_specs.missing(needs[:1]) is None and testbeds.missing("docker", ()) is None
    said = "br-netfilter: a container of a lab is not given it (verdicts at a bridge); use --backend mininet"
    assert docker_specs.missing(needs) == said
    assert testbeds.demands(SCENARIO, [SimpleNamespace(needs=lambda: needs)]) == {}  # type: ignore[list-item]


def test_an_agent_in_the_kernel_gets_what_it_takes_and_a_bpf_file_system_where_it_enforces() -> None:
    arm = registry.load("agent-ebpf")
    assert docker_specs.missing(arm.needs()) is None
    demands = {"db": frozenset(feature.name for feature in arm.needs()), "web-1": frozenset({"nftables", "sock-diag"})}
    made = {one.host: one for one in containers(TOPOLOGY, "labctl-1", demands, KNOWN)}
    assert {name for name, one in made.items() if one.pins} == {"db"}
    assert made["db"].keep == SERVE | {"BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"}
    assert made["db"].keep_bits >> 38 == 0b11  # capabilities(7): PERFMON, BPF
    old = docker_specs.on_old_engine(made["db"])
    assert old.keep == SERVE | {"SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"} and old.pins
    assert docker_specs.on_old_engine(made["web-1"]) is made["web-1"]  # nobody else gets it


def test_beside_a_foreign_image_the_agent_gets_what_it_takes_and_the_image_nothing() -> None:
    topology = replace(TOPOLOGY, hosts=TOPOLOGY.hosts | {"db": replace(TOPOLOGY.hosts["db"], image="redis:7")})
    demands = {"db": frozenset({"cgroup-bpf", "host-tc-bpf"})}
    db = next(one for one in containers(topology, "labctl-1", demands, KNOWN) if one.host == "db")
    (beside,) = docker_specs.sidecars(topology, "labctl-1", demands)
    assert (db.keep, db.pins, beside.pins) == (SERVE, "", docker_specs.PINS) and "BPF" in beside.keep


def test_who_enforces_beside_the_hosts_stands_there_and_the_hosts_get_nothing_for_it() -> None:
    def made(arm: str) -> tuple[set[frozenset[str]], list[ContainerSpec]]:
        demands = testbeds.demands(SCENARIO, [registry.load("none"), registry.load(arm)])
        return ({one.keep for one in containers(TOPOLOGY, "labctl-1", demands, KNOWN)},
                docker_specs.places("labctl-1", demands))

    hosts, (switch,) = made("virtual-switch")
    assert hosts == {SERVE} and switch.keep == SERVE | {"BPF", "NET_ADMIN"}
    assert (switch.name, switch.joins, switch.among) == ("labctl-1.switch", "host", None)
    assert switch.pins == "/run/switch/bpf"
    hosts, (node,) = made("agent-ebpf-node")
    assert hosts == {SERVE} and {"SYS_ADMIN", "SYS_PTRACE", "BPF"} < node.keep
    assert (node.name, node.joins, node.among, node.pins) == ("labctl-1.node", "host", "host", docker_specs.PINS)
    assert docker_specs.places("labctl-1", {"db": frozenset({"nftables"})}) == []


def test_agent_and_switch_together_have_each_no_more_than_it_takes() -> None:
    demands = testbeds.demands(SCENARIO, [registry.load("unified")])
    assert {f.name for f in registry.load("virtual-switch").needs()} == demands[docker_specs.SWITCH]
    assert {f.name for f in registry.load("agent-ebpf").needs()} == demands["db"]


def test_only_containers_have_a_machine_below_them() -> None:
    arm = registry.load("agent-ebpf-node")
    said = testbeds.missing("mininet", arm.needs())
    assert said and said.startswith("container-host: hosts of this backend are machines of their own")
    assert said.endswith("use --backend docker")


def test_a_port_is_found_by_the_mac_that_its_bridge_heard_there() -> None:
    bridges = {"br-1": "dmz", "br-2": "data"}
    hosts = {host.segment: host for host in TOPOLOGY.hosts.values()}
    web, data = hosts["dmz"], hosts["data"]
    heard = [{"mac": web.mac, "ifname": "veth1", "master": "br-1", "flags": [], "state": ""},
             {"mac": web.mac, "ifname": "veth9", "master": "br-9", "state": ""},  # another run's, of the same scenario
             {"mac": data.mac, "ifname": "veth2", "master": "br-2", "state": "permanent"},
             {"mac": "33:33:00:00:00:01", "ifname": "veth1", "flags": ["self"], "state": "permanent"}]
    assert docker_specs.ports(heard, bridges, TOPOLOGY) == {web.name: "veth1"}
    assert docker_specs.bridge_name("0123456789abcdef", {}) == "br-0123456789ab"
    assert docker_specs.bridge_name("0123", {"com.docker.network.bridge.name": "lan0"}) == "lan0"


def test_an_agent_of_the_machine_is_told_which_container_a_command_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getpid()
    monkeypatch.setenv(place.CONTAINER, f"{me}:{runs.born(me)}")
    found = place.Place("db", "/run/host/agent-ebpf-node/db")
    assert found.container == me and not found.gone
    assert found.cgroup == place.CONTAINED and found.bpf == f"{place.PINS}/agent-ebpf" and not found.in_lab
    assert found.shared == place.Place("web-1", "/run/host/agent-ebpf-node/web-1").shared
    assert found.ways == (f"/proc/{me}/root", f"/proc/{me}/root/proc", f"/proc/{me}/ns/net")


@pytest.mark.parametrize("first", [f"{os.getpid()}:1", "4194305:77", "0:", f"{os.getpid()}"])
def test_a_container_that_is_gone_is_nobody_else(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                                  tmp_path: Path, first: str) -> None:
    """Its number may be another process's by now, whose network is none of ours."""
    monkeypatch.setenv(place.CONTAINER, first)
    monkeypatch.setattr(place, "_cgroup_root", lambda: str(tmp_path))
    monkeypatch.setattr(os, "umask", lambda _mask: 0)  # the command sets that of its process, which here is ours
    found = place.Place("db", "/run/host/agent-ebpf-node/db")
    assert found.gone is (first != "0:") and found.ways == ("/", "/proc", "/proc/self/ns/net")
    if found.gone:
        assert cli.main(["start", "--host", "db", "--dir", "/run/host/agent-ebpf-node/db"]) == 1
        assert capsys.readouterr().err == "agent start: db: its container has gone\n"


def test_an_agent_of_a_container_attaches_to_its_own_host_s_control_group(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "CONTAINED", str(tmp_path / "cgroup"))
    monkeypatch.setattr(place, "PINS", str(tmp_path / "bpf"))
    monkeypatch.setattr(place, "_cgroup_root", lambda: "/sys/fs/cgroup")
    assert place.Place("db", "/run/host/agent").cgroup == "/sys/fs/cgroup"
    for name in ("cgroup/db", "cgroup/web-1", "bpf"):
        (tmp_path / name).mkdir(parents=True)
    found = place.Place("db", "/run/host/agent")
    assert (found.cgroup, found.bpf, found.in_lab) == (f"{tmp_path}/cgroup/db", f"{tmp_path}/bpf/agent-ebpf", False)


def test_the_agent_looks_where_the_backend_mounts() -> None:
    """The agent imports nothing of the project's, so the paths are written down twice."""
    assert (place.CONTAINED, place.PINS) == (docker_specs.CGROUP, docker_specs.PINS)
    assert place.CONTAINER == docker_specs.CONTAINER_VARIABLE


def test_a_feature_that_nobody_knows_grants_nothing() -> None:
    assert capabilities(["netem", "cgroup2", "no such thing"]) == SERVE


def test_networks_have_the_scenario_s_prefixes_and_an_end_for_the_engine_that_is_nobody_s() -> None:
    made = networks(TOPOLOGY, "labctl-1")
    assert [one.segment for one in made] == list(TOPOLOGY.segments)
    addresses = {a for h in TOPOLOGY.hosts.values() for a in (h.v4, h.v6)}
    for one in made:
        segment = TOPOLOGY.segments[one.segment]
        assert one.subnets == (segment.v4, segment.v6)
        for subnet, gateway in zip(one.subnets, one.gateways, strict=True):
            assert ip_address(gateway) in ip_network(subnet)
            assert gateway not in addresses | {segment.gateway4, segment.gateway6}


def test_a_segment_without_an_address_to_spare_says_so() -> None:
    host = replace(TOPOLOGY.hosts["db"], v4="10.9.0.2")
    segment = replace(TOPOLOGY.segments["data"], v4="10.9.0.0/30", gateway4="10.9.0.1")
    full = replace(TOPOLOGY, segments={"data": segment}, hosts={"db": host})
    with pytest.raises(ValueError, match=r"segment 'data' has no address left for the engine in 10\.9\.0\.0/30; write"):
        networks(full, "labctl-1")


def test_the_router_joins_every_network_a_host_one_and_plans_name_their_own_segment_alone() -> None:
    made = {one.host: one for one in containers(TOPOLOGY, "labctl-1", {}, KNOWN)}
    assert list(made) == [TOPOLOGY.router, *TOPOLOGY.hosts]
    assert len(made[TOPOLOGY.router].addresses) == len(TOPOLOGY.segments)
    db = made["db"]
    assert db.addresses == {"labctl-1-data": (TOPOLOGY.hosts["db"].v4, TOPOLOGY.hosts["db"].v6)}
    assert TOPOLOGY.hosts["web-1"].v4 not in db.plan
    assert f"default eth0 4 {TOPOLOGY.segments['data'].gateway4}\n" in db.plan
    assert made[TOPOLOGY.router].plan.count("link eth") == len(TOPOLOGY.segments)
    assert made[TOPOLOGY.router].sysctls["net.ipv4.ip_forward"] == "1" and "net.ipv4.ip_forward" not in db.sysctls


def test_sysctls_that_the_kernel_does_not_have_are_left_out() -> None:
    assert all(not one.sysctls for one in containers(TOPOLOGY, "labctl-1", {}, ()))


def test_the_base_image_holds_directories_links_and_users_and_no_program() -> None:
    with tarfile.open(fileobj=io.BytesIO(docker_specs.base_image({"bin": "usr/bin"}))) as tar:
        assert {info.name for info in tar if info.isreg()} == {"etc/passwd", "etc/group", "etc/protocols"}
        assert tar.getmember("bin").linkname == "usr/bin" and tar.getmember("tmp").mode == 0o1777


# --- an engine ---------------------------------------------------------------------------------


class Engine:
    """Holds objects by path and answers as an engine would; `asked` is what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses: set[str] = set()
        self.ends: dict[str, dict[str, str]] = {}  # of networks: name of a container by the key that the engine tells
        self.held = {"containers": {"c1": "labctl-1", "c2": "labctl-2"}, "networks": {"n1": "labctl-1", "n2": ""},
                     "images": {"i1": "labctl-1"}}

    def answer(self, verb: str, path: str, body: bytes = b"") -> tuple[int, object]:
        self.asked.append(f"{verb} {path}")
        if path.endswith("/disconnect"):
            network, ended = self.ends[path.split("/")[2]], json.loads(body)
            self.ends[path.split("/")[2]] = {k: n for k, n in network.items() if n != ended["Container"]}
            return 200, ""
        kind, what = path.lstrip("/").partition("?")[0].split("/", 1) if "/" in path[1:] else (path[1:], "")
        kind = kind.partition("?")[0]
        if path == "/_ping":
            return 200, "OK"
        if verb == "GET" and "filters=" not in path:
            return 200, {"Containers": {key: {"Name": name} for key, name in self.ends.get(what, {}).items()}}
        if verb == "GET":
            import urllib.parse

            wanted = json.loads(urllib.parse.unquote(path.partition("filters=")[2]))["label"][0].partition("=")[2]
            return 200, [{"Id": i, "Name": i} for i, run in self.held[kind].items() if run == wanted]
        if what in self.refuses:
            return 500, {"message": "no"}
        if self.ends.get(what):
            return 403, {"message": f"network {what} has active endpoints"}
        return (200, "") if self.held[kind].pop(what, None) is not None else (404, "")


@contextmanager
def serving(path: Path, engine: Engine) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            said = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = engine.answer(self.command, self.path, said)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_DELETE = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                Handler(connection, ("", 0), None)  # type: ignore[arg-type]

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield str(path)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_only_what_carries_the_run_s_label_goes(tmp_path: Path) -> None:
    engine = Engine()
    with serving(tmp_path / "s", engine) as path:
        assert docker_left.left(path, "labctl-1") == ["container c1", "network n1", "image i1"]
        docker_left.remove(path, "labctl-1")
    assert engine.held == {"containers": {"c2": "labctl-2"}, "networks": {"n2": ""}, "images": {}}
    kinds = [line.split("/")[1] for line in engine.asked if line.startswith("DELETE")]
    assert kinds == ["containers", "networks", "images"]  # each is in use by those before it


def test_what_an_engine_refuses_for_a_moment_is_asked_for_again(tmp_path: Path) -> None:
    engine = Engine()
    engine.refuses = {"c1"}
    threading.Timer(0.3, engine.refuses.clear).start()
    with serving(tmp_path / "s", engine) as path:
        docker_left.remove(path, "labctl-1")
    assert engine.held["containers"] == {"c2": "labctl-2"} and engine.held["networks"] == {"n2": ""}


def test_ends_that_the_engine_counts_though_their_containers_are_gone_are_let_go(tmp_path: Path) -> None:
    engine = Engine()
    engine.ends["n1"] = {"ep-1": "labctl-1-web", "ep-2": "labctl-1-db"}
    with serving(tmp_path / "s", engine) as path:
        docker_left.remove(path, "labctl-1")
    assert engine.held["networks"] == {"n2": ""}


def test_a_container_of_the_user_s_own_in_the_run_s_network_stays_and_the_refusal_is_told(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_left, "_REFUSED_S", 0.2)
    engine = Engine()
    engine.ends["n1"] = {"9f": "mine", "ep-2": "labctl-12-web"}
    with serving(tmp_path / "s", engine) as path, pytest.raises(docker_left.EngineGoneError) as caught:
        docker_left.remove(path, "labctl-1")
    assert engine.ends["n1"] == {"9f": "mine", "ep-2": "labctl-12-web"} and "n1" in engine.held["networks"]
    assert "active endpoints" in str(caught.value) and "; docker network disconnect n1 mine" in str(caught.value)


_ALONE = """
import ctypes, sys, threading
from lab.backends import docker_left
assert ctypes.CDLL(None).unshare(0x10000000 | 0x20000000) == 0  # CLONE_NEWUSER, CLONE_NEWPID
try:
    threading.Thread(target=print).start()
except RuntimeError:
    docker_left.remove(sys.argv[1], "labctl-1")
else:
    sys.exit("threads start here, and the test shows nothing")
"""


def test_whoever_has_left_its_process_namespace_removes_it_too(tmp_path: Path) -> None:
    """As the parent of a run has: the kernel gives it no threads any more."""
    engine = Engine()
    with serving(tmp_path / "s", engine) as path:
        done = subprocess.run([sys.executable, "-c", _ALONE, path], cwd=ROOT, capture_output=True, text=True,
                              timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert engine.held == {"containers": {"c2": "labctl-2"}, "networks": {"n2": ""}, "images": {}}


def test_what_a_dead_run_had_asked_for_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine carries out what it was asked, also where nobody waits for the answer any more."""
    monkeypatch.setattr(docker_left, "_COMING_S", 20.0)
    engine = Engine()

    def asked(after_s: float) -> list[str]:
        with pytest.raises(KeyboardInterrupt), docker_left.making(tmp_path, "container", "late"):
            raise KeyboardInterrupt
        threading.Timer(after_s, engine.held["containers"].__setitem__, ("late", "labctl-1")).start()
        return docker_left.coming(tmp_path)

    with serving(tmp_path / "s", engine) as path:
        coming = asked(0.3)
        assert coming == ["container late"]
        docker_left.remove(path, "labctl-1")
        docker_left.remove(path, "labctl-1", coming)
        assert "late" not in engine.held["containers"] and "DELETE /containers/late?force=1&v=1" in engine.asked


def test_what_was_answered_is_not_waited_for(tmp_path: Path) -> None:
    with docker_left.making(tmp_path, "container", "app"):
        assert docker_left.coming(tmp_path) == ["container app"]
    with pytest.raises(RefusedError), docker_left.making(tmp_path, "image", "labctl/host:1"):
        raise RefusedError
    assert docker_left.coming(tmp_path) == []
    with pytest.raises(TimeoutError), docker_left.making(tmp_path, "image", "labctl/host:1"):
        raise TimeoutError
    assert docker_left.coming(tmp_path) == ["image labctl/host:1"], "the engine may still come to it"


class RefusedError(OSError):
    """As docker.errors.APIError: it has what the engine answered."""

    response = "409 Conflict"


def test_what_an_engine_refuses_to_remove_keeps_the_run_in_the_registry(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    monkeypatch.setattr(docker_left, "_REFUSED_S", 0.2)
    monkeypatch.setattr(runs, "registry", lambda: tmp_path / "registry")
    directory = tmp_path / "registry" / "labctl-00000001"
    directory.mkdir(parents=True)
    engine.held["containers"]["c3"] = "labctl-00000001"
    with serving(tmp_path / "s", engine) as path:
        (directory / docker_left.MARK).write_text(path)
        engine.refuses = {"c3"}
        assert runs.sweep(None) == ["container c3", f"directory {directory}"]
        assert directory.exists()
        engine.refuses = set()
        runs.sweep(None)
        assert not directory.exists() and "c3" not in engine.held["containers"]


def test_an_engine_that_is_silent_is_asked_again_later_one_that_is_gone_is_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "registry", lambda: tmp_path / "registry")
    directory = tmp_path / "registry" / "labctl-00000001"
    directory.mkdir(parents=True)
    (directory / docker_left.MARK).write_text(str(tmp_path / "docker.sock"))
    (line, _directory) = runs.leftovers(None)
    assert "once it answers" in line and "labctl-00000001" in line
    runs.sweep(None)
    assert directory.exists()
    (directory / docker_left.MARK).write_text(str(tmp_path / "gone" / "docker.sock"))
    runs.sweep(None)
    assert not directory.exists()


@pytest.mark.parametrize(("address", "said"), [
    ("tcp://127.0.0.1:2375", "DOCKER_HOST is tcp://127.0.0.1:2375, and containers of a lab have to be on this machine"),
    ("ssh://me@there", "set it to unix:///var/run/docker.sock, or unset it"),
    ("unix:///nonexistent/docker.sock", "does not answer (No such file or directory); start it, or set DOCKER_HOST"),
])
def test_an_engine_that_cannot_be_used_is_one_line(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(docker_engine.EngineError) as caught:
        docker_engine.reach()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_one_that_answers_is_reached_by_a_path_that_outlives_its_mount(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "s", Engine()) as path:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        reached = docker_engine.reach()
        assert reached.path == path
        (tmp_path / "s").rename(tmp_path / "elsewhere")
        assert docker_left.ask(reached.inside, "GET", "/_ping")[0] == 200


def test_a_pod_s_processes_have_a_container_each_that_may_serve_and_nothing_more() -> None:
    topology = load(ROOT / "scenarios/pod.yaml").topology
    made = {one.host: one for one in docker_pods.specs(topology, "labctl-1")}
    assert set(made) == {"shop.proxy", "shop.web", "shop.metrics", "bank.ledger", "bank.scraper"}
    assert {one.keep for one in made.values()} == {SERVE}
    for one in made.values():
        first = f"labctl-1-{one.host.partition('.')[0]}"
        assert (one.joins, one.among, one.addresses) == (f"container:{first}", f"container:{first}", {})
    assert docker_pods.members(topology)["bank"] == {
        "/opt/bank/ledger": "bank.ledger", "/opt/ops/scraper": "bank.scraper"}
    assert docker_pods.specs(TOPOLOGY, "labctl-1") == [] and docker_pods.images(topology) == {}
