"""The generator on loopback: exact pacing, microseconds not rounded away, stalls that show, errors that name."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.analysis.stats import percentile
from bench.instruments import traffic
from bench.instruments.traffic import Target, Traffic, TrafficError, arrivals, base_url, targets
from lab.model import Flow, Host, Process, Segment, Topology

SCENARIOS = Path(__file__).parents[2] / "scenarios"
BODY = b"hello"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + BODY


class Server:
    """A tiny HTTP server on loopback, both families. `before(n)` runs before the n-th answer."""

    def __init__(self, before: Callable[[int], None], answer: bytes) -> None:
        self.before, self.answer, self.requests, self.connections = before, answer, 0, 0
        self.lock = threading.Lock()
        self.listeners = [socket.create_server(("127.0.0.1", 0), backlog=512)]
        self.port: int = self.listeners[0].getsockname()[1]
        self.listeners.append(socket.create_server(("::1", self.port), family=socket.AF_INET6, backlog=512))
        for listener in self.listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while client.recv(65536):
                    with self.lock:
                        self.requests += 1
                        number = self.requests
                    self.before(number)
                    client.sendall(self.answer)
            except OSError:
                return  # the client closes with a reset

    @property
    def urls(self) -> list[Target]:
        return [Target(base_url("127.0.0.1", self.port)), Target(base_url("::1", self.port))]


@contextmanager
def serving(before: Callable[[int], None] = lambda _: None, answer: bytes = ANSWER) -> Iterator[Server]:
    server = Server(before, answer)
    try:
        yield server
    finally:
        for listener in server.listeners:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept(), which would serve one more
            listener.close()


class Local:
    """A process of this machine, as a testbed would give it."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.popen = subprocess.Popen([*argv], env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL)
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.stdin, self.stdout, self.pid = self.popen.stdin, self.popen.stdout, self.popen.pid

    def wait(self, timeout: float | None = None) -> int:
        return self.popen.wait(timeout)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


TOPOLOGY = Topology(
    segments={"lo": Segment("lo", "127.0.0.0/8", "::1/128", "127.0.0.1", "::1")},
    hosts={"one": Host("one", "lo", "127.0.0.1", "::1", "02:00:00:00:00:01")},
    processes={"browser": Process("browser", str(traffic.interpreter()), "www", 20001)}, users={"www": 20001})


class Spawner:
    def __init__(self) -> None:
        self.started: list[Local] = []

    def __call__(self, _host: str, argv: Sequence[str], env: Mapping[str, str]) -> Local:
        self.started.append(Local(argv, env))
        return self.started[-1]


def shoppers(server: Server, clients: Sequence[str] = ("one",), spawn: Spawner | None = None,
             locustfile: Path = SCENARIOS / "shop.py") -> Traffic:
    return Traffic(spawn or Spawner(), TOPOLOGY, process="browser", locustfile=str(locustfile),
                   per_client=dict.fromkeys(clients, server.urls))


def test_a_fast_service_is_not_zero_and_every_connection_is_told() -> None:
    """0.2 ms is where locust's own statistics show 0; two windows, since the workers live on."""
    def busy(_: int) -> None:
        until = time.perf_counter() + 0.0002
        while time.perf_counter() < until:
            pass

    with serving(busy) as server, shoppers(server) as clients:
        first = clients.run(200, 1.0, discard_s=0.3)
        second = clients.run(100, 0.5, discard_s=0.0)
    fast = percentile(first.latencies_us, 10)  # not the median: a shared machine may be halted in half of them
    assert fast is not None and 200 < fast < 20_000 and min(first.latencies_us) >= 200
    assert len(set(first.latencies_us)) > 20  # not whole milliseconds
    assert min(first.from_intended_us) > 2 * 200  # two requests and a connection
    assert (first.visits, first.finished, len(first.latencies_us), len(first.from_intended_us)) == (100, 100, 200, 100)
    assert (second.visits, len(second.latencies_us)) == (25, 50)
    assert first.errors == {} and first.cpu["one"] > 0
    truths = [*first.truths, *second.truths]
    assert len(truths) == server.connections == 130 + 25
    assert server.requests == 2 * len(truths)
    assert {t.source_address for t in truths} == {"127.0.0.1", "::1"}  # the families take turns
    one = truths[0]
    assert (one.kind, one.source, one.target, one.process, one.user) == ("traffic", "one", "one", "browser", "www")
    assert one.outcome == "OPEN" and one.arrived and one.dport == server.port and one.sport > 0
    assert one.start < one.end and one.bytes > 2 * len(ANSWER)


def test_a_stall_of_the_server_shows_from_the_intended_time() -> None:
    """Half a second of silence holds up every visit that was due in it, not only those that were under way."""
    stalled = threading.Event()
    free = threading.Event()
    free.set()

    def stall(number: int) -> None:
        if number == 100 and not stalled.is_set():
            stalled.set()
            free.clear()
            threading.Timer(0.5, free.set).start()
        free.wait()

    with serving(stall) as server, Traffic(
            Spawner(), TOPOLOGY, process="browser", locustfile=str(SCENARIOS / "shop.py"),
            per_client={"one": server.urls}, users=4) as clients:
        got = clients.run(200, 2.0, discard_s=0.0)
    assert got.visits == got.finished == 200
    p99, p80 = percentile(got.from_intended_us, 99), percentile(got.from_intended_us, 80)
    assert p99 is not None and p80 is not None
    assert p99 > 400_000
    assert p80 > 50_000  # a quarter of the visits was due while it stalled
    # what a closed loop of four users would have told of: some four slow requests, not some fifty slow visits
    assert sum(got.latencies_us > 400_000) <= 16 and sum(got.from_intended_us > 150_000) >= 30
    assert got.lag_p99_us["one"] < 450_000  # the server's fault, not the generator's


def test_two_clients_share_the_rate() -> None:
    with serving() as server, shoppers(server, ("one", "two")) as clients:
        got = clients.run(200, 0.5, discard_s=0.1)
    assert got.visits == 50 and set(got.cpu) == {"one", "two"}
    assert {t.source for t in got.truths} == {"one", "two"} and len(got.truths) == 60


def test_replay_asks_once_a_connection_by_weight() -> None:
    with serving() as often, serving() as seldom:
        per_client = {"one": [Target(often.urls[0].url, 9), Target(seldom.urls[1].url, 1)]}
        with Traffic(Spawner(), TOPOLOGY, process="browser", locustfile=str(SCENARIOS / "replay.py"),
                     per_client=per_client, kind="replay") as clients:
            got = clients.run(200, 1.0, discard_s=0.0)
    assert got.visits == 200 and often.requests + seldom.requests == 200
    assert often.requests > 150 and seldom.requests > 3
    assert {t.kind for t in got.truths} == {"replay"}


def test_errors_are_counted_by_kind_and_their_connections_told() -> None:
    with serving() as server:
        pass  # closed: nothing listens any more
    with shoppers(server) as clients:
        refused = clients.run(100, 0.4, discard_s=0.0)
    assert sum(refused.errors.values()) == 40 and all("ECONNREFUSED" in kind for kind in refused.errors)
    assert len(refused.from_intended_us) == 0
    assert {(t.outcome, t.arrived) for t in refused.truths} == {("REFUSED", False)}
    with serving(answer=ANSWER.replace(b"200 OK", b"502 Bad Gateway")) as server, shoppers(server) as clients:
        failing = clients.run(100, 0.4, discard_s=0.0)
    assert sum(failing.errors.values()) == 40 and all("502" in kind for kind in failing.errors)
    assert {t.outcome for t in failing.truths} == {"OPEN"}


def test_an_overloaded_generator_says_so(tmp_path: Path) -> None:
    hungry = tmp_path / "hungry.py"
    hungry.write_text("import time\nfrom locust import User, task\n\n\nclass Hungry(User):\n    @task\n"
                      "    def visit(self):\n        until = time.process_time() + 0.008\n"
                      "        while time.process_time() < until:\n            pass\n")
    with serving() as server, shoppers(server, locustfile=hungry) as clients:
        got = clients.run(100, 1.2, discard_s=0.0)
    # by its CPU, or by its lateness where the machine did not give it that much
    assert any(reason.startswith("traffic: one: the generator") for reason in got.invalid)


def test_a_dead_worker_is_a_clear_error_not_a_hang() -> None:
    spawn = Spawner()
    with serving() as server, shoppers(server, spawn=spawn) as clients:
        spawn.started[0].kill()
        with pytest.raises(TrafficError, match="locust process on one: its process ended by itself"):
            clients.run(100, 0.2)


@pytest.mark.parametrize(("text", "message"), [
    ("x = 1\n", "defines no user"),
    ("from locust import User\n\n\nclass Idle(User):\n    pass\n", "needs tasks that are plain functions"),
    ("import no_such_module\n", "No module named 'no_such_module'"),
])
def test_a_wrong_locustfile_is_named(tmp_path: Path, text: str, message: str) -> None:
    locustfile = tmp_path / "wrong.py"
    locustfile.write_text(text)
    with serving() as server, pytest.raises(TrafficError, match=message), shoppers(server, locustfile=locustfile):
        pass


def test_a_client_with_nothing_to_ask_is_refused() -> None:
    with pytest.raises(TrafficError, match="one: nothing to ask"):
        Traffic(Spawner(), TOPOLOGY, process="browser", locustfile="x", per_client={"one": []})


def test_targets_alternate_families_and_sum_weights() -> None:
    def flow(port: int, family: int) -> Flow:
        return Flow("one", "browser", "www", "one", "browser", "tcp", port, family)  # type: ignore[arg-type]

    flows = [flow(80, 4), flow(81, 4), flow(80, 6), Flow("one", "browser", "www", "one", "", "icmp", 0, 4), flow(80, 4)]
    got = targets(flows, TOPOLOGY, {flow(80, 4): 5})
    assert got == (Target("http://127.0.0.1:80", 10), Target("http://[::1]:80", 1), Target("http://127.0.0.1:81", 1))


def test_arrivals_are_taken_from_the_service_too() -> None:
    with serving(answer=b"") as server, Traffic(
            Spawner(), TOPOLOGY, process="browser", locustfile=str(SCENARIOS / "replay.py"),
            per_client={"one": server.urls[:1]}) as clients:
        got = clients.run(20, 0.2, discard_s=0.0)
    mute = got.truths[0]
    assert mute.outcome == "BROKEN" and not mute.arrived
    seen = [(mute.source_address, mute.sport, "one", mute.dport)]
    assert [t.arrived for t in arrivals(got.truths, seen)] == [True] + [False] * (len(got.truths) - 1)


def test_the_controller_does_not_import_locust() -> None:
    code = "import sys, bench.instruments.traffic; print(any(m in sys.modules for m in ('locust', 'gevent')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "False"
    assert json.dumps(traffic.worker_environment())  # plain text only
