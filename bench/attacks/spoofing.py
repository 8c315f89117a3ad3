"""T1557.002 and its kin: being somebody else on a segment, from a device that can take no agent, with root on it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from bench.attacks.ground import ROOT, Ground, Service
from bench.attacks.technique import Came, NotHereError, Technique, came
from lab.model import Host

POISON_S = 3.0


def _mates(ground: Ground, device: Host) -> list[Host]:
    """Hosts of the device's segment that the attacker holds, so that it knows whom they call."""
    return [host for name in ground.known.held if (host := ground.topology.hosts[name]).segment == device.segment
            and host is not device and ground.configured(name)]


def _target(ground: Ground, device: Host, victims: list[Host]) -> tuple[Host, Service]:
    """Whom to be, and what only it may ask."""
    me = ground.dropped(device.name)
    for victim in victims:
        for service in ground.configured(victim.name):
            target = ground.topology.hosts[ground.name(service[0])]
            if not ground.allowed(me, service) and target.segment != device.segment:
                return victim, service
    raise NotHereError("no held host beside an unmanaged device calls anything in another segment")


def _arp(ground: Ground) -> Came:
    """The device says that it is the gateway, and gets what a neighbour sends through that.

    The lab's neighbour tables are pinned, since the kernel has one small table for all hosts: the victim's entry for
    its gateway is made an ordinary one for as long as the attack lasts.
    """
    device = ground.unmanaged()
    victim, service = _target(ground, device, _mates(ground, device))
    gateway = ground.topology.segments[device.segment].gateway4
    actor = ground.known.held[victim.name]
    with _unpinned(ground, victim.name, gateway), ground.running(
            device.name, ROOT, "poison", "eth0", device.mac, victim.v4, victim.mac, gateway, f"{POISON_S:g}",
            ready=True) as liar:
        said = None
        while said is None:  # the victim does what it does all day; the tool gives up by itself
            ground.probe(actor, [service])
            said = liar.heard(0.1)
    worked = bool(said["target"])
    return came(worked, f"{device.name} {'got' if worked else 'got nothing of'} what {victim.name} sent"
                        f"{' to ' + ground.name(said['target']) if worked else ''}")


@contextlib.contextmanager
def _unpinned(ground: Ground, host: str, address: str) -> Iterator[None]:
    shown = json.loads(ground.testbed.run(host, ["ip", "-j", "neigh", "show", address]).stdout or b"[]")
    if not shown or "lladdr" not in shown[0]:
        raise NotHereError(f"{host} has no entry for its gateway")
    entry = ["ip", "neigh", "replace", address, "lladdr", shown[0]["lladdr"], "dev", shown[0]["dev"], "nud"]
    ground.testbed.run(host, [*entry, "stale"])
    try:
        yield
    finally:
        ground.testbed.run(host, [*entry, "permanent"])


def _take_over(ground: Ground) -> Came:
    """The device takes a neighbour's MAC and IP address, and asks what only the neighbour may."""
    device = ground.unmanaged()
    victim, service = _target(ground, device, _mates(ground, device))
    try:
        with _address(ground, device, victim, victim.mac):
            return _as_somebody(ground, device, victim, service)
    finally:
        ground.opens(ground.known.held[victim.name], service)  # the bridge learns again where the victim is


def _departed(ground: Ground) -> Came:
    """A host has left; its address is given to the device, as a new lease would give it. The router learns of it."""
    device = ground.unmanaged()
    mates = _mates(ground, device)
    gone, service = _target(ground, device, mates[::-1])
    ground.testbed.run(gone.name, ["ip", "link", "set", "eth0", "down"])
    ground.known.held.pop(gone.name, None)
    router = ground.topology.router
    way = json.loads(ground.testbed.run(router, ["ip", "-j", "route", "get", gone.v4]).stdout)[0]["dev"]
    entry = ["ip", "neigh", "replace", gone.v4, "dev", way, "nud", "permanent", "lladdr"]
    with _address(ground, device, gone, device.mac):
        ground.testbed.run(router, [*entry, device.mac])
        try:
            return _as_somebody(ground, device, gone, service)
        finally:
            ground.testbed.run(router, [*entry, gone.mac])


@contextlib.contextmanager
def _address(ground: Ground, device: Host, victim: Host, mac: str) -> Iterator[None]:
    """The device has the victim's IPv4 address, and `mac`, for a while."""
    run = ground.testbed.run
    done = run(device.name, ["ip", "addr", "add", f"{victim.v4}/32", "dev", "eth0"])
    if done.status:
        raise NotHereError(f"{device.name}: {done.stderr.decode(errors='replace').strip()}")
    run(device.name, ["ip", "link", "set", "dev", "eth0", "address", mac])
    try:
        yield
    finally:
        run(device.name, ["ip", "link", "set", "dev", "eth0", "address", device.mac])
        run(device.name, ["ip", "addr", "del", f"{victim.v4}/32", "dev", "eth0"])


def _as_somebody(ground: Ground, device: Host, victim: Host, service: Service) -> Came:
    nonce = ground.rng.getrandbits(63)
    said = ground.tool(device.name, ROOT, "exploit", service[0], str(service[1]), str(nonce), victim.v4,
                       source=victim.v4)
    end = "obeyed" if said["host"] else "did not obey"
    return came(bool(said["host"]), f"{ground.name(service[0])} {end} {device.name}, which said it was {victim.name}")


ROOT_ON_DEVICE = "root on a device that can take no agent, beside a host that was held before"
TECHNIQUES = (
    Technique("arp", "T1557.002", "ARP spoofing", ROOT_ON_DEVICE, "frames that a neighbour meant for the gateway came",
              _arp),
    Technique("address", "T1557.002", "Taking a live host's MAC and IP address", ROOT_ON_DEVICE,
              "a service that only the neighbour may ask obeyed the payload and said so with its nonce", _take_over),
    Technique("departed", "T1036", "Reuse of a departed host's address", ROOT_ON_DEVICE + "; that host has left",
              "a service that only the departed host might ask obeyed the payload and said so with its nonce",
              _departed),
)
