"""Whether something leads out of a lab is read off its devices; each way out is found, and nothing else."""

from __future__ import annotations

from lab.confines import Device, devices, strays

HOST = Device("eth0", 2, "veth", True, 7)
PORT = Device("p0", 7, "veth", True, 2)
LAB = {"web": [Device("lo", 1, "loopback", True), HOST], "the switch": [Device("br0", 3, "bridge", True), PORT]}


def test_a_lab_with_both_ends_of_every_pair_has_no_way_out() -> None:
    assert strays(LAB) == []


def test_hardware_is_a_way_out_when_it_is_up() -> None:
    card = Device("enp3s0", 4, "", True)
    assert strays({**LAB, "db": [card]}) == ["enp3s0 of db (hardware)"]
    assert strays({**LAB, "db": [Device("sit0", 4, "sit", False)]}) == []


def test_a_tunnel_is_a_way_out() -> None:
    assert strays({**LAB, "db": [Device("wg0", 5, "wireguard", True)]}) == ["wg0 of db (wireguard)"]


def test_a_pair_whose_other_end_is_elsewhere_is_a_way_out() -> None:
    foreign = Device("x", 9, "veth", True, 11)
    assert strays({**LAB, "db": [foreign]}) == ["x of db (its other end is in no namespace of the lab)"]


def test_an_end_with_the_numbers_of_another_pair_is_found_too() -> None:
    found = strays({**LAB, "db": [Device("x", 2, "veth", True, 7)]})
    assert found and all("other end" in one for one in found)


def test_what_ip_says_is_read() -> None:
    shown = [{"ifindex": 1, "ifname": "lo", "flags": ["LOOPBACK", "UP"], "link_type": "loopback"}, {},
             {"ifindex": 2, "link_index": 7, "ifname": "eth0", "flags": ["BROADCAST", "UP"], "link_type": "ether",
              "linkinfo": {"info_kind": "veth"}},
             {"ifindex": 3, "ifname": "enp1s0", "flags": ["BROADCAST"], "link_type": "ether"}]
    assert devices(shown) == (Device("lo", 1, "loopback", True), HOST, Device("enp1s0", 3, "", False))
