"""Locust inside one client host: a process of its own that sends visits at fixed times and hands back raw figures.

Importing locust patches this process, so nothing else may live in it: it is started as the client's declared
executable and imports no other part of labctl but the two files beside it. Of locust it takes the users of a locustfile
and the raw `events.request`, and leaves its pacing (a closed loop), statistics (whole milliseconds; handed back for
comparison) and CPU alarm (after 20 s).

A *visit* is one run of a user's task. Visits start by a kernel timer, when the phases (RFC 9411) have them due,
each in a free user; if none is free the visit waits and its time counts from when it was due, so a stalled server
cannot hide its stall. Only visits due in the sustain phase make figures.

Protocol, JSON lines. In: `{"start": {"targets": [{"url", "weight"}, …]}}` once, then any number of
`{"run": {"at", "rate", "phases": {"ramp", "sustain", "down", "from"}}}` (see locust_pacing.schedule); end of input ends
the process. `rate` is in requests a second, so visits come at rate / requests_per_visit. Out: `{"ready": …}`, for each
run `{"truth": …}` for every connection made and one `{"result": …}`, or `{"error": "…"}` before it ends with status 2.
Times are seconds of CLOCK_MONOTONIC. Nothing is judged here.
"""

from __future__ import annotations

import os
import sys

os.environ["GEVENT_RESOLVER"] = "block"  # targets are addresses: a resolver thread would only add its own delay
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # PYTHONSAFEPATH leaves it out

import argparse
import errno
import gc
import json
import random
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import locust
from gevent.event import Event
from gevent.queue import SimpleQueue
from locust.env import Environment
from locust.exception import InterruptTaskSet, RescheduleTask, StopUser
from locust.stats import RequestStats
from locust.util.load_locustfile import load_locustfile

if TYPE_CHECKING:
    from bench.instruments import locust_connections
    from bench.instruments import locust_pacing as pacing
else:  # on the host they lie beside this file, and there is no `bench`
    import locust_connections
    import locust_pacing as pacing

GRACE_S = 5.0  # for visits under way when the last was handed out


@dataclass(slots=True)
class Visit:
    """One visit: when it was due, and what its requests took."""

    due: float
    phase: str
    end: float = 0.0  # of its last request
    done: bool = False
    times_us: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Generator:
    """A pool of users of one locustfile, and one window of visits at a time."""

    def __init__(self, locustfile: str, targets: list[dict[str, Any]], users: int, seed: int) -> None:
        found, _ = load_locustfile(locustfile)
        if not found:
            raise SystemExit(f"{locustfile}: defines no user; write a class that inherits from locust's FastHttpUser")
        classes = list(found.values())
        options = Namespace(targets=targets, seed=seed)
        self.environment = Environment(user_classes=classes, parsed_options=options, host=targets[0]["url"])
        self.environment.events.request.add_listener(self._on_request)
        self.requests_per_visit = float(getattr(classes[0], "requests_per_visit", 1))
        self.rng = random.Random(seed)
        for one in classes:
            one.host = one.host or targets[0]["url"]  # as locust's own runner does; users may want one to start
        weights = [one.weight for one in classes]
        self.users = [self.rng.choices(classes, weights)[0](self.environment) for _ in range(users)]
        self.tasks: list[list[Callable[[Any], object]]] = [_tasks(user, locustfile) for user in self.users]
        self.under_way: dict[Any, Visit] = {}
        self.left = 0  # visits of this window that are not done
        self.all_done = Event()
        for user in self.users:
            user.on_start()

    def _on_request(self, response_time: float, exception: BaseException | None = None, **_: Any) -> None:
        """locust's event, in the greenlet of the user that made the request; `response_time` in float milliseconds."""
        visit = self.under_way.get(gevent.getcurrent())
        if visit is None:
            return
        visit.end = time.monotonic()
        if exception is None:
            visit.times_us.append(response_time * 1000.0)
        else:
            visit.errors.append(_name(exception))

    def _user(self, index: int, queue: Any) -> None:
        """One user: takes the visit that is longest due, again and again."""
        me = gevent.getcurrent()
        while True:
            visit: Visit = queue.get()
            self.under_way[me] = visit
            try:
                self.rng.choice(self.tasks[index])(self.users[index])
            except (RescheduleTask, InterruptTaskSet, StopUser):
                pass  # control flow of locust: the visit is over
            except Exception as error:  # whatever the locustfile raised is an error of the visit, as in locust
                visit.errors.append(_name(error))
            visit.end, visit.done = visit.end or time.monotonic(), True
            del self.under_way[me]
            self.left -= 1
            if not self.left:
                self.all_done.set()

    def due(self) -> float:
        """When the visit of the greenlet that asks was due; 0.0 outside of one."""
        visit = self.under_way.get(gevent.getcurrent())
        return visit.due if visit else 0.0

    def window(self, at: float, rate: float, phases: dict[str, float]) -> dict[str, Any]:
        """Send visits from `at` through all phases; the figures are of those due in sustain."""
        first_ns = max(int(at * 1e9), time.monotonic_ns() + 1_000_000)
        plan = pacing.schedule(rate / self.requests_per_visit, phases)
        visits = [Visit((first_ns + offset) / 1e9, phase) for offset, phase in plan]
        begins = [first_ns / 1e9 + since for since in (0.0, phases["ramp"], phases["ramp"] + phases["sustain"])]
        queue = SimpleQueue()
        self.left = len(visits)
        self.all_done.clear()
        lags: list[float] = []
        pool = [gevent.spawn(self._user, index, queue) for index in range(len(self.users))]
        sampler = pacing.Sampler()
        sampling = gevent.spawn_later(max(0.0, begins[1] - time.monotonic()), sampler.run)
        clock = pacing.clock_offset_ns()
        for tick in pacing.ticks([first_ns + offset for offset, _phase in plan]):
            visit = visits[tick]
            queue.put(visit)
            if visit.phase == pacing.SUSTAIN:
                lags.append(time.monotonic() - visit.due)
        self.all_done.wait(GRACE_S)
        gevent.killall([*pool, sampling], block=True, timeout=1.0)
        sampler.sample()
        self.under_way.clear()
        end = time.monotonic()
        stamps = {"ramp": begins[0], "sustain": begins[1], "down": begins[2], "sent": visits[-1].due, "end": end}
        return {**_figures(visits, begins[1], begins[2]), "phases": stamps,
                "generator": pacing.facts(sampler, lags, (clock, pacing.clock_offset_ns()), end - begins[0])}


def _tasks(user: Any, locustfile: str) -> list[Callable[[Any], object]]:
    tasks = list(user.tasks)
    if not tasks or any(isinstance(task, type) for task in tasks):
        raise SystemExit(f"{locustfile}: {type(user).__name__}: needs tasks that are plain functions; write @task "
                         "above a method (a TaskSet paces itself, which labctl does instead)")
    return tasks


def _name(error: BaseException) -> str:
    """A kind of error, without addresses and times: what is counted."""
    number = getattr(error, "errno", None)
    code = errno.errorcode.get(number, "") if isinstance(number, int) else ""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    return " ".join(str(part) for part in (type(error).__name__, code, status or "") if part)


def _figures(visits: list[Visit], begin: float, end: float) -> dict[str, Any]:
    """Of the visits due in sustain, which lasts from `begin` to `end`; `completed` are all that ended within it."""
    measured = [v for v in visits if v.phase == pacing.SUSTAIN]
    good = [v for v in measured if v.done and not v.errors and v.times_us]
    return {"visits": len(measured), "finished": sum(v.done for v in measured),
            "completed": sum(v.done and begin <= v.end < end for v in visits), "sustain": end - begin,
            "latencies_us": [round(t, 1) for v in measured for t in v.times_us],
            "from_intended_us": [round((v.end - v.due) * 1e6, 1) for v in good],
            "errors": dict(Counter(name for v in measured for name in v.errors)),
            "locust": _as_locust_says(measured)}


def _as_locust_says(visits: list[Visit]) -> dict[str, float]:
    """The same requests in locust's own statistics: milliseconds, from when a request was really sent."""
    stats = RequestStats()
    for time_us in (t for v in visits for t in v.times_us):
        stats.log_request("GET", "all", time_us / 1000.0, 0)
    return {"requests": stats.total.num_requests, "mean_ms": round(stats.total.avg_response_time, 3),
            **{f"p{q}_ms": stats.total.get_response_time_percentile(q / 100) for q in (50, 90, 99)},
            "max_ms": stats.total.max_response_time or 0.0}


# --- the process ------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Obey standard input until it ends. Standard output is the protocol's alone; prints go to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1 << 16)
    os.dup2(2, 1)
    try:
        _serve(_arguments(argv), out)
    except BrokenPipeError:
        return 0  # nobody listens any more
    except (Exception, SystemExit) as error:  # the controller is told why, then the process ends
        traceback.print_exc()
        _say(out, "error", str(error) or type(error).__name__)
        out.flush()
        return 2
    return 0


def _arguments(argv: list[str]) -> Namespace:
    parser = argparse.ArgumentParser(prog="locust_worker")
    parser.add_argument("--locustfile", required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args(argv)


def _serve(options: Namespace, out: Any) -> None:
    connections = locust_connections.Connections()
    connections.watch()
    generator = None
    # Nothing else runs between windows, so a blocking read is right (gevent leaves standard input as it is).
    while line := sys.stdin.buffer.readline():
        command = json.loads(line)
        if "start" in command:
            locustfile = str(Path(options.locustfile).resolve())
            generator = Generator(locustfile, command["start"]["targets"], options.users, options.seed)
            connections.due = generator.due
            _say(out, "ready", {"pid": os.getpid(), "locust": locust.__version__,
                                "requests_per_visit": generator.requests_per_visit})
        elif generator is not None:
            gc.collect()
            gc.disable()  # a collection in the window would be measured as latency
            result = generator.window(**command["run"])
            gc.enable()
            for one in connections.take():
                _say(out, "truth", one)
            _say(out, "result", result)
        out.flush()


def _say(out: Any, kind: str, value: object) -> None:
    out.write(json.dumps({kind: value}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
