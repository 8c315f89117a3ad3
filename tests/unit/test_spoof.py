"""Datagrams in another's name: which there are to try, that they are whole, and how an arm is held to its word."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from bench import assemble
from bench.experiment import Options, _forgeries
from bench.instruments import spoof
from bench.instruments.spoof import Forgery
from bench.selection import select
from lab.model import Scenario
from lab.scenario import load

ROOT = Path(__file__).parents[2]


def scenario() -> Scenario:
    return load(ROOT / "scenarios" / "spoofing.yaml")


def tried(of: Scenario) -> tuple[Forgery, ...]:
    return _forgeries(SimpleNamespace(scenario=of, selection=select(of), options=Options()))  # type: ignore[arg-type]


def test_whoever_may_not_says_that_it_is_who_may() -> None:
    found = tried(scenario())
    assert len(found) == len(set(found)) == 18
    assert {one.claimed for one in found} == {"sensor"} and "sensor" not in {one.sender for one in found}
    assert not [one for one in found if one.sender == one.target]
    near = [one for one in found if one.target == "console" and one.sender == "rogue"]
    assert len({(one.link, one.way) for one in near}) == 4
    across = [one for one in found if one.target == "collector"]
    assert {one.way for one in across} == {"by the router"}
    assert {one.link for one in found if one.sender == "collector"} == {"own"}, "another segment's address is no use"


def test_nothing_is_tried_where_no_datagram_is_allowed() -> None:
    assert tried(load(ROOT / "scenarios" / "three-tier.yaml")) == ()


def test_many_are_sampled_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoof, "MOST", 5)
    assert len(tried(scenario())) == 5
    assert tried(scenario()) == tried(scenario())


@pytest.mark.parametrize("index", range(18))
def test_frames_are_whole(index: int) -> None:
    """Checksums and all, as scapy would have made them; the service finds its record in them."""
    topology, forgery = scenario().topology, tried(scenario())[index]
    sent = spoof.frame(forgery, topology, index, token=77)
    parsed = Ether(sent)
    layer = parsed[IP] if forgery.family == 4 else parsed[IPv6]
    sensor, target = topology.hosts["sensor"], topology.hosts[forgery.target]
    assert (layer.src, layer.dst) == (sensor.address(forgery.family), target.address(forgery.family))
    assert parsed.src == (sensor if forgery.link == "claimed" else topology.hosts[forgery.sender]).mac
    assert (parsed.dst == target.mac) == (forgery.way == "straight")
    assert bytes(layer[UDP].payload)[:4] == b"LCP1" and bytes(layer[UDP].payload)[8:16] == (77).to_bytes(8, "little")
    given = layer[UDP].chksum
    del layer[UDP].chksum
    if forgery.family == 4:
        header = layer.chksum
        del layer.chksum
        assert IP(bytes(layer)).chksum == header
    assert type(layer)(bytes(layer))[UDP].chksum == given


@pytest.mark.parametrize(("claims", "external", "defects"), [(True, False, 1), (False, False, 0), (True, True, 0)])
def test_who_claims_to_stop_it_is_held_to_that(claims: bool, external: bool, defects: int) -> None:
    one, other, dead = tried(scenario())[:3]
    hosts = {name: SimpleNamespace(external=external) for name in scenario().topology.hosts}
    collected = SimpleNamespace(
        records={"none": SimpleNamespace(forged=((one, True), (other, True), (dead, False)))},
        arms={"mine": SimpleNamespace(enforcer=SimpleNamespace(stops_spoofing=claims))},
        scenario=SimpleNamespace(topology=SimpleNamespace(hosts=hosts)))
    record = SimpleNamespace(forged=((one, True), (other, False), (dead, True)))
    found = assemble._spoofing(collected, "mine", record)  # type: ignore[arg-type]
    assert found is not None and (found.n, found.arrived, found.defects) == (2, 1, defects), "no control, no word"
    assert found.example == str(one)
