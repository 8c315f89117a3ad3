"""What an enforcer has to be and to answer, held against one that anybody may have written.

`Guarded` passes each verb on and turns whatever goes wrong into one line that names the arm, the verb and the place.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

from lab.model import (
    Deployment,
    Enforcer,
    Feature,
    Flow,
    Native,
    Point,
    PointKind,
    PointPlan,
    Policy,
    Sighting,
    Topology,
)

VERBS = ("needs", "compile", "render", "covers", "sightings")
T = TypeVar("T")


class EnforcerError(RuntimeError):
    """An enforcer cannot be loaded, or failed in one of its verbs; one line that names the arm and the place."""


class Guarded:
    """An enforcer whose verbs raise EnforcerError, and nothing else, where they fail or answer what is no answer."""

    def __init__(self, name: str, enforcer: Enforcer) -> None:
        self.name = name
        self._enforcer = enforcer

    @property
    def description(self) -> str:
        """The first line of its class's docstring."""
        return (inspect.getdoc(type(self._enforcer)) or "(no docstring)").split("\n", 1)[0]

    @property
    def knows_tenants(self) -> bool:
        """Whether it keeps tenants apart whose addresses are the same. One that does not say so does not."""
        return getattr(self._enforcer, "knows_tenants", False) is True

    @property
    def stops_spoofing(self) -> bool:
        """Whether it says that no host can send as another. Not a verb: who does not say so does not claim it."""
        return getattr(self._enforcer, "stops_spoofing", False) is True

    @property
    def asked_at(self) -> PointKind:
        """At which of its points an agent answers about a host: on the host itself, or on the machine that carries it.
        """
        return "node" if getattr(self._enforcer, "asked_at", "host") == "node" else "host"

    @property
    def caveat(self) -> str:
        """What every report says of it, in a line; "" if it says nothing of the kind."""
        said = getattr(self._enforcer, "caveat", "")
        return said if isinstance(said, str) else ""

    def needs(self) -> tuple[Feature, ...]:
        needs = self._call("needs", lambda: tuple(self._enforcer.needs()))
        self._each("needs", needs, Feature)
        return needs

    def needs_at(self, point: Point) -> tuple[Feature, ...]:
        """What it needs at one of its points; one that does not tell them apart needs everything everywhere."""
        told = getattr(self._enforcer, "needs_at", None)
        if told is None:
            return self.needs()
        needs = self._call("needs_at", lambda: tuple(told(point)))
        self._each("needs_at", needs, Feature)
        return needs

    def compile(self, policy: Policy, topology: Topology) -> Native:
        return self._is("compile", self._call("compile", lambda: self._enforcer.compile(policy, topology)), Native)

    def render(self, native: Native, topology: Topology) -> Deployment:
        deployment = self._call("render", lambda: self._enforcer.render(native, topology))
        if not isinstance(deployment, Mapping):
            raise self._error("render", f"returned {type(deployment).__name__}, not a dict of Point to PointPlan")
        for point, plan in deployment.items():
            if problem := _wrong_plan(point, plan, topology):
                raise self._error("render", problem)
        return deployment

    def covers(self, flow: Flow, topology: Topology) -> bool:
        return self._is("covers", self._call("covers", lambda: self._enforcer.covers(flow, topology)), bool)

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        found = self._call("sightings", lambda: tuple(self._enforcer.sightings(point, lines)))
        self._each("sightings", found, Sighting)
        return found

    def ask(self, host: str, verb: str, *words: str) -> tuple[str, ...]:
        """The command by which its agent on `host` answers in JSON. Only arms with agents that can be asked have it."""
        asks = getattr(self._enforcer, "ask", None)
        if asks is None:
            raise EnforcerError(f"arm '{self.name}' has no agent that can be asked; "
                                "labctl up SCENARIO --arm agent-ebpf has")
        return tuple(self._call("ask", lambda: asks(host, verb, *words)))

    def failing(self, way: Literal["open", "closed"]) -> Guarded | None:
        """The same arm, set to pass or to refuse what is new when it falls silent; None where it cannot be set so."""
        offers = getattr(self._enforcer, "failing", None)
        made = self._call("failing", lambda: offers(way)) if offers is not None else None
        return Guarded(self.name, made) if made is not None else None

    def _call(self, verb: str, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except Exception as err:  # whatever somebody's code raises
            raise self._error(verb, f"raised {in_a_line(err)}{_place(err, self._enforcer)}") from err

    def _is(self, verb: str, value: Any, kind: type[T]) -> T:
        if not isinstance(value, kind):
            raise self._error(verb, f"returned {type(value).__name__}, not {kind.__name__}")
        return value

    def _each(self, verb: str, values: Iterable[object], kind: type) -> None:
        for value in values:
            if not isinstance(value, kind):
                raise self._error(verb, f"gave a {type(value).__name__} ({value!r:.60}), not a {kind.__name__}")

    def _error(self, verb: str, problem: str) -> EnforcerError:
        return EnforcerError(f"arm '{self.name}': {verb} {problem}")


def lacking(enforcer: object, name: str) -> str | None:
    """What keeps an object from being the enforcer of the entry point `name`, or None."""
    absent = [verb for verb in VERBS if not callable(getattr(enforcer, verb, None))]
    if absent:
        return f"it has no {', '.join(absent)}; an enforcer has a name and the verbs {', '.join(VERBS)}"
    told = getattr(enforcer, "name", None)
    return None if told == name else f"its entry point says '{name}', its class {told!r}; write name = '{name}'"


def in_a_line(err: BaseException) -> str:
    """An exception as one line."""
    return " ".join(f"{type(err).__name__}: {err}".split())[:300]


def _place(err: Exception, enforcer: object) -> str:
    """Where in the enforcer's own file it was raised; else where it was raised at all."""
    frames = traceback.extract_tb(err.__traceback__)
    own = inspect.getfile(type(enforcer))
    frame = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
    return f" ({frame.filename.rpartition('/')[2]}:{frame.lineno})"


# --- plans ----------------------------------------------------------------------------------------


def _wrong_plan(point: object, plan: object, topology: Topology) -> str | None:
    if not isinstance(point, Point):
        return f"has the key {point!r:.60}, not a Point"
    if point.host != topology.router and point.host not in topology.hosts:
        return f"names the point {point.host!r}, which is neither a host nor the router"
    if not isinstance(plan, PointPlan):
        return f"has a {type(plan).__name__} for {point.host}, not a PointPlan"
    for path, content in plan.files.items():
        if not path.startswith("/"):
            return f"places {path!r} on {point.host}: write an absolute path, such as /run/host/{path}"
        if not isinstance(content, bytes):
            return f"places {path} on {point.host} as {type(content).__name__}: encode it to bytes"
    return _wrong_commands(point, plan)


def _wrong_commands(point: Point, plan: PointPlan) -> str | None:
    for field in ("up", "update", "down"):
        for command in getattr(plan, field):
            if not _is_argv(command):
                return (f"has {command!r:.60} among the commands of {field} on {point.host}: "
                        "each is a tuple of words, as (('nft', '-f', 'FILE'),)")
    if not _is_argv(plan.ready):
        return f"has {plan.ready!r:.60} for ready on {point.host}: write one command as a tuple of words, as ('true',)"
    if plan.collect and not _is_argv(plan.collect):
        return f"has {plan.collect!r:.60} for collect on {point.host}: write one command as a tuple of words, or ()"
    return None


def _is_argv(command: object) -> bool:
    return isinstance(command, (tuple, list)) and bool(command) and all(isinstance(word, str) for word in command)
