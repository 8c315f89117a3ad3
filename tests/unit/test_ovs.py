"""The flows of virtual-switch-ovs: compared with the oracle, kept whole, and who may say what at a port."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcers.agentless.ovs import flows
from enforcers.agentless.virtual_switch_ovs import VirtualSwitchOvs, VirtualSwitchOvsUserspace
from lab.model import Flow, Native, Policy, Topology
from lab.policy import decide
from lab.scenario import load
from tests.unit.test_enforcers import managed_worlds

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "virtual-switch-ovs"
_ADD = re.compile(r"add cookie=(\w+),table=(\d+),priority=(\d+),?(.*?),?actions=(.*)")


class Flows:
    """Flow tables as text, looked up by fields; a match that a packet has no field for does not match."""

    def __init__(self, text: str) -> None:
        self.lines = sorted(((int(m[2]), -int(m[3]), m[4], m[5]) for line in text.splitlines()
                             if (m := _ADD.fullmatch(line))), key=lambda one: one[:2])

    def look_up(self, table: int, packet: dict[str, str]) -> str:
        for number, _, match, actions in self.lines:
            if number == table and all(_holds(part, packet) for part in match.split(",") if part):
                return actions
        raise AssertionError(f"nothing in table {table} for {packet}")


def _holds(part: str, packet: dict[str, str]) -> bool:
    key, _, value = part.partition("=")
    if key == "ct_tp_dst" and "/" in value and key in packet:
        low, mask = (int(one, 16) for one in value.split("/"))
        return int(packet[key]) & mask == low
    if key == "ct_state":
        return all((word in packet[key].split("+")) == (sign == "+")
                   for sign, word in re.findall(r"([+-])([a-z]+)", value))
    if value and (":" in value or "." in value) and key in packet:
        return packet[key] == value or (key not in ("dl_src", "nd_sll", "nd_tll", "arp_sha")
                                        and ip_address(packet[key]) == ip_address(value))
    return key in packet and packet[key] == value


def tracked(flow: Flow, topology: Topology) -> dict[str, str]:
    """What tables see of either direction's packets once they are tracked: how the connection began."""
    key, family = ("nw", "ip") if flow.family == 4 else ("ipv6", "ipv6")
    source, target = (topology.hosts[name].address(flow.family) for name in (flow.source, flow.target))
    number = {"tcp": 6, "udp": 17, "icmp": 1 if flow.family == 4 else 58}[flow.proto]
    return {family: "", "ct_state": "trk", f"ct_{key}_src": source, f"ct_{key}_dst": target,
            "ct_nw_proto": str(number), **({"ct_tp_dst": str(flow.port)} if flow.proto != "icmp" else {})}


def text_of(native: Native) -> str:
    return "\n".join(native.rules.values())


@given(world=managed_worlds())
@settings(max_examples=60, deadline=None)
def test_expected_is_what_the_flows_do(world: tuple[Topology, Policy, list[Flow]]) -> None:
    """Between hosts, that is: what a host says to itself never comes by. Outsiders among themselves are let alone."""
    topology, policy, some = world
    arm = VirtualSwitchOvs()
    native = arm.compile(policy, topology)
    if not native.rules:
        return
    tables = Flows(text_of(native))
    for flow in (one for one in some if one.source != one.target):
        expected = not arm.covers(flow, topology) or decide(native.effective, flow, topology).allow
        found = tables.look_up(flows.JUDGE, tracked(flow, topology))
        assert (found == f"goto_table:{flows.PASS}") == expected, flow


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_a_range_is_covered_by_masks_once(a: int, b: int) -> None:
    low, high = sorted((a, b))
    spans = [(value, value + 65535 - mask) for value, mask in flows.masked(low, high)]
    assert spans[0][0] == low and spans[-1][1] == high
    assert all(before[1] + 1 == after[0] for before, after in pairwise(spans))
    assert all(value & mask == value for value, mask in flows.masked(low, high))


def test_invalid_and_what_begins_in_the_middle_are_dropped() -> None:
    topology, policy = three_tier()
    tables = Flows(text_of(VirtualSwitchOvs().compile(policy, topology)))
    assert tables.look_up(flows.JUDGE, {"ip": "", "ct_state": "trk+inv"}) == "drop"
    new = {"ip": "", "tcp": "", "ct_state": "trk+new", "ip_frag": "not_later"}
    assert tables.look_up(flows.PASS, {**new, "tcp_flags": "+ack"}) == "drop"
    assert tables.look_up(flows.PASS, {**new, "tcp_flags": "+syn-ack"}).startswith("ct(commit")
    assert tables.look_up(flows.PASS, {"ip": "", "tcp": "", "ct_state": "trk+est"}) == "NORMAL"
    assert tables.look_up(flows.PASS, {**new, "tcp_flags": "", "ip_frag": "later"}).startswith("ct(commit")


def test_a_port_says_what_is_its_hosts_alone() -> None:
    topology, _ = three_tier()
    host, other = topology.hosts["cam"], topology.hosts["db"]
    tables, onward = Flows("\n".join(flows.guard(host))), f"goto_table:{flows.SORT}"
    me = {"in_port": "$port", "vlan_tci": "0", "dl_src": host.mac}
    none = "00:00:00:00:00:00"
    solicit = {**me, "icmp6": "", "icmp_type": "135", "ipv6": "", "ipv6_src": host.v6, "nd_sll": none}
    advert = {**solicit, "icmp_type": "136", "nd_target": host.v6, "nd_tll": host.mac}
    arp = {**me, "arp": "", "arp_sha": host.mac, "arp_spa": host.v4}
    for packet in ({**me, "ip": "", "nw_src": host.v4}, {**me, "ipv6": "", "ipv6_src": host.v6}, solicit, advert, arp,
                   {**arp, "arp_spa": "0.0.0.0"}):
        assert tables.look_up(0, packet) == onward, packet
        assert tables.look_up(0, {**packet, "dl_src": other.mac}) == "drop", packet
        assert tables.look_up(0, {**packet, "vlan_tci": "0x1005"}) == "drop", packet
    for packet in ({**me, "ip": "", "nw_src": other.v4}, {**me, "ipv6": "", "ipv6_src": other.v6},
                   {**solicit, "nd_sll": other.mac}, {**advert, "nd_target": other.v6}, {**advert, "nd_tll": other.mac},
                   {**arp, "arp_spa": other.v4}, {**arp, "arp_sha": other.mac}, {**solicit, "icmp_type": "134"}, me):
        assert tables.look_up(0, packet) == "drop", packet


def three_tier() -> tuple[Topology, Policy]:
    scenario = load(ROOT / "scenarios" / "three-tier.yaml")
    return scenario.topology, scenario.policy


def test_golden() -> None:
    """Compare with tests/golden; to accept a change, delete the folder and run this test once."""
    topology, policy = three_tier()
    arm = VirtualSwitchOvs()
    native = arm.compile(policy, topology)
    said = [f"{a.rule}: {a.kind}: {a.reason}" for a in native.approximations]
    produced = {"approximations.txt": "\n".join([*said, f"{native.count} elements", ""])}
    for point, plan in arm.render(native, topology).items():
        if point.host in ("user-1", "cam"):  # the others' are like the camera's
            for path, content in plan.files.items():
                if not path.endswith(".py"):
                    produced[path.rpartition("/")[2]] = content.decode()
            orders = {what: getattr(plan, what) for what in ("up", "ready", "update", "collect", "down")}
            produced[f"{point.host}.json"] = json.dumps(orders, indent=1) + "\n"
    if not GOLDEN.exists():
        GOLDEN.mkdir()
        for name, text in produced.items():
            (GOLDEN / name).write_text(text)
        pytest.fail(f"{GOLDEN} was empty and has been written; read it and run again")
    assert {path.name for path in GOLDEN.iterdir()} == set(produced)
    for name, text in produced.items():
        assert (GOLDEN / name).read_text() == text, name


def test_the_userspace_variant_has_the_same_flows_and_says_what_it_is() -> None:
    topology, policy = three_tier()
    kernel, user = VirtualSwitchOvs(), VirtualSwitchOvsUserspace()
    assert kernel.compile(policy, topology) == user.compile(policy, topology)
    assert "lower bound" in (user.__doc__ or "") and "ovs-kernel" not in {need.name for need in user.needs()}
    assert "ovs-kernel" in {need.name for need in kernel.needs()}
