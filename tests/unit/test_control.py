"""The fleet against services that the test plays itself: every way that they can behave, without root or packets."""

from __future__ import annotations

import errno
import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lab.hosts import control
from lab.hosts.build import build
from lab.hosts.control import Actor, Attempt, Fleet, ServiceError
from lab.model import Outcome

WEB, API = Actor("h1", "web (v2)", "www"), Actor("h2", "api", "shop")
Answer = Callable[["Player", list[str]], None]


class Player:
    """A service in this process: one thread, answering each line with `answer`."""

    def __init__(self, path: Path, actor: Actor, answer: Answer) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.lines: list[list[str]] = []
        self.answer = answer
        self.say("hello", *actor, "7")
        self.thread = threading.Thread(target=self._play, daemon=True)
        self.thread.start()

    def say(self, *fields: object) -> None:
        self.sock.sendall("\t".join(map(str, fields)).encode() + b"\n")

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)

    def _play(self) -> None:
        with self.sock.makefile() as stream:
            for line in stream:
                fields = line.rstrip("\n").split("\t")
                self.lines.append(fields)
                self.answer(self, fields)


def honest(player: Player, f: list[str]) -> None:
    """Every attempt is open and arrives (said by itself, as if it were its own target)."""
    if f[1] in ("probe", "exploit"):
        at = {"probe": 5, "exploit": 4}[f[1]]
        player.say("a", "tcp", 4, "10.0.0.1", 40000, f[at + 1], f[2], 2_500_000_000)
        who = ("h2", "api", "shop") if f[1] == "exploit" else ()
        kind = "x" if f[1] == "exploit" else "p"
        player.say(kind, f[2], "OPEN", 0, 40000, 2_000_000_000, 2_000_100_000, 2_000_300_000, 64, *who)
    else:
        player.say("=", f[0], "ok", *f[2:])


def silent(_player: Player, _fields: list[str]) -> None:
    """It never answers."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "control.sock") as made:
        yield made


@pytest.fixture
def join(fleet: Fleet, tmp_path: Path) -> Callable[[Actor, Answer], Player]:
    def joined(actor: Actor, answer: Answer = honest) -> Player:
        player = Player(tmp_path / "control.sock", actor, answer)
        fleet.await_actors([actor], 5)
        return player
    return joined


Join = Callable[..., Player]


def attempts(actor: Actor, n: int, proto: str = "tcp") -> list[Attempt]:
    return [Attempt(actor, proto, 4, f"10.0.0.{i % 200 + 1}", 80) for i in range(n)]


def test_the_missing_are_named(fleet: Fleet, join: Join) -> None:
    join(WEB)
    with pytest.raises(ServiceError, match=r"1 services did not start within 0\.05 s, first h2/api\(shop\)"):
        fleet.await_actors([WEB, API], 0.05)
    assert fleet.actors == {WEB}


def test_requests_carry_fields_both_ways(fleet: Fleet, join: Join) -> None:
    join(WEB)
    join(API)
    assert fleet.request(WEB, "listen", "tcp", "80,81") == ("tcp", "80,81")
    assert fleet.request_all({WEB: ("cpu",), API: ("pin", "1")}, 5) == {WEB: (), API: ("1",)}


def test_a_refused_request_says_who_and_why(fleet: Fleet, join: Join) -> None:
    join(WEB, lambda player, f: player.say("=", f[0], "err", "80", "98"))
    with pytest.raises(ServiceError, match=r"h1/web \(v2\)\(www\): listen: 80 98"):
        fleet.request(WEB, "listen", "tcp", "80")


def test_a_request_never_hangs(fleet: Fleet, join: Join) -> None:
    join(WEB, silent)
    with pytest.raises(ServiceError, match="no answer in time"):
        fleet.request(WEB, "cpu", timeout_s=0.05)
    with pytest.raises(ServiceError, match="no such service"):
        fleet.request(API, "cpu")
    with pytest.raises(ServiceError, match="the service ended"):
        join(API, lambda player, _f: player.end())
        fleet.request(API, "cpu")
    with pytest.raises(ValueError, match="tab"):
        fleet.request(WEB, "calls", "a\tb")


def test_an_attempt_is_joined_with_its_arrival(fleet: Fleet, join: Join) -> None:
    player = join(WEB)
    (got,) = fleet.probe(attempts(WEB, 1), 1.5)
    assert (got.outcome, got.errno, got.arrived, got.arrived_at) == (Outcome.OPEN, 0, True, 2.5)
    assert (got.start, got.connect_us, got.total_us, got.sport, got.bytes) == (2.0, 100.0, 300.0, 40000, 64)
    assert player.lines == [["0", "probe", "1", "tcp", "4", "10.0.0.1", "80", "1500"]]


def test_order_and_identity_are_kept(fleet: Fleet, join: Join) -> None:
    join(WEB)
    join(API)
    wanted = [a for pair in zip(attempts(WEB, 3000), attempts(API, 3000), strict=True) for a in pair]
    got = fleet.probe(wanted, 1.0, window=100)
    assert [g.attempt for g in got] == wanted
    assert all(g.outcome is Outcome.OPEN and g.arrived for g in got)
    assert fleet.probe([], 1.0) == []


def test_no_more_than_the_window_is_under_way(fleet: Fleet, join: Join) -> None:
    """Where none is answered for a while, no more come than the window has room for."""
    came: queue.SimpleQueue[str] = queue.SimpleQueue()

    def slow(player: Player, f: list[str]) -> None:
        if f[1] == "probe":
            came.put(f[2])
        else:
            honest(player, f)

    player = join(WEB, slow)
    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(fleet.probe, attempts(WEB, 64), 20.0, window=8)
        held = [came.get(timeout=60) for _ in range(8)]
        with pytest.raises(queue.Empty):
            came.get(timeout=0.3)
        for token in itertools.chain(held, (came.get(timeout=60) for _ in range(64 - 8))):
            player.say("p", token, "REFUSED", 111, 1, 1000, 0, 2000, 0)
        assert {g.outcome for g in probing.result()} == {Outcome.REFUSED}


def test_a_service_that_dies_breaks_what_it_had_under_way(fleet: Fleet, join: Join) -> None:
    def dies(player: Player, f: list[str]) -> None:
        if int(f[2]) == 3:
            player.end()
        elif int(f[2]) < 3:
            honest(player, f)

    join(WEB, dies)
    began = time.monotonic()
    got = fleet.probe(attempts(WEB, 10), 5.0, window=4)
    assert time.monotonic() - began < 4
    assert [(g.outcome, g.errno) for g in got[:2]] == [(Outcome.OPEN, 0)] * 2
    assert [(g.outcome, g.errno, g.total_us) for g in got[2:]] == [(Outcome.BROKEN, errno.ESRCH, None)] * 8


def test_a_service_that_is_not_there_breaks_its_attempts(fleet: Fleet) -> None:
    (got,) = fleet.probe(attempts(WEB, 1), 1.0)
    assert (got.outcome, got.errno) == (Outcome.BROKEN, errno.ESRCH)


def test_a_stuck_service_is_given_up(fleet: Fleet, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "GRACE_S", 0.1)
    join(WEB, silent)
    (got,) = fleet.probe(attempts(WEB, 1), 0.1)
    assert (got.outcome, got.errno) == (Outcome.BROKEN, errno.ETIME)


def test_an_arrival_that_is_still_on_its_way_is_waited_for(fleet: Fleet, join: Join) -> None:
    """The reply was dropped, the datagram was not: the target says so only when it is asked to say all."""
    join(WEB, lambda player, f: player.say("p", f[2], "TIMED_OUT", 0, 9, 1000, 0, 2000, 32)
         if f[1] == "probe" else honest(player, f))

    def late(player: Player, f: list[str]) -> None:
        player.say("a", "udp", 4, "10.0.0.1", 9, 53, 1, 1_500_000_000)
        honest(player, f)

    target = join(API, late)
    (got,) = fleet.probe(attempts(WEB, 1, "udp"), 1.0)
    assert (got.outcome, got.arrived, got.arrived_at) == (Outcome.TIMED_OUT, True, 1.5)
    assert [f[1] for f in target.lines] == ["sync"]


def test_only_the_services_of_a_known_target_are_asked(fleet: Fleet, join: Join) -> None:
    player, target = join(WEB), join(API)
    fleet.probe(attempts(WEB, 1, "udp"), 1.0)  # teaches that 10.0.0.1 is h1
    player.answer = lambda p, f: (p.say("p", f[2], "TIMED_OUT", 0, 9, 1000, 0, 2000, 32)
                                  if f[1] == "probe" else honest(p, f))
    fleet.probe(attempts(WEB, 1, "udp"), 1.0)
    assert [f[1] for f in player.lines] == ["probe", "probe", "sync"]
    assert target.lines == []


def test_tcp_that_never_connected_cannot_have_arrived(fleet: Fleet, join: Join) -> None:
    player = join(WEB, lambda p, f: p.say("p", f[2], "TIMED_OUT", 0, 9, 1000, 0, 2000, 0))
    fleet.probe(attempts(WEB, 1), 1.0)
    assert [f[1] for f in player.lines] == ["probe"]


def test_exploit_says_whom_it_took(fleet: Fleet, join: Join) -> None:
    player = join(WEB)
    got = fleet.exploit(WEB, 6, "fd00::2", 80, 2**64 - 1, 0.5)
    assert got.owned
    assert (got.host, got.process, got.user) == ("h2", "api", "shop")
    assert player.lines[0] == ["0", "exploit", "1", "6", "fd00::2", "80", "500", str(2**64 - 1)]
    assert not fleet.exploit(API, 4, "10.0.0.1", 80, 1, 0.5).owned


def test_loops_bring_every_sample(fleet: Fleet, join: Join) -> None:
    join(WEB, lambda p, f: p.say("=", f[0], "ok", 3, 1, 500_000_000, 250_000_000, "123,456,7"))
    got = fleet.crr(WEB, 4, "10.0.0.1", 80, 0.5)
    assert (got.n, got.errors, got.elapsed_s, got.cpu_s) == (3, 1, 0.5, 0.25)
    np.testing.assert_allclose(got.latencies_us, [12.3, 45.6, 0.7])


def test_a_loop_without_samples(fleet: Fleet, join: Join) -> None:
    join(WEB, lambda p, f: p.say("=", f[0], "ok", 0, 9, 500_000_000, 1000, ""))
    assert fleet.rr(WEB, 4, "10.0.0.1", 80, 0.5).latencies_us.shape == (0,)


def test_events_are_drained_once_and_troubles_kept_apart(fleet: Fleet, join: Join) -> None:
    player = join(WEB)
    player.say("c", "OPEN", 0)
    player.say("e", "accept", 24)
    player.say("h", 4)
    fleet.request(WEB, "sync")
    assert fleet.drain_events() == [(WEB, ("c", "OPEN", "0")), (WEB, ("h", "4"))]
    assert fleet.drain_events() == []
    assert fleet.troubles == [(WEB, ("e", "accept", "24"))]


def test_lines_may_come_in_pieces(fleet: Fleet, join: Join) -> None:
    def pieces(player: Player, f: list[str]) -> None:
        for byte in f"=\t{f[0]}\tok\tdone\n".encode():
            player.sock.sendall(bytes([byte]))

    join(WEB, pieces)
    assert fleet.request(WEB, "cpu") == ("done",)


def test_a_command_larger_than_the_socket_takes_at_once(fleet: Fleet, join: Join) -> None:
    join(WEB, lambda p, f: p.say("=", f[0], "ok", len(f[2])))
    assert fleet.request(WEB, "calls", "x" * 3_000_000) == ("3000000",)


def test_concurrent_campaigns_do_not_mix(fleet: Fleet, join: Join) -> None:
    join(WEB)
    join(API)
    found: dict[Actor, set[Actor]] = {}

    def probe(actor: Actor) -> None:
        found[actor] = {g.attempt.actor for _ in range(20) for g in fleet.probe(attempts(actor, 200), 1.0, 50)
                        if g.outcome is Outcome.OPEN and g.arrived}

    threads = [threading.Thread(target=probe, args=(actor,)) for actor in (WEB, API)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {WEB: {WEB}, API: {API}}


def test_closing_lets_every_service_go(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "control.sock")
    player = Player(tmp_path / "control.sock", WEB, honest)
    fleet.await_actors([WEB], 5)
    fleet.close()
    fleet.close()
    player.thread.join(5)
    assert not player.thread.is_alive()
    assert not (tmp_path / "control.sock").exists()


def test_a_service_that_returns_takes_its_old_place(fleet: Fleet, join: Join) -> None:
    old = join(WEB)
    join(WEB, lambda p, f: p.say("=", f[0], "ok", "new"))
    deadline = time.monotonic() + 60
    while fleet.request(WEB, "cpu") != ("new",):  # it is known already: what we wait for is its second greeting
        assert time.monotonic() < deadline
    old.end()
    old.thread.join(5)
    assert fleet.request(WEB, "cpu") == ("new",)


def test_the_service_is_compiled_once(tmp_path: Path) -> None:
    first = build(tmp_path / "made" / "here")
    assert first.stat().st_mode & 0o111
    before = first.stat().st_mtime_ns
    assert build(tmp_path / "made" / "here") == first
    assert first.stat().st_mtime_ns == before
    assert [p.name for p in first.parent.iterdir()] == [first.name]


def test_without_a_compiler_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.hosts.build import BuildError

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="gcc not found; apt-get install"):
        build(tmp_path)
