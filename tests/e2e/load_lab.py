"""A small lab for tests of load: two clients, two servers, a router between; nothing is enforced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCENARIOS = Path(__file__).parents[2] / "scenarios"
TEXT = """version: 1
name: load
topology:
  segments:
    office: {{v4: 10.10.0.0/24, v6: 'fd10:0::/64'}}
    dmz: {{v4: 10.10.1.0/24, v6: 'fd10:1::/64'}}
  hosts:
    user: {{segment: office, labels: {{role: user}}, runs: [shopper]}}
    web: {{segment: dmz, labels: {{role: web}}, runs: [frontend]}}
processes:
  shopper: {{exe: /opt/client/shopper, user: buyer}}
  frontend: {{exe: /opt/shop/frontend, user: www, listens: [80/tcp, 53/udp]}}
policy:
  default: deny
  rules:
    - {{name: web, allow: {{from: {{role: user}}, to: {{role: web}}, service: 80/tcp}}}}
    - {{name: dns, allow: {{from: {{role: user}}, to: {{role: web}}, service: 53/udp}}}}
traffic: {{clients: {{role: user}}, process: shopper, locustfile: {locustfile}, rate: 200/s}}
arms: [none]
"""


@contextlib.contextmanager
def lab(me: Any, locustfile: Path = SCENARIOS / "shop.py") -> Iterator[tuple[Any, Any]]:
    """The testbed and its scenario."""
    from bench import honest
    from lab.backends import mininet_lab
    from lab.hosts.build import build
    from lab.hosts.roles import actors
    from lab.scenario import loads

    scenario = loads(TEXT.format(locustfile=locustfile), "load.yaml")
    honest.share_packages()
    with mininet_lab.up(scenario.topology, build(), me.cgroup, actors(scenario.topology)) as testbed:
        yield testbed, scenario


def flow(proto: str = "tcp", family: int = 4) -> Any:
    from lab.model import Flow

    return Flow("user", "shopper", "buyer", "web", "frontend", proto, {"tcp": 80, "udp": 53}[proto], family)  # type: ignore[arg-type]


RAW = "/run/host/load/raw"


def place_raw(testbed: Any) -> None:
    """`raw_peer.c`, compiled, on both hosts."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        built = Path(place, "raw")
        source = Path(__file__).with_name("raw_peer.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(built), str(source)], check=True)
        for host in ("user", "web"):
            testbed.put(host, {RAW: built.read_bytes()})


@contextlib.contextmanager
def in_place_of_the_service(testbed: Any, *argv: str) -> Iterator[Any]:
    """A server of our own on the service's port, as its user; it says "listening" first."""
    from bench.instruments import onhost

    with onhost.lent_port(testbed, flow()):
        server = testbed.spawn("web", argv, process="frontend")
        try:
            for line in server.stdout:
                if b"listening" in line:
                    break
            yield server
        finally:
            testbed.run("web", ["kill", "-KILL", str(server.pid)])
            server.wait(90.0)
            server.kill()
