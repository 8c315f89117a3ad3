"""Ways around a host agent that have to do with what is sent, with changes and with records, tried on packets."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

from tests.e2e.kernel_lab import CGROUP, OUT, TRACING, Bench, Rules, exe_id
from tests.e2e.kernel_policies import A_ASKS, DNS, HTTP, everybody_asks, usual

# --- datagrams ----------------------------------------------------------------------------------


def connected_udp(w: Bench) -> Any:
    """A connected UDP socket runs no hook as it sends: a new policy stops it all the same."""
    usual(w)
    code = f"""
s = socket.socket(socket.AF_INET, UDP); s.settimeout(WAIT_S); s.connect(({w.b.v4!r}, 80)); exchange(s)
say("ready"); sys.stdin.readline(); say(outcome(exchange, s))
"""
    with w.b.running("server", "serve(80)"), w.a.running("asker", code) as process:
        w.kernel.apply(w.a, w.rules(w.a), slot=1)
        assert process.stdin and process.stdout
        process.stdin.write(b"go\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


def udp_arrives(w: Bench) -> Any:
    """What the receiver's host forbids never reaches the receiver, in either family, whole or in fragments."""
    everybody_asks(w)
    w.kernel.apply(w.b, w.rules(w.b))
    asks = ";".join(f"outcome(udp, {w.b.addresses(v6)!r}, 80, {connect}, b'x' * {size})"
                    for v6 in (False, True) for connect in (False, True) for size in (5, 4000))
    with w.b.running("server", "serve(80)") as server:
        w.a.say("other", f"WAIT_S = 0.05;{asks};say('asked')")
        out, _ = server.communicate(timeout=90)
    return out.decode().splitlines()


def fragments_pass(w: Bench) -> Any:
    """What is allowed passes in fragments too, both ways."""
    usual(w)
    with w.b.running("server", "serve(80)"):
        return [w.a.say("asker", f"say(outcome(udp, {w.b.addresses(v6)!r}, 80, True, b'x' * 4000))") for v6 in (0, 1)]


def ports_next_user(w: Bench) -> Any:
    """Who binds the port that another flow used does not inherit its verdict."""
    usual(w)
    with w.b.running("server", "serve(80)"):
        return [w.a.say(exe, f"say(outcome(udp, {w.b.v4!r}, 80, False, bind=('0.0.0.0', 5555)))")
                for exe in ("asker", "other")]


def icmp_out(w: Bench) -> Any:
    """Ping sockets and raw ones: by process and peer, both families."""
    usual(w)
    asked = [(exe, v6, raw) for exe in ("asker", "other") for v6 in (False, True) for raw in (False, True)]
    return [w.a.say(exe, f"say(outcome(ping, {w.b.addresses(v6)!r}, {raw}))") for exe, v6, raw in asked]


def icmp_in(w: Bench) -> Any:
    """The kernel answers echo requests itself, in no control group: they are judged at the interface."""
    everybody_asks(w)
    w.kernel.apply(w.b, w.rules(w.b))
    if "ingress" in w.kernel.links:
        w.kernel.attach_interfaces(w.b)
    return [w.a.say("other", f"say(outcome(ping, {w.b.addresses(v6)!r}))") for v6 in (False, True)]


RAW_UDP = """
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
say(outcome(s.sendto, struct.pack("!HHHH", 5556, 80, 13, 0) + b"hello", (%r, 0)))
"""


def raw_udp(w: Bench) -> Any:
    """A raw socket that sends UDP is judged by what it sends."""
    usual(w)
    with w.b.running("server", "serve(80)"):
        return w.a.say("other", RAW_UDP % w.b.v4)


def raw_refused(w: Bench) -> Any:
    """Raw sockets can be refused to whoever the policy does not let open one."""
    w.kernel.apply(w.a, w.rules(w.a, flags=8, verdicts={(1, 20, 0, 5 | OUT): (9, True, 0)}))
    code = "say(outcome(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1))"
    return [w.a.say(exe, code) for exe in ("asker", "other")]


def packet_socket(w: Bench) -> Any:
    """A packet socket goes around every hook of the control group: its frames stop at the interface, where refused."""
    w.kernel.apply(w.a, w.rules(w.a, flags=8))
    w.kernel.apply(w.b, w.rules(w.b, default=True))
    if "ingress" in w.kernel.links:
        w.kernel.attach_interfaces(w.a)
    code = """
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0x800))
ip = bytes.fromhex("4500002100010000401100000a0700010a070002")
ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
say(outcome(s.send, b"\\xff" * 6 + b"\\2" * 6 + b"\\x08\\0" + ip + struct.pack("!HHHH", 5557, 80, 13, 0) + b"frame"))
"""
    with w.b.running("server", "serve(80)") as server:
        w.a.say("other", code)
        time.sleep(0.05)  # nothing tells that a frame was dropped
        out, _ = server.communicate(timeout=90)
    return out.decode().splitlines()


# --- both ends ----------------------------------------------------------------------------------


def same_host(w: Bench) -> Any:
    """Between processes of one host both ends are known: here all may but `other`."""
    w.kernel.apply(w.b, w.rules(w.b, default=True, verdicts={
        (12, 22, 21, HTTP | OUT): (1, False, 0), (12, 22, 21, DNS | OUT): (2, False, 0)}))
    with w.b.running("server", "serve(80)"):
        return [w.b.say(exe, f"say([outcome(f, a, 80) for f in (tcp, udp) for a in {(w.b.v4, w.b.v6)!r}])")
                for exe in ("asker", "other")]


def claimed(w: Bench) -> Any:
    """Two rules cross on one port of one pair of hosts: only the SYN tells the target who asks."""
    w.kernel.apply(w.a, w.rules(w.a, flags=16, verdicts={
        (11, owner, 0, HTTP | OUT): (1, True, 2) for owner in (20, 22)}))
    w.kernel.apply(w.b, w.rules(w.b, flags=32, verdicts={
        (11, 21, 0, HTTP): (1, True, 0), (11, 21, 20, HTTP): (1, True, 0), (11, 21, 22, HTTP): (0, False, 0)}))
    w.kernel.attach("claims")
    with w.b.running("server", "serve(80)"):
        said = [w.a.say(exe, f"say(outcome(tcp, {w.b.addresses(v6)!r}, 80))")
                for exe in ("asker", "other") for v6 in (0, 1)]
    peers = {flow.peer_exe_id for flow in w.kernel.flows(w.b) if flow.verdict == "allow"}
    return [*said, peers == {exe_id("asker")}]


# --- changes ------------------------------------------------------------------------------------


def idle_cut(w: Bench) -> Any:
    """A connection that a new policy forbids is reset, though nothing is sent on it."""
    usual(w)
    code = f"s = connected({w.b.v4!r}, 80); exchange(s); s.settimeout(3); say('ready'); say(outcome(s.recv, 1))"
    with w.b.running("server", "serve(80)"), w.a.running("asker", code) as process:
        w.kernel.apply(w.b, w.rules(w.b), slot=1)
        cut = len(w.kernel.revoke(w.b))
        assert process.stdout
        return [cut, json.loads(process.stdout.readline())]


def active_cut(w: Bench) -> Any:
    """Without anybody walking the connections, the next packet of one that a new policy forbids does not pass."""
    usual(w)
    code = f"s = connected({w.b.v4!r}, 80); exchange(s); say('ready'); sys.stdin.readline(); say(outcome(exchange, s))"
    with w.b.running("server", "serve(80)"), w.a.running("asker", code) as process:
        w.kernel.apply(w.b, w.rules(w.b), slot=1)
        assert process.stdin and process.stdout
        process.stdin.write(b"go\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


def adopted(w: Bench) -> Any:
    """Sockets older than the agent: named, judged, and cut where a policy says so."""
    again = "sys.stdin.readline(); say(outcome(exchange, s))"
    code = f"s = connected({w.b.v4!r}, 80); exchange(s); say('ready'); {again}; {again}"
    with w.b.running("server", "serve(80)"), w.a.running("asker", code) as process:
        for hook in CGROUP + TRACING:
            w.kernel.attach(hook)
        w.kernel.adopt()
        usual(w)
        assert process.stdin and process.stdout

        def ask() -> Any:
            assert process.stdin and process.stdout
            process.stdin.write(b"go\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        kept = ask()
        fresh = w.a.say("asker", f"say(outcome(tcp, {w.b.v4!r}, 80))")
        w.kernel.apply(w.b, w.rules(w.b), slot=1)
        cut = w.kernel.revoke(w.b)
        return [kept, fresh, [(flow.exe_id == exe_id("server"), flow.dir) for flow in cut], ask() != "OPEN"]


def silence(w: Bench) -> Any:
    """An agent that misses its deadline: open or closed, as configured; while it keeps it, its policy."""
    said = []
    with w.b.running("server", "serve(80)"):
        for how, deadline, exe in ((2, 0, "asker"), (2, 1 << 62, "asker"), (1, 0, "other"), (1, 1 << 62, "other")):
            w.kernel.maps["beats"].put(struct.pack("<I", 0), struct.pack("<Q", deadline or 1))
            w.kernel.apply(w.a, w.rules(w.a, verdicts=A_ASKS, on_silence=how))
            said.append(w.a.say(exe, f"say(outcome(tcp, {w.b.v4!r}, 80))"))
    return said


# --- modes and telemetry ------------------------------------------------------------------------


def modes(w: Bench) -> Any:
    """Monitor records what it would deny and lets it pass; single services against the host's mode."""
    said = []
    monitors, one_enforced = {("tcp", 80): (HTTP, 1)}, {("tcp", 80): (HTTP, 2)}
    with w.b.running("server", "serve(80)"):
        for changes in ({"mode": 1}, {"mode": 2, "services": monitors}, {"mode": 1, "services": one_enforced},
                        {"mode": 0}):
            w.kernel.apply(w.a, w.rules(w.a, **changes))
            said.append(w.a.say("other", f"say(outcome(tcp, {w.b.v4!r}, 80))"))
    return [*said, [flow.verdict for flow in w.kernel.flows(w.a)]]


def nothing_silent(w: Bench) -> Any:
    """Records that find no room are counted, and their flows kept in the totals."""
    usual(w)
    w.kernel.apply(w.b, Rules(mode=0))
    code = f"say([outcome(tcp, {w.b.v4!r}, 80) for _ in range(2500)].count('OPEN'))"
    with w.b.running("server", "serve(80)"):
        made = w.a.say("asker", code)
    told = len(w.kernel.flows(w.a))
    lost = w.kernel.counters(w.a)["records_lost"]
    kept = sum(struct.unpack_from("<Q", value)[0] for _, value in w.kernel.maps["totals"].items())
    return [made, told + lost == made, lost == kept, lost > 0]


def records_tell(w: Bench) -> Any:
    """One record at each end: who, whom, which rule, bytes to the last one."""
    usual(w)
    with w.b.running("server", "serve(80)"):
        w.a.say("asker", f"say(outcome(tcp, {w.b.v6!r}, 80))", uid=20001)
        time.sleep(0.05)
    (a,), (b,) = ([f for f in w.kernel.flows(host) if f.proto == 6] for host in (w.a, w.b))
    return [a.exe_id == exe_id("asker"), a.uid, a.dir, a.rule, a.sent, a.received, a.local == w.a.v6, a.remote_port,
            b.exe_id == exe_id("server"), b.dir, b.rule, b.sent, b.received, b.local_port,
            b.remote_port == a.local_port]
