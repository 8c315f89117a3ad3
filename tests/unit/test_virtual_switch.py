"""What the virtual switch renders, and that its tables say what the oracle says: looked up as the program does."""

from __future__ import annotations

import ipaddress
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcers.agentless.switch import tables as made
from enforcers.agentless.switch.daemon import layout
from enforcers.agentless.switch.daemon import tables as filled
from enforcers.agentless.virtual_switch import VirtualSwitch
from lab.model import Flow, Host, Point, Policy, Rule, Selector, Service, Sighting, Topology
from lab.policy import decide
from lab.scenario import load
from tests.unit.worlds import a_flow, policies, topologies

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "virtual-switch"


class Lookup:
    """What the program finds in the maps that the daemon makes of a document: bytes, as the kernel would have them."""

    def __init__(self, document: dict[str, Any]) -> None:
        packed = filled.packed(document)
        self.allow, self.rules = document["allow"], document["rules"]
        self.addresses = _pairs(packed["addresses"], 16, 4)
        self.prefixes = _pairs(packed["prefixes"], 20, 4)
        self.verdicts = _pairs(packed["verdicts"], 12, 8)
        self.services = packed["service_classes"][1]

    def group(self, address: str) -> int:
        packed = layout.address(address)
        if packed in self.addresses:
            return _number(self.addresses[packed])
        whole = int.from_bytes(packed, "big")
        fitting = [(_number(key[:4]), value) for key, value in self.prefixes.items()
                   if not (whole ^ int.from_bytes(key[4:], "big")) >> 128 - _number(key[:4])]
        return _number(max(fitting)[1])

    def judge(self, source: str, target: str, proto: str, port: int) -> tuple[bool, str]:
        at = 2 * (("tcp", "udp").index(proto) * 65536 + port) if proto != "icmp" else 0
        service = layout.CLASS_ICMP if proto == "icmp" else int.from_bytes(self.services[at:at + 2], "little")
        for one in (service, layout.CLASS_WIDE):
            key = b"".join(n.to_bytes(4, "little") for n in (self.group(source), self.group(target), one))
            if key in self.verdicts:
                allow, rule = self.verdicts[key][:4], self.verdicts[key][4:]
                return bool(_number(allow)), self.rules[_number(rule)]
        return self.allow, self.rules[0]


def _pairs(packed: tuple[bytes, bytes], key: int, value: int) -> dict[bytes, bytes]:
    keys, values = packed
    return {keys[key * n:key * n + key]: values[value * n:value * n + value] for n in range(len(keys) // key)}


def _number(word: bytes) -> int:
    return int.from_bytes(word, "little")


def document(policy: Policy, topology: Topology) -> dict[str, Any]:
    native = VirtualSwitch().compile(policy, topology)
    return dict(json.loads(next(iter(native.rules.values())))["policy"])


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_the_tables_say_what_the_oracle_says(data: st.DataObject) -> None:
    """Verdict and the name of the rule, of every flow, as the packet would be looked up."""
    topology = data.draw(topologies())
    policy = data.draw(policies(topology))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    native = VirtualSwitch().compile(policy, topology)
    look = Lookup(json.loads(next(iter(native.rules.values())))["policy"])
    for flow in (a_flow(rng, topology) for _ in range(30)):
        source, target = topology.hosts[flow.source], topology.hosts[flow.target]
        wanted = decide(native.effective, flow, topology)
        found = look.judge(source.address(flow.family), target.address(flow.family), flow.proto, flow.port)
        assert found == (wanted.allow, wanted.rule), flow


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_an_address_that_no_host_has_is_in_the_rules_that_its_prefix_names(data: st.DataObject) -> None:
    topology = data.draw(topologies())
    policy = data.draw(policies(topology))
    native = VirtualSwitch().compile(policy, topology)
    look = Lookup(json.loads(next(iter(native.rules.values())))["policy"])
    taken = {address for host in topology.hosts.values() for address in (host.v4, host.v6)}
    for text in ("10.1.99.9", "10.2.0.3", "198.51.100.7", "fd10:1::ffff", "2001:db8::1"):
        if text in taken:
            continue
        family = ipaddress.ip_address(text).version
        guest = Host("guest", "", text, text, "")
        world = replace(topology, hosts={**topology.hosts, "guest": guest})
        target = next(iter(topology.hosts.values()))
        flow = Flow("guest", "", "", target.name, "", "tcp", 80, family)  # type: ignore[arg-type]
        wanted = decide(native.effective, flow, world)
        assert look.judge(text, target.address(flow.family), "tcp", 80) == (wanted.allow, wanted.rule)


def three_tier() -> tuple[Policy, Topology]:
    scenario = load(ROOT / "scenarios" / "three-tier.yaml")
    return scenario.policy, scenario.topology


def test_golden() -> None:
    """To accept a change, delete the folder's files and run this test once."""
    policy, topology = three_tier()
    native = VirtualSwitch().compile(policy, topology)
    said = [f"{a.rule}: {a.kind}: {a.reason}" for a in native.approximations]
    produced = {f"{point.host}.json": text for point, text in native.rules.items()}
    produced["approximations.txt"] = "\n".join([*said, f"{native.count} entries", ""])
    if not any(GOLDEN.glob("*.json")):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for name, text in produced.items():
            (GOLDEN / name).write_text(text)
        pytest.fail(f"{GOLDEN} was empty and has been written; read it and run again")
    assert {path.name: path.read_text() for path in GOLDEN.iterdir()} == produced


def test_the_policy_comes_once_and_each_port_knows_its_own_host_alone() -> None:
    policy, topology = three_tier()
    documents = [json.loads(text) for text in VirtualSwitch().compile(policy, topology).rules.values()]
    assert ["policy" in one for one in documents] == [True] + [False] * (len(documents) - 1)
    assert [one["port"]["host"] for one in documents] == list(topology.hosts)


def test_what_it_covers() -> None:
    policy, topology = three_tier()
    arm = VirtualSwitch()

    def covers(source: str, target: str, world: Topology = topology) -> bool:
        return arm.covers(Flow(source, "", "", target, "", "tcp", 80, 4), world)

    assert not covers("web-1", "web-1")
    assert covers("web-1", "web-2") and covers("web-1", "api-1")
    assert covers("cam", "api-1") and covers("api-1", "cam")
    outside = {name: replace(host, external=name.startswith("user")) for name, host in topology.hosts.items()}
    world = replace(topology, hosts=outside)
    assert not covers("user-1", "user-2", world) and covers("user-1", "web-1", world)
    assert {point.host for point in arm.compile(policy, world).rules} == set(topology.hosts) - {"user-1", "user-2"}


def test_an_empty_policy_of_either_default() -> None:
    _, topology = three_tier()
    for default in ("allow", "deny"):
        found = Lookup(document(Policy(default, ()), topology))  # type: ignore[arg-type]
        assert found.judge("10.10.1.2", "10.10.2.2", "tcp", 8080) == (default == "allow", "default")


def test_too_many_classes_are_an_error_in_words() -> None:
    _, topology = three_tier()
    many = tuple(Service("tcp", port, port) for port in range(0, 65536, 2))
    more = tuple(Service("udp", port, port) for port in range(0, 65536, 2))
    policy = Policy("deny", (Rule("all", "allow", Selector(), Selector(), (*many, *more)),))
    with pytest.raises(ValueError, match="classes of ports"):
        document(policy, topology)


def test_telemetry_is_read_and_what_is_none_is_refused() -> None:
    line = (b'{"t": "flow", "time": 1.5, "proto": "tcp", "source": "10.0.0.1", "sport": 4, "target": "10.0.0.2", '
            b'"dport": 80, "bytes": 496, "packets": 8, "verdict": "allow", "rule": "r"}')
    arm, point = VirtualSwitch(), Point("port", "web-1")
    (seen,) = arm.sightings(point, [b'{"t": "header", "lost": 0}', line])
    assert seen == Sighting("web-1", 1.5, "tcp", "10.0.0.1", 4, "10.0.0.2", 80, bytes=496, packets=8, verdict="allow",
                            rule="r")
    with pytest.raises(ValueError, match="web-1: not a telemetry line of the switch"):
        list(arm.sightings(point, [b'{"t": "fl']))


def test_shapes_are_those_of_the_kernel_program() -> None:
    """Sizes that state.h has too; a record from there is read back as what it tells."""
    assert (layout.KEY_BYTES, layout.FLOW_BYTES, layout.RECORD_BYTES) == (44, 104, 104)
    key = layout._KEY.pack(7, 6, 4, 0, layout.address("10.0.0.2"), layout.address("10.0.0.1"), b"\0P", b"\x9c\x40")
    flow = layout._FLOW.pack(1_000, 2_000, 300, 200, 3, 2, 256, 1, 1, 1, 1, 1)
    seen = layout.seen(*layout.split(key + bytes(4) + flow))
    assert seen[:8] == (7, "tcp", "10.0.0.1", 40000, "10.0.0.2", 80, 1_000, 2_000)
    assert seen[8:] == (500, 5, True, 1, 256, True)
    assert layout.seen(key, flow + bytes(48)) == seen, "as it lies in the table, with its sides"
    assert flow[layout.CLOSED_AT] == 1 and not layout._FLOW.pack(*[1] * 10, 0, 1)[layout.CLOSED_AT]
    assert made.WIDE == layout.CLASS_WIDE and made.FIRST_CLASS == layout.FIRST_CLASS
