"""The Docker backend's pure part: what an engine is asked for."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import registry, testbeds
from enforcers.agent.ebpf.daemon import cli, place
from lab import runs
from lab.backends import docker_pods, docker_specs
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
