"""The built-in service on real packets: what it says of each attempt, what it serves, what it measures."""

from __future__ import annotations

import errno
import http.client
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.isolated import call, needs_root

pytestmark = [needs_root, pytest.mark.e2e]
HERE = "tests.e2e.test_labhost"
OTHER = {4: "10.0.0.2", 6: "fd00::2"}
OWN = {4: "10.0.0.1", 6: "fd00::1"}


def _pair(net: Any, *extra: str) -> tuple[Any, Any]:
    """A client on h1, a server on h2 listening on 80/tcp and 53/udp, observers on both."""
    client, server = net.serve("h1", "client"), net.serve("h2", "server", *extra)
    net.up(client, server, *(net.serve(h, "(observer)", "--observe-icmp", uid=0) for h in net.names))
    net.fleet.request(server, "listen", "tcp", "80")
    net.fleet.request(server, "listen", "udp", "53")
    return client, server


def _every(client: Any, addresses: dict[int, str] = OTHER, tcp: int = 80, udp: int = 53) -> list[Any]:
    from lab.hosts.control import Attempt

    return [Attempt(client, proto, family, addresses[family], port)
            for proto, port in (("tcp", tcp), ("udp", udp), ("icmp", 0)) for family in (4, 6)]


def _said(net: Any, attempts: list[Any], timeout_s: float = 0.5) -> dict[str, tuple[str, int, bool]]:
    return {f"{g.attempt.proto}{g.attempt.family}": (str(g.outcome), g.errno, g.arrived)
            for g in net.fleet.probe(attempts, timeout_s)}


def _table(hook: str, rules: str) -> str:
    return f"table inet t {{ chain c {{ type filter hook {hook} priority 0;\n{rules}\n}}\n}}\n"


def outcomes(_me: Any, _argument: Any) -> dict[str, Any]:
    """Each way a network or a host can treat an attempt, in both families."""
    from tests.e2e.labhost_net import net

    found: dict[str, Any] = {}
    with net() as n:
        client, _server = _pair(n)

        def under(name: str, host: str, rules: str, attempts: list[Any] | None = None) -> None:
            n.nft(host, rules)
            found[name] = _said(n, attempts or _every(client))
            n.nft(host, "delete table inet t")

        found["open"] = _said(n, _every(client))
        found["nobody listens"] = _said(n, _every(client, tcp=81, udp=54))
        under("dropped on the way in", "h2", _table("input", "meta l4proto { tcp, udp, icmp } drop\n"
                                                    "icmpv6 type echo-request drop"))
        under("answers dropped", "h2", _table("output", "tcp flags & (psh) == psh drop\nmeta l4proto udp drop\n"
                                              "icmp type echo-reply drop\nicmpv6 type echo-reply drop"))
        under("rejected by the target", "h2", _table("input", "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
                                                     " accept\nreject with icmpx admin-prohibited"))
        under("dropped on the way out", "h1", _table("output", "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
                                                      " accept\ndrop"))
        n.ok("h1", "ip", "route", "add", "unreachable", "10.9.0.0/24")
        n.ok("h1", "ip", "route", "add", "unreachable", "fd09::/64")
        found["no route"] = _said(n, _every(client, {4: "10.9.0.1", 6: "fd09::1"}))
        n.ok("h1", "ip", "route", "replace", "prohibit", "10.9.0.0/24")
        n.ok("h1", "ip", "route", "replace", "prohibit", "fd09::/64")
        found["prohibited"] = _said(n, _every(client, {4: "10.9.0.1", 6: "fd09::1"}))
        found["own address"] = _said(n, _every(_server))
        found["not an address"] = _said(n, _every(client, {4: "fd00::2", 6: "10.0.0.2"}))
    return found


def test_every_treatment_is_told_as_what_it_is() -> None:
    found = call(HERE, "outcomes")
    expect = {
        "open": {"*": ["OPEN", 0, True]},
        "own address": {"*": ["OPEN", 0, True]},
        "nobody listens": {"tcp": ["REFUSED", errno.ECONNREFUSED, False], "udp": ["REFUSED", errno.ECONNREFUSED, False],
                           "icmp": ["OPEN", 0, True]},
        "dropped on the way in": {"*": ["TIMED_OUT", 0, False]},
        # The datagram is there although its answer is not: this is what `arrived` is for.
        "answers dropped": {"tcp": ["BROKEN", errno.ETIMEDOUT, True], "*": ["TIMED_OUT", 0, True]},
        "rejected by the target": {"*4": ["UNREACHABLE", errno.EHOSTUNREACH, False],
                                   "*6": ["UNREACHABLE", errno.EACCES, False]},
        # TCP sends its SYN again and again, whatever the output hook says; ICMPv6 ping sockets hide what it said.
        "dropped on the way out": {"tcp": ["TIMED_OUT", 0, False], "icmp6": ["TIMED_OUT", 0, False],
                                   "*": ["DENIED_LOCALLY", errno.EPERM, False]},
        "no route": {"*": ["UNREACHABLE", errno.EHOSTUNREACH, False]},
        "prohibited": {"*": ["DENIED_LOCALLY", errno.EACCES, False]},
        "not an address": {"*": ["BROKEN", errno.EINVAL, False]},
    }
    for name, rows in expect.items():
        for flow, said in found[name].items():
            wanted = rows.get(flow) or rows.get(flow[:-1]) or rows.get(f"*{flow[-1]}") or rows["*"]
            assert said == wanted, f"{name}: {flow}"


def second_address(_me: Any, _argument: Any) -> dict[str, Any]:
    """A host with two addresses answers from the one that was asked."""
    from tests.e2e.labhost_net import net

    with net() as n:
        client, _server = _pair(n)
        n.ok("h2", "ip", "addr", "add", "10.0.7.7/16", "dev", "eth0")
        n.ok("h2", "ip", "addr", "add", "fd00::77/64", "dev", "eth0", "nodad")
        for _ in range(5):  # on a machine under load the new addresses take their time
            said = _said(n, _every(client, {4: "10.0.7.7", 6: "fd00::77"}))
            if all(outcome == "OPEN" for outcome, *_ in said.values()):
                break
        return said


def test_answers_come_from_the_address_asked() -> None:
    assert set(map(tuple, call(HERE, "second_address").values())) == {("OPEN", 0, True)}


def exploits(_me: Any, _argument: Any) -> list[Any]:
    """The exploit against a vulnerable service, an honest one, and nobody."""
    from tests.e2e.labhost_net import net

    with net() as n:
        client, _server = _pair(n, "--vulnerable")
        n.fleet.request(client, "listen", "tcp", "80")
        targets = ((4, OTHER[4], 80), (6, OTHER[6], 80), (4, OWN[4], 80), (4, OTHER[4], 81))
        tries = [n.fleet.exploit(client, *target, nonce=2**63 + 5, timeout_s=0.5) for target in targets]
        return [[str(t.attempted.outcome), t.attempted.arrived, t.owned, t.host, t.process, t.user] for t in tries]


def test_only_the_vulnerable_are_taken() -> None:
    taken = ["OPEN", True, True, "h2", "server", "user"]
    assert call(HERE, "exploits") == [taken, taken, ["BROKEN", True, False, "", "", ""],
                                      ["REFUSED", False, False, "", "", ""]]


def web(_me: Any, _argument: Any) -> dict[str, Any]:
    """A chain of three over HTTP, asked by an ordinary client in the first one's host."""
    import socket

    from lab.backends.mininet_net import netns
    from tests.e2e.labhost_net import net

    with net(3) as n:
        front, api, store = n.serve("h1", "front"), n.serve("h2", "api"), n.serve("h3", "store")
        n.up(front, api, store)
        n.fleet.request_all(dict.fromkeys((front, api, store), ("listen", "tcp", "8080")), 5)
        n.fleet.request(front, "calls", "4,10.0.0.2,8080;6,fd00::2,8080")
        n.fleet.request(api, "calls", "4,10.0.0.3,8080")
        found: dict[str, Any] = {}

        def ask(host: str, address: str, *requests: tuple[Any, ...]) -> list[Any]:
            with netns(n.pids[host]):
                raw = socket.create_connection((address, 8080), 5)
            connection = http.client.HTTPConnection(address)
            connection.sock = raw
            answers = []
            for method, path, body in requests:
                connection.request(method, path, body)
                response = connection.getresponse()
                answers.append([response.status, len(response.read()), connection.sock is raw])
            connection.close()
            return answers

        found["kept alive"] = ask("h1", OWN[4], *[("GET", "/", None)] * 3, ("POST", "/", b"x" * 200_000))
        found["bytes"] = ask("h3", "10.0.0.3", ("GET", "/bytes/10000000", None), ("GET", "/bytes/0", None))
        found["too many"] = ask("h3", "10.0.0.3", ("GET", "/bytes/10000001", None))
        n.fleet.request(store, "unlisten", "tcp", "8080")
        found["broken chain"] = ask("h1", OWN[4], ("GET", "/", None))
        n.fleet.request(api, "calls", "")
        found["chain cut short"] = ask("h1", OWN[4], ("GET", "/", None))
        n.nft("h2", _table("input", "tcp dport 8080 drop"))
        began = time.monotonic()
        found["silent"] = ask("h1", OWN[4], ("GET", "/", None))
        found["silent_s"] = time.monotonic() - began
        n.fleet.request(front, "calls", "4,10.0.0.1,9")
        found["refused"] = ask("h1", OWN[4], ("GET", "/", None))
        n.fleet.request_all(dict.fromkeys((front, api, store), ("sync",)), 5)
        found["events"] = [(actor.process, *event) for actor, event in n.fleet.drain_events()]
        return found


def test_http_is_served_and_calls_are_made_first() -> None:
    found = call(HERE, "web")
    assert found["kept alive"] == [[200, 3, True]] * 4
    assert found["bytes"] == [[200, 10_000_000, True], [200, 0, True]]
    assert found["too many"][0][0] == 400
    assert found["broken chain"] == [[502, 0, True]]
    assert found["chain cut short"] == [[200, 3, True]]
    assert found["silent"] == [[502, 0, True]]
    assert 1.9 < found["silent_s"] < 60  # it waits 2 s; a busy machine adds to that
    assert found["refused"] == [[502, 0, True]]
    calls = [e for e in found["events"] if e[1] == "c"]
    front = [e for e in calls if e[0] == "front"]
    # OPEN is said of the call itself: the sixth's answer was a 502, which is an answer.
    assert [e[2] for e in front] == ["OPEN"] * 6 + ["TIMED_OUT", "REFUSED"]
    assert [e[7] for e in front[:4]] == ["10.0.0.2", "fd00::2"] * 2
    assert [e[2] for e in calls if e[0] == "api"] == ["OPEN"] * 4 + ["REFUSED"]
    _who, _c, _outcome, _errno, family, laddr, sport, _daddr, dport, start, connect, end, size = front[0]
    assert (family, laddr, dport) == ("4", OWN[4], "8080")
    assert int(start) < int(connect) < int(end)
    assert int(sport) > 0
    assert int(size) > 100
    served = [e for e in found["events"] if e[:2] == ["front", "h"]]
    assert [e[8] for e in served] == ["4", "1", "1", "1", "1"]
    assert int(served[0][9]) > 200_000
    # Both ends of a call name the same connection, which is how it is joined.
    assert {(e[5], e[6]) for e in calls if e[0] == "api"} >= {(e[3], e[4]) for e in found["events"]
                                                              if e[:2] == ["store", "h"] and e[3] == "10.0.0.2"}


def loops(_me: Any, _argument: Any) -> dict[str, Any]:
    """Both loops, both families; while they run the service serves; over a dead path they still stop."""
    import threading

    from lab.hosts.control import Attempt
    from tests.e2e.labhost_net import net

    with net() as n:
        client, server = _pair(n)
        n.fleet.request(client, "listen", "tcp", "80")
        n.fleet.request(server, "pin", str(os.cpu_count() - 1))
        found: dict[str, Any] = {}
        for verb in (n.fleet.crr, n.fleet.rr):
            for family in (4, 6):
                got = verb(client, family, OTHER[family], 80, 0.3)
                found[f"{verb.__name__}{family}"] = [got.n, got.errors, got.elapsed_s, got.cpu_s, len(got.latencies_us),
                                                     float(got.latencies_us.mean())]
        mine: list[Any] = []
        thread = threading.Thread(target=lambda: mine.append(n.fleet.crr(client, 4, OWN[4], 80, 0.5)))
        thread.start()
        # Its own listener, while it measures against itself.
        found["served"] = [str(g.outcome) for g in n.fleet.probe([Attempt(server, "tcp", 4, OWN[4], 80)] * 50, 1.0, 5)]
        thread.join()
        found["to itself"] = [mine[0].n, mine[0].errors]
        n.nft("h2", _table("input", "tcp dport 80 drop"))
        for verb in (n.fleet.crr, n.fleet.rr):
            began = time.monotonic()
            got = verb(client, 4, OTHER[4], 80, 0.4)
            found[f"dead {verb.__name__}"] = [got.n, got.errors, time.monotonic() - began]
        found["arrivals reported"] = len(n.fleet.drain_events())
        found["cpu"] = int(n.fleet.request(server, "cpu")[0])
        return found


def test_loops_measure_and_stop() -> None:
    found = call(HERE, "loops")
    for name in ("crr4", "crr6", "rr4", "rr6"):
        n, errors, elapsed, cpu, samples, mean_us = found[name]
        assert errors == 0
        assert n == samples > 50
        assert 0.3 <= elapsed < 30  # asked for 0.3
        assert 0 < cpu < elapsed
        assert mean_us * n / 1e6 == pytest.approx(elapsed, rel=0.3)
    assert set(found["served"]) == {"OPEN"}
    assert found["to itself"][0] > 20
    assert found["to itself"][1] == 0
    for name in ("dead crr", "dead rr"):
        n, errors, took = found[name]
        assert n == 0
        assert errors >= 1
        assert took < 30  # asked for 0.4; the kernel alone tries for minutes
    assert found["arrivals reported"] == 0
    assert found["cpu"] > 0


def failures(_me: Any, _argument: Any) -> dict[str, Any]:
    """Death in the middle, too few descriptors, ports taken, many ports."""
    import threading

    from lab.hosts import init_client
    from lab.hosts.control import Attempt, ServiceError
    from tests.e2e.labhost_net import net

    def limit(n: Any, pid: str, files: str) -> None:
        argv = ["prlimit", "--pid", pid, f"--nofile={files}:"]  # as its own user: root may lack CAP_SYS_RESOURCE
        assert init_client.run(n.socket("h2"), argv, uid=20001).status == 0

    found: dict[str, Any] = {}
    with net() as n:
        client, server = _pair(n)
        ports = ",".join(str(p) for p in range(20000, 20400))
        found["listened"] = [n.fleet.request(server, "listen", proto, ports) for proto in ("tcp", "udp")]
        got = n.fleet.probe([Attempt(client, proto, family, OTHER[family], port) for port in range(20000, 20400)
                             for proto in ("tcp", "udp") for family in (4, 6)], 1.0)
        found["all ports"] = sorted({(str(g.outcome), g.arrived) for g in got})
        found["unlistened"] = n.fleet.request(server, "unlisten", "tcp", ports)
        try:
            n.fleet.request(server, "listen", "udp", "7,20000")
        except ServiceError as err:
            found["taken"] = str(err)
        try:
            n.fleet.request(server, "probe", "what")
        except ServiceError as err:
            found["nonsense"] = str(err)

        pid = str(n.handles[server].pid)
        limit(n, pid, "8")
        n.fleet.probe([Attempt(client, "tcp", 4, OTHER[4], 80)] * 20, 0.5)
        n.fleet.request(server, "sync")
        found["troubles"] = sorted({event for _actor, event in n.fleet.troubles})
        got = n.fleet.probe([Attempt(server, "udp", 4, OWN[4], 9)], 0.5)
        found["no descriptors"] = [str(got[0].outcome), got[0].errno]
        limit(n, pid, "1000")
        found["recovered"] = _said(n, _every(client))["tcp4"]

        n.nft("h2", _table("input", "udp dport 53 drop"))
        threading.Timer(0.3, lambda: n.ok("h1", "kill", "-9", str(n.handles[client].pid))).start()
        began = time.monotonic()
        got = n.fleet.probe([Attempt(client, "udp", 4, OTHER[4], 53)] * 500, 5.0)
        found["killed"] = [sorted({(str(g.outcome), g.errno) for g in got}), time.monotonic() - began]
        found["status"] = n.handles[client].wait(60)
    return found


def test_failures_are_told_and_survived() -> None:
    found = call(HERE, "failures")
    assert found["listened"] == [["400"]] * 2
    assert found["all ports"] == [["OPEN", True]]
    assert found["unlistened"] == ["800"]
    assert found["taken"].endswith(f"listen: 20000 {errno.EADDRINUSE}")
    assert found["nonsense"].endswith("not understood: probe")
    assert ["e", "accept", str(errno.EMFILE)] in found["troubles"]
    assert found["no descriptors"] == ["BROKEN", errno.EMFILE]
    assert found["recovered"] == ["OPEN", 0, True]
    assert found["killed"][0] == [["BROKEN", errno.ESRCH]]
    assert 0.2 < found["killed"][1] < 1.5
    assert found["status"] == 137


def backlog(_me: Any, _argument: Any) -> dict[str, Any]:
    """A controller that commands and does not read, until more than 64 MiB wait; then it reads."""
    import socket
    import subprocess

    from lab.hosts.build import build
    from tests.e2e.labhost_net import BUILD_DIR

    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/run/labctl/c.sock")
    listener.listen()
    service = subprocess.Popen([str(build(BUILD_DIR)), "serve", "--control", "/run/labctl/c.sock", "--host", "h",
                                "--process", "p", "--user", "u", "--uid", "20001"])
    control, _ = listener.accept()
    record = b"LCP1" + bytes(28)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.settimeout(5)

    def arrive() -> None:
        datagram.sendto(record, ("127.0.0.1", 5353))
        assert datagram.recv(100) == record

    control.sendall(b"1\tlisten\tudp\t5353\n")
    with control.makefile("rb") as stream:
        while stream.readline() != b"=\t1\tok\t1\n":
            pass
    control.sendall(b"2\tnonsense\n" * 2_200_000)
    # That has been answered, in memory, once the next datagram is.
    for _ in range(3):
        arrive()
    resident = int(Path(f"/proc/{service.pid}/statm").read_text().split()[1]) * 4096
    control.sendall(b"3\tsync\n")
    seen = {"a": 0, "=\t2": 0, "lost": "", "sync": False}
    with control.makefile("rb") as stream:
        for line in stream:
            text = line.decode()
            seen["a"] += text.startswith("a\t")
            seen["=\t2"] += text.startswith("=\t2\terr")
            seen["sync"] = seen["sync"] or text == "=\t3\tok\n"
            if text.startswith("lost"):
                seen["lost"] = text
                break
    arrive()
    control.close()
    status = service.wait(60)
    return {**seen, "resident": resident, "status": status}


def test_events_are_dropped_and_counted_when_nobody_reads() -> None:
    found = call(HERE, "backlog")
    assert found["a"] == 0
    assert found["lost"] == "lost\t3\n"
    assert found["=\t2"] == 2_200_000  # answers are never dropped
    assert found["sync"]
    assert found["resident"] > 64 << 20
    assert found["status"] == 0
