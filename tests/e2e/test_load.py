"""The load instruments in a lab: each figure is what was planted, and a window carries its whole certificate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from tests.e2e.isolated import call, needs_root

pytestmark = [needs_root, pytest.mark.e2e]
HERE = "tests.e2e.test_load"
JITTER_US = 3000


def figures(me: Any, _argument: Any) -> dict[str, Any]:
    from bench.instruments import cpu, held, onhost, tls, udp
    from tests.e2e.load_lab import flow, lab

    found: dict[str, Any] = {}

    def stream(family: int = 4) -> dict[str, Any]:
        got = udp.measure(testbed, flow("udp", family), 0.5)
        return {"sent": got.sent, "received": got.received, "loss": got.loss, "jitter": got.jitter_us,
                "refused": got.refused, "reordered": got.reordered, "transits": len(got.transits_us)}

    def filtered(host: str, name: str, rule: str, hook: str = "input") -> None:
        text = f"table inet planted {{ chain c {{ type filter hook {hook} priority 0; {rule}; }}; }}\n"
        done = testbed.run(host, ["nft", "-f", "-"], input=text.encode())
        assert done.status == 0, (name, text, done)

    def clear(host: str) -> None:
        testbed.run(host, ["nft", "delete", "table", "inet", "planted"])

    with lab(me) as (testbed, _scenario):
        onhost.place(testbed, ["user", "web"])
        found["udp4"], found["udp6"] = stream(), stream(6)
        filtered("web", "loss", "udp dport 53 numgen inc mod 20 == 7 drop")
        found["udp loss"], found["udp loss, iperf3"] = stream(), _iperf_loss(testbed)
        clear("web")
        filtered("user", "refused", "udp dport 53 numgen inc mod 10 == 0 reject", "output")
        found["udp refused"] = stream()
        clear("user")
        client = testbed.topology.hosts["user"]
        program = onhost.CLIENT
        late = onhost.Path(onhost.__file__).with_name("host_client.py").read_text().replace(
            "time.time_ns())", f"time.time_ns() - number % 2 * {JITTER_US * 1000})")
        testbed.put(client.name, {program: late.encode()})
        found["udp jitter"] = stream()
        onhost.place(testbed, ["user"])
        got = tls.measure(testbed, flow(), 1.0)
        found["tls"] = {"per_s": got.per_s, "errors": got.errors, "n": len(got.took_us), "software": got.software}
        before = cpu.read(testbed)
        found["held"] = asdict(held.measure(testbed, flow(), 500))
        spent = cpu.between(before, cpu.read(testbed))
        found["cpu"] = {"seconds": spent.seconds, "counter": spent.counter, "each": spent.per_connection_us(500)}
        filtered("web", "held", "tcp dport 80 ct state new ct count over 300 reject with tcp reset")
        found["held, 300 allowed"] = asdict(held.measure(testbed, flow(), 500))
        clear("web")
        found["conntrack"] = _tracked(testbed)
        again = testbed.services.request(_client(), "http", "4", testbed.topology.hosts["web"].v4, "80", "0.05")
        found["service is back"] = int(again[0])
    return found


def _client() -> Any:
    from lab.hosts.control import Actor

    return Actor("user", "shopper", "buyer")


def _tracked(testbed: Any) -> Any:
    from bench.instruments.certificate import occupied

    return occupied(testbed, ["web", "router"])


def _iperf_loss(testbed: Any) -> float:
    """The same stream by iperf3, on the same port (which its TCP needs too: here everything is allowed)."""
    from bench.instruments import onhost
    from tests.e2e.load_lab import flow

    address = testbed.topology.hosts["web"].v4
    with onhost.lent_port(testbed, flow("udp")):
        server = testbed.spawn("web", ["iperf3", "-s", "-1", "-p", "53", "--forceflush"], process="frontend")
        for line in server.stdout:
            if b"listening" in line:
                break
        done = testbed.run("user", ["iperf3", "-u", "-c", address, "-p", "53", "-b", "1600000", "-l", "200", "-t", "1",
                                    "-J"])
        server.wait(90.0)
        server.kill()
    return float(json.loads(done.stdout)["end"]["sum"]["lost_percent"]) / 100


def test_every_figure_is_what_was_planted() -> None:
    found = call(HERE, "figures")
    print(json.dumps(found, indent=1))
    for family in ("udp4", "udp6"):
        assert (found[family]["sent"], found[family]["received"], found[family]["loss"]) == (500, 500, 0.0)
        assert found[family]["transits"] == 500 and found[family]["jitter"] < JITTER_US / 2
    assert found["udp loss"]["loss"] == pytest.approx(0.05, abs=0.002)
    assert found["udp loss, iperf3"] == pytest.approx(0.05, abs=0.01)
    assert found["udp refused"]["refused"] == pytest.approx(50, abs=1)
    assert found["udp refused"]["loss"] == pytest.approx(0.1, abs=0.004)
    # Every transit differs from the one before by what was planted, so J converges to it (RFC 3550, 6.4.1).
    assert found["udp jitter"]["jitter"] == pytest.approx(JITTER_US, rel=0.15)
    assert found["tls"]["n"] > 20 and found["tls"]["errors"] == 0 and "TLSv1.3" in found["tls"]["software"]
    assert (found["held"]["open"], found["held"]["opened"]) == (500, 500)
    assert "as many as were asked for" in found["held"]["why"]
    assert found["held, 300 allowed"]["open"] == 300 and "refused" in found["held, 300 allowed"]["why"]
    assert found["conntrack"]["web"][0] is None or found["conntrack"]["web"][0] >= 0
    assert found["service is back"] > 100
    seconds = found["cpu"]["seconds"]
    if seconds["hosts"] is not None:
        assert seconds["hosts"] > 0 and "cpu.stat" in found["cpu"]["counter"]["hosts"]
    else:
        assert "unavailable" in found["cpu"]["counter"]["hosts"]
    assert seconds["softirq"] is not None and "/proc/stat" in found["cpu"]["counter"]["softirq"]


def windows(me: Any, _argument: Any) -> dict[str, Any]:
    """The knee, then a window at each share of it, until one of each is valid."""
    from bench import honest
    from bench.instruments import knee, load, onhost
    from bench.instruments.phases import Phases
    from tests.e2e.load_lab import lab

    with lab(me) as (testbed, scenario), honest.clients(scenario, testbed) as clients:
        onhost.place(testbed, ["user"])
        found = knee.find(clients)
        points = {}
        for share, rate in found.points().items():
            for _ in range(4):
                got = load.measure(testbed, clients, rate, Phases())
                points[str(share)] = {"rate": rate, "reasons": got.window.invalid, "figures": got.figures,
                                      "own_us": got.own_us,
                                      "checks": [check.name for check in got.window.certificate.checks]}
                if not got.window.invalid:
                    break
    return {"knee": asdict(found), "points": points}


def test_below_the_knee_windows_are_valid() -> None:
    found = call(HERE, "windows")
    print(json.dumps(found["points"], indent=1), found["knee"]["rate"], found["knee"]["failed"], found["knee"]["why"])
    if found["knee"]["rate"] is None:
        pytest.skip(f"the machine was too busy for any rate to hold: {found['knee']['why']}")
    assert 1 <= len(found["knee"]["steps"]) <= 14
    valid = [one for one in found["points"].values() if not one["reasons"]]
    if not valid:
        pytest.skip(f"the machine was too busy for a valid window: {found['points']}")
    for one in valid:
        figures = one["figures"]
        assert figures["app_p50_us"] <= figures["app_p90_us"] <= figures["app_p99_us"] <= figures["app_p99_9_us"]
        assert 0 < figures["ttfb_p50_us"] < figures["ttlb_p50_us"] < figures["app_p50_us"]
        assert figures["transactions_per_s"] == pytest.approx(one["rate"], rel=0.05)
        assert 0 < one["own_us"] < figures["app_p50_us"]
        assert {"wire: matched", "wire: p50", "wire: p99", "conntrack", "clock"} <= set(one["checks"])
    for one in found["points"].values():
        if one["reasons"]:
            assert set(one["figures"].values()) == {None}
