"""agent-ebpf with connections of our own: what a policy cuts, the agent's death and silence, what is lost."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from lab.isolation import RunIdentity
from tests.e2e.ebpf_pair import DENIED, KEPT, SERVE, TAKEN, pair

CONNECTIONS, OTHERS = 1000, 200

HOLD = f"""
held = {{}}
for port, count in (({TAKEN}, {CONNECTIONS}), ({KEPT}, {OTHERS})):
    for number in range(count):
        s = connected(ADDRESS, port)
        exchange(s)
        held[s.fileno()] = (s, port, number % 2 == 0)
poll, ended = select.epoll(), {{}}
for fd in held: poll.register(fd, select.EPOLLIN)
poll.register(0, select.EPOLLIN)
active = [s for s, _, is_active in held.values() if is_active]
say('ready')
at, told = 0, False
while not told:
    s = active[at % len(active)]
    at += 1
    if s.fileno() in held and s.fileno() not in ended:
        outcome(s.send, b'x')
    for fd, what in poll.poll(0.001):
        if fd == 0:
            told = True
        elif what & (select.EPOLLERR | select.EPOLLHUP):
            ended[fd] = time.monotonic_ns()
            poll.unregister(fd)
        else:
            outcome(held[fd][0].recv, 65536)
after = {{fd: outcome(exchange, s) for fd, (s, port, _) in held.items() if port == {KEPT}}}
say({{'idle': [t for fd, t in ended.items() if held[fd][1] == {TAKEN} and not held[fd][2]],
     'active': [t for fd, t in ended.items() if held[fd][1] == {TAKEN} and held[fd][2]],
     'kept': sorted(set(after.values())), 'kept_cut': sum(held[fd][1] == {KEPT} for fd in ended)}})
"""


def cut(me: RunIdentity, rounds: int) -> dict[str, Any]:
    """A policy that forbids a thousand established connections, half of them idle: when who asked saw their end.

    Milliseconds from the switch, which the epoch in force says to the nanosecond.
    """
    found: dict[str, Any] = {"rounds": []}
    with pair(me) as it, it.running("answers", SERVE):
        for _ in range(rounds):
            with it.running("asks", f"ADDRESS = {it.address!r}\n{HOLD}") as holder:
                it.put("answers", it.new)
                it.say("update", "answers")
                status = it.status("answers")
                time.sleep(0.3)  # resets under way; the deadline of this round, not what is measured
                holder.tell("enough")
                told = holder.hear()
            one = {kind: [(at - status["epoch"]) / 1e6 for at in told[kind]] for kind in ("idle", "active")}
            found["rounds"].append({
                "cut": {kind: len(ms) for kind, ms in one.items()}, "kept": told["kept"], "kept_cut": told["kept_cut"],
                "last_ms": {kind: round(max(ms, default=-1), 1) for kind, ms in one.items()},
                "update_ms": status["update_ms"], "revoke_ms": status["revoke_ms"]})
            it.put("answers", it.old)
            it.say("update", "answers")
    return found


LOAD = f"""
held = [connected(ADDRESS, {KEPT}) for _ in range(20)]
broken, fresh, leaked, attempts = [], [], [], 0
say('ready')
while True:
    for s in held:
        got = outcome(exchange, s)
        if got != 'OPEN': broken.append(got)
    got = outcome(tcp, ADDRESS, {KEPT})
    if got != 'OPEN': fresh.append(got)
    got = outcome(tcp, ADDRESS, {DENIED})
    attempts += 1
    if got == 'OPEN': leaked.append(got)
    outcome(tcp, ADDRESS, {TAKEN})
    if select.select([sys.stdin], [], [], 0)[0]:
        if not sys.stdin.readline(): sys.exit()
        say({{'broken': broken, 'fresh': fresh, 'leaked': leaked, 'attempts': attempts}})
        sys.stdin.readline()
        say('on')
        broken, fresh, leaked, attempts = [], [], [], 0
"""


def killed(me: RunIdentity, times: int) -> dict[str, Any]:
    """The agent killed at `times` random moments of a change of policy, under load; what each round came to."""
    rng = random.Random(20)
    found: dict[str, Any] = {"attempts": 0, "told": 0, "after": [], "took_over": 0, "changed": 0, "lost": []}
    with pair(me) as it, it.running("answers", SERVE), it.running("asks", f"ADDRESS = {it.address!r}\n{LOAD}") as load:
        for number in range(times):
            policy = it.old if number % 2 else it.new
            it.put("answers", policy)
            after = threading.Timer(rng.uniform(0.0, 0.08), it.kill)
            change = threading.Thread(target=_attempt, args=(lambda: it.say("update", "answers"),))
            after.start()
            change.start()
            change.join()
            after.join()
            it.say("start", "answers")
            for host in it.arms:
                it.say("ready", host)
            status = it.status("answers")
            found["took_over"] += status["agent"]["took_over"]
            found["changed"] += status["rules"] == len(policy.rules)
            load.tell("say")
            said = load.hear()
            for what in ("broken", "fresh", "leaked"):
                found.setdefault(what, []).extend(said[what])
            found["attempts"] += said["attempts"]
            once = f"say('ready'); sys.stdin.readline(); say(outcome(tcp, {it.address!r}, {TAKEN}))"
            with it.running("asks", once) as one:
                one.tell("go")
                found["after"].append([one.hear(), "OPEN" if policy is it.old else "TIMED_OUT"])
            load.tell("on")
            assert load.hear() == "on"
        load.tell("say")
        found["attempts"] += load.hear()["attempts"]
        for point, lines in it.place.collect().items():
            found["lost"].append(json.loads(lines[0])["lost"])
            if point.host == "asks":
                # What an agent was writing down as it died its successor writes down again.
                records = [json.loads(line) for line in lines[1:]]
                once = list({(one["time"], one["dport"], one["sport"]): one for one in records}.values())
                found["told"] = sum(one["dport"] == DENIED and one["verdict"] == "deny" for one in once)
                found["told_twice"] = len(records) - len(once)
        load.tell("on")
        found["denied_in_kernel"] = it.status("asks")["counters"]["denied"]
    return found


def _attempt(act: Callable[[], object]) -> None:
    try:
        act()
    except AssertionError:
        return  # the agent died over it: what the next one finds is what counts


TRY = "say('ready')\nwhile sys.stdin.readline(): say([outcome(tcp, ADDRESS, p) for p in (KEPT, DENIED)])"
STAY = "s = connected(ADDRESS, KEPT); exchange(s); say('ready')\nwhile sys.stdin.readline(): say(outcome(exchange, s))"


def silent(me: RunIdentity, patience_s: float) -> dict[str, Any]:
    """The agent dies, and nobody starts another: one host is to close then, one to open; established goes on."""
    found: dict[str, Any] = {}
    names = ("asks", "asks-too")
    with pair(me, {"asks": "closes", "asks-too": "opens", "answers": "opens"}) as it, it.running("answers", SERVE):
        constants = f"ADDRESS, KEPT, DENIED = {it.address!r}, {KEPT}, {DENIED}\n"
        with it.running(names[0], constants + TRY) as closes, it.running(names[1], constants + TRY) as opens, \
                it.running(names[0], constants + STAY) as stays:
            def ask() -> list[Any]:
                for one in (closes, opens, stays):
                    one.tell("go")
                return [one.hear() for one in (closes, opens, stays)]

            found["before"] = ask()
            it.kill()
            begun = time.monotonic()
            found["at_once"] = found["later"] = ask()
            while found["later"] == found["at_once"] and time.monotonic() - begun < patience_s:
                found["later"] = ask()
                time.sleep(0.05)
            found["seconds"] = time.monotonic() - begun
            time.sleep(0.1)
            found["later"] = ask()
            it.say("start", "answers")
            for host in it.arms:
                it.say("ready", host)
            found["again"] = ask()
    return found


GENERATE = """
s = socket.socket(socket.AF_INET, UDP)
say('ready')
while line := sys.stdin.readline():
    rate, seconds = json.loads(line)
    made, begun, now = 0, time.monotonic(), time.monotonic()
    while now - begun < seconds:
        for _ in range(min(int((now - begun) * rate) - made, 500)):
            s.connect_ex((ADDRESS, DENIED))
            made += 1
        now = time.monotonic()
    say([made, now - begun])
"""


def loss(me: RunIdentity, rates: list[int]) -> list[dict[str, Any]]:
    """Refused attempts at rising rates, from two hosts, each of which is an event: how many the agent could not tell.

    `rate`: as came about, in events a second.
    """
    found, names = [], ("asks", "asks-too")
    with pair(me) as it:
        code = f"ADDRESS, DENIED = {it.address!r}, {DENIED}\n{GENERATE}"
        with it.running(names[0], code) as first, it.running(names[1], code) as second:
            for rate in rates:
                for one in (first, second):
                    one.tell(json.dumps([rate // 2, 0.5]))
                said = [one.hear() for one in (first, second)]
                told, lost = 0, 0
                for point, lines in it.place.collect().items():
                    if point.host in names:
                        told += sum(b'"deny"' in line for line in lines[1:])
                        lost += sum(json.loads(lines[0])["lost"].values())
                made = sum(made for made, _ in said)
                found.append({"asked": rate, "rate": round(sum(n / s for n, s in said)), "made": made, "told": told,
                              "lost": lost})
                if lost:
                    break
    return found
