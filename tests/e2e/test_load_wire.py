"""The certificate against real packets: an honest generator agrees with the wire; every liar is found."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.instruments import traffic, wire
from bench.instruments.phases import Phases
from tests.e2e.isolated import call, needs_root
from tests.unit.test_traffic import SCENARIOS, TOPOLOGY, Local, Server, Spawner, serving

pytestmark = [needs_root, pytest.mark.e2e]
HERE = "tests.e2e.test_load_wire"
TRIES = 5  # on a machine that others use, until a window is valid by all but what is planted

# name: what a lying worker does instead (in locust_worker.py), and the check that must find it
LIES = {
    "reports from the real send": ("round((v.end - v.due) * 1e6, 1)", "round(v.times_us[-1], 1)"),
    "shows 0 ms, as locust does": ("round((v.end - v.due) * 1e6, 1)", "0.0"),
    "is slow after the answer": ("        visit.end = time.monotonic()", "        gevent.sleep(0.02)\n"
                                 "        visit.end = time.monotonic()"),
}


def _root(_host: str, argv: Sequence[str]) -> Local:
    return Local(argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


@contextlib.contextmanager
def _shoppers(server: Server, worker: Path = traffic.WORKER) -> Iterator[traffic.Traffic]:
    with traffic.Traffic(Spawner(), TOPOLOGY, process="browser", locustfile=str(SCENARIOS / "shop.py"),
                         per_client={"one": server.urls}, worker=str(worker)) as clients:
        yield clients


def _window(clients: traffic.Traffic, frames: int = wire.FRAMES, rate: float = 100) -> tuple[Any, dict[str, Any]]:
    with wire.tapped(_root, ["one"], sys.executable, frames=frames) as traces:
        window = clients.run_phases(rate, Phases(sustain_s=0.8))
    return window, traces


def _failing(window: Any, traces: Any) -> list[str]:
    whole = window.certificate.and_checks(wire.check(window, traces))
    return [check.name for check in whole.checks if not check.ok]


def _until(clients: traffic.Traffic, wanted: set[str] | None = None, **how: Any) -> list[list[str]]:
    """Failing checks of several windows; ends early when they are exactly `wanted` (None: nothing at all)."""
    found = []
    for _ in range(TRIES):
        found.append(_failing(*_window(clients, **how)))
        if set(found[-1]) == (wanted or set()):
            break
    return found


def honest_and_lying(_me: Any, _argument: Any) -> dict[str, Any]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    found: dict[str, Any] = {}
    with serving() as server:
        with _shoppers(server) as clients:
            found["honest"] = _until(clients)
            found["a tap without room"] = _until(clients, {"wire: matched"}, frames=256)
            window, traces = _window(clients)
            stepped = replace(window, clock_offset_s=window.clock_offset_s + 0.05)
            found["a stepped clock"] = [_failing(stepped, traces)]
            found["packets late by 20 ms"] = [_failing(window, {"one": wire.Trace(tuple(
                replace(p, at=p.at + 0.02) for p in traces["one"].packets), 0)})]
            found["no packets"] = [_failing(window, {"one": wire.Trace((), 0)})]
        for name, (truth, lie) in LIES.items():
            with tempfile.TemporaryDirectory() as place, _shoppers(server, _liar(Path(place), truth, lie)) as clients:
                found[name] = _until(clients, {"wire: p50"})
    return found


def _liar(place: Path, truth: str, lie: str) -> Path:
    for part in (traffic.WORKER, *traffic.BESIDE_WORKER):
        shutil.copy(part, place / part.name)
    worker = place / traffic.WORKER.name
    text = worker.read_text()
    assert truth in text
    worker.write_text(text.replace(truth, lie))
    return worker


def test_the_wire_agrees_with_the_honest_and_finds_every_liar() -> None:
    found = call(HERE, "honest_and_lying")
    if [] not in found["honest"]:
        pytest.skip(f"the machine was too busy for a single valid window: {found['honest']}")
    assert all("wire: matched" in names for names in found["a tap without room"])
    assert all("wire: matched" in names for names in found["no packets"])
    for name in (*LIES, "packets late by 20 ms", "a stepped clock"):
        assert all({"wire: p50", "wire: send lag p90"} & set(names) for names in found[name]), (name, found[name])
    for name in LIES:
        assert all("wire: p50" in names for names in found[name]), (name, found[name])


# --- what fills up on the client --------------------------------------------------------------


def occupied(_me: Any, _argument: Any) -> dict[str, Any]:
    """TIME_WAIT and ports in a namespace with few ports: planted by closing with FIN, and by holding connections."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40999")
    found = {}
    with serving() as server, _shoppers(server) as clients:
        found["none"] = _failing(*_window(clients))
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(550)]
        found["held"] = _failing(*_window(clients))
        for one in held:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        for _ in range(260):
            socket.create_connection(("127.0.0.1", server.port)).close()
        found["closed with FIN"] = _failing(*_window(clients))
    return found


def test_ports_in_use_and_time_wait_are_counted() -> None:
    found = call(HERE, "occupied")
    assert not {"TIME_WAIT", "ephemeral ports"} & set(found["none"])
    assert "ephemeral ports" in found["held"] and "TIME_WAIT" not in found["held"]
    assert "TIME_WAIT" in found["closed with FIN"] and "ephemeral ports" not in found["closed with FIN"]
