"""Each mistake of docs/enforcers.md, made, says what that page says; and an honest enforcer hears nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from bench import catalogue, registry
from bench.catalogue import POLICY, TOPOLOGY
from bench.contract import EnforcerError, Guarded
from lab.model import Feature, Native, Point, PointPlan, Sighting
from tests.e2e.isolated import ROOT

DOCS = (ROOT / "docs/enforcers.md").read_text()
HERE = Point("host", "here")
PLAN = PointPlan(files={"/run/host/x.nft": b""}, up=(("true",),), ready=("true",), update=(), collect=(), down=())


class Mine:
    """One that is right; each test puts one thing wrong."""

    name = "mine"

    def needs(self) -> Any:
        return (Feature("nftables", "why"),)

    def compile(self, policy: Any, topology: Any) -> Any:
        return Native({HERE: "rules"}, policy, (), 1)

    def render(self, native: Any, topology: Any) -> Any:
        return dict.fromkeys(native.rules, PLAN)

    def covers(self, flow: Any, topology: Any) -> Any:
        return True

    def sightings(self, point: Any, lines: Any) -> Any:
        return ()


def entry(monkeypatch: pytest.MonkeyPatch, **wrong: Any) -> catalogue.Entry:
    made = type("Mine", (Mine,), {"__doc__": Mine.__doc__, "__module__": __name__, **wrong})
    monkeypatch.setattr(EntryPoint, "load", lambda _self: made)
    point = EntryPoint("mine", "mine:Mine", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    (found,) = catalogue.catalogue()
    return found


def plan(**wrong: Any) -> dict[str, Callable[..., Any]]:
    return {"render": lambda self, native, topology: {HERE: replace(PLAN, **wrong)}}


def raising(self: Any, *_: Any) -> Any:
    raise KeyError("db")


def test_one_that_is_right_hears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = entry(monkeypatch)
    assert found.broken is None and found.description == "One that is right; each test puts one thing wrong."
    assert found.coverage is not None
    assert {name for name, answer in found.coverage.items() if answer != "yes"} == {"spoofed source"}


@pytest.mark.parametrize(("wrong", "says"), [
    ({"covers": None}, "arm 'mine' (mine:Mine) is broken: it has no covers; an enforcer has a name and the verbs "
                       "needs, compile, render, covers, sightings"),
    ({"name": "other"}, "arm 'mine' (mine:Mine) is broken: its entry point says 'mine', its class 'other'; "
                        "write name = 'mine'"),
    ({"compile": raising}, "arm 'mine': compile raised KeyError: 'db'"),
    ({"covers": lambda *_: None}, "arm 'mine': covers returned NoneType, not bool"),
    (plan(up=("nft", "-f", "FILE")), "arm 'mine': render has 'nft' among the commands of up on here: each is a tuple "
                                     "of words, as (('nft', '-f', 'FILE'),)"),
    (plan(ready=()), "arm 'mine': render has () for ready on here: write one command as a tuple of words, "
                     "as ('true',)"),
    (plan(files={"x.nft": b""}), "arm 'mine': render places 'x.nft' on here: write an absolute path, such as "
                                 "/run/host/x.nft"),
    (plan(files={"/run/host/x.nft": ""}), "arm 'mine': render places /run/host/x.nft on here as str: "
                                          "encode it to bytes"),
])
def test_a_mistake_says_what_the_docs_say(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], says: str) -> None:
    found = entry(monkeypatch, **wrong)
    assert found.broken is not None and found.broken.startswith(says), found.broken
    assert says in DOCS


@pytest.mark.parametrize(("wrong", "says"), [
    ({"needs": lambda _self: "nftables"}, "needs gave a str ('n'), not a Feature"),
    ({"compile": lambda *_: None}, "compile returned NoneType, not Native"),
    ({"render": lambda *_: None}, "render returned NoneType, not a dict of Point to PointPlan"),
    ({"render": lambda *_: {"here": PLAN}}, "render has the key 'here', not a Point"),
    ({"render": lambda *_: {Point("host", "gone"): PLAN}}, "render names the point 'gone', which is neither"),
    ({"render": lambda *_: {HERE: ()}}, "render has a tuple for here, not a PointPlan"),
    (plan(collect="cat x"), "render has 'cat x' for collect on here: write one command"),
    ({"sightings": lambda *_: None}, "sightings raised TypeError"),
    ({"sightings": lambda *_: [{}]}, "sightings gave a dict ({}), not a Sighting"),
    ({"__init__": raising}, "is broken: KeyError: 'db'"),
])
def test_other_mistakes_are_one_line_too(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], says: str) -> None:
    found = entry(monkeypatch, **wrong)
    assert found.broken is not None and says in found.broken and "\n" not in found.broken, found.broken


def test_the_place_is_in_the_enforcers_own_file() -> None:
    class Deep(Mine):
        def compile(self, policy: Any, topology: Any) -> Any:
            return sorted([1, "x"])  # type: ignore[list-item]

    with pytest.raises(EnforcerError, match=r"\(test_contract\.py:\d+\)$"):
        Guarded("mine", Deep()).compile(POLICY, TOPOLOGY)


def test_sightings_that_fail_half_way_do_not_pass_for_fewer() -> None:
    class Halfway(Mine):
        def sightings(self, point: Any, lines: Any) -> Any:
            yield Sighting("here", 1.0, "tcp", "192.0.2.1", 1, "192.0.2.2", 2)
            raise ValueError("cut short")

    with pytest.raises(EnforcerError, match="sightings raised ValueError: cut short"):
        Guarded("mine", Halfway()).sightings(HERE, [b""])


def test_a_broken_arm_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = (EntryPoint(name, value, registry.GROUP) for name, value in
                 (("none", "enforcers.none:NoEnforcer"), ("bad", "not_there:Nothing")))
    monkeypatch.setattr(registry, "entry_points", lambda group: [bad, good])
    assert registry.names() == ("none", "bad")
    assert registry.load("none").name == "none"
    broken = next(e for e in catalogue.catalogue() if e.broken)
    assert broken.broken == "arm 'bad' (not_there:Nothing) is broken: ModuleNotFoundError: No module named 'not_there'"


def test_the_docs_name_every_verb_and_field() -> None:
    table = DOCS.partition("## The five verbs")[2]
    for kind in (Native, Point, PointPlan, Sighting, Feature):
        for field in kind.__dataclass_fields__:
            assert re.search(rf"`{field}`|`[^`]*\b{field}\b[^`]*`", table), (kind.__name__, field)
