"""T1046, and the exploits that follow from what was found: T1210."""

from __future__ import annotations

from bench.attacks.ground import Ground, Service
from bench.attacks.technique import Came, Technique, came
from lab.hosts.attempts import Actor


def _discover(ground: Ground) -> Came:
    actors = (ground.foothold, ground.dropped(ground.foothold.host))
    found = {(actor, service) for actor in actors for service in ground.sweep(actor)}
    hidden = {service for actor, service in found if not ground.allowed(actor, service)}
    return came(bool(hidden), f"{len({service for _actor, service in found})} services answered, "
                              f"{_some(ground, hidden)} of them against the policy")


def _exploit(ground: Ground) -> Came:
    """Everything that answered, through whichever of the two it answered to."""
    taken: set[str] = set()
    for actor in (ground.foothold, ground.dropped(ground.foothold.host)):
        services = [one for one in ground.sweep(actor) if ground.name(one[0]) not in taken]
        got = ground.exploit(actor, services)
        taken |= {one.host for one, service in zip(got, services, strict=True)
                  if one.owned and not ground.allowed(actor, service)}
    return came(bool(taken), f"took {', '.join(sorted(taken)) or 'nothing'} by ways that the policy denies")


def _live_off(ground: Ground) -> Came:
    """Only the taken process itself, and only what it is configured to call: nothing a policy could object to."""
    services = list(ground.configured(ground.foothold.host))
    got = ground.exploit(ground.foothold, services)
    taken = sorted({one.host for one in got if one.owned})
    return came(bool(taken), f"took {', '.join(taken) or 'nothing'} from within {ground.foothold.process}")


def _wrong_process(ground: Ground) -> Came:
    """What the taken process may call, asked by a binary dropped beside it."""
    stranger = ground.dropped(ground.foothold.host)
    services = [one for one in ground.configured(ground.foothold.host) if not ground.allowed(stranger, one)]
    got = ground.probe(stranger, services)
    through = [f"{ground.name(address)}:{port}" for (address, port), one in zip(services, got, strict=True)
               if one.outcome == "OPEN" or one.arrived]
    return came(bool(through), f"a dropped binary reached {', '.join(through) or 'nothing'}")


def _pivot(ground: Ground) -> Came:
    """From the dropped binary to the processes of its own host, by its own address and over loopback."""
    host = ground.topology.hosts[ground.foothold.host]
    stranger = ground.dropped(host.name)
    _process, port = ground.serves(host, "tcp")
    ways = {"its own address": host.v4, "loopback": "127.0.0.1"}
    through = [name for name, address in ways.items() if _opens(ground, stranger, (address, port))]
    return came(bool(through), f"by {' and by '.join(through)}" if through else "neither way")


def _opens(ground: Ground, actor: Actor, service: Service) -> bool:
    got = ground.probe(actor, [service])[0]
    return got.outcome == "OPEN" or got.arrived


def _some(ground: Ground, services: set[Service]) -> str:
    hosts = sorted({ground.name(address) for address, _port in services})
    return f"{len(services)} (on {', '.join(hosts)})" if services else "none"


TECHNIQUES = (
    Technique("discovery", "T1046", "Service discovery", "code runs inside one process, a binary is dropped beside it",
              "a service that the policy denies to who asked answered a connection", _discover),
    Technique("living-off", "T1055", "Living off an allowed process", "code runs inside one process",
              "the service obeyed the payload and said so with its nonce", _live_off,
              "it is the process that the policy allows, asking what it may ask of whom it may ask; what is asked for "
              "inside of the connection is no matter of segmentation"),
    Technique("wrong-process", "T1071.001", "An allowed port from a wrong process", "a binary dropped on the host",
              "the connection arrived at the service", _wrong_process),
    Technique("exploitation", "T1210", "Exploitation of vulnerable services", "discovery found services",
              "a service that the policy denies obeyed the payload and said so with its nonce", _exploit),
    Technique("pivot", "T1090.001", "Pivot inside a host and over loopback", "a binary dropped on the host",
              "the other process of the same host answered", _pivot),
)
