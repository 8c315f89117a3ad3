"""How far an attacker gets: its part of summary.json, and the table and sentences of `labctl attack`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.analysis import paths, survival
from bench.analysis.paths import EVERYTHING

__all__ = ["EVERYTHING", "Lateral", "advice", "middle", "multiple", "show", "spread", "table", "way"]

MOST = 6  # of a list in a sentence


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Model):
    """The blast radius of every foothold under one rule of what is vulnerable."""

    footholds: int = Field(description="footholds: every process of every host, a dropped binary where none runs")
    mean: float = Field(description="mean share of the other hosts that they lead to, 0..1")
    p95: float = Field(description="its 95th percentile over the footholds")
    worst: float = Field(description="its largest")
    worst_at: str = Field(description="a foothold that leads to so many, as host/process")
    weighted_mean: float = Field(description="mean share of the value: label `value`, a number, or crown-jewel for 10; "
                                             "hosts without one count 1")
    weighted_worst: float = Field(description="the largest share of the value")


class Way(_Model):
    """What lies between the scenario's foothold and its goal, with what is declared vulnerable."""

    hops: int | None = Field(description="fewest exploits to a goal; null: out of reach")
    shortest: tuple[str, ...] = Field(description="the flows of such a way")
    disjoint: int | None = Field(description="ways that share no process but the ends'; null: none, or a direct flow")
    mend: tuple[str, ...] | None = Field(
        description="fewest processes (host/process) whose mending cuts every way, the goal's own excepted; null: the "
                    "foothold has a flow to the goal itself")
    close: tuple[str, ...] = Field(
        description="fewest flows whose closing cuts every way, with the rule that opens each")


class Middle(_Model):
    """A median over seeded campaigns (Kaplan-Meier; campaigns that never got there are censored)."""

    median: float | None = Field(description="null: fewer than half got there")
    low: float | None = Field(description="lower end of its 95 % interval")
    high: float | None = Field(description="upper end; null: beyond what was seen")
    n: int = Field(description="campaigns")
    reached: int = Field(description="of these, got to the goal")


class Multiple(_Model):
    """A median against that of `none`, over the same seeds."""

    ratio: float | None = Field(description="how many times as much; null: never reached, or nothing to compare with")
    low: float | None = Field(description="lower end of the 95 % interval (bootstrap over seeds); null: infinite")
    high: float | None = Field(description="upper end; null: infinite")
    never: bool = Field(description="fewer than half of the campaigns got to the goal, though `none`'s did")


class Difficulty(_Model):
    """How hard the goal is to reach: seeded campaigns over the matrix, one attempt at a time, at random."""

    attempts: Middle = Field(description="attempts to the goal")
    attempts_multiple: Multiple = Field(description="attempts against `none`")


class Lateral(_Model):
    """What the matrix of one arm offers an attacker. Computed from it, not from the one live attack."""

    spread: dict[str, Spread] = Field(description="blast radius from every foothold, by rule of what is vulnerable")
    way: Way | None = Field(description="from the scenario's foothold to its goal; null: it has no attack")
    difficulty: Difficulty | None = Field(description="how hard the goal is to reach; null likewise")


# --- made of what the analysis found ----------------------------------------------------------


def spread(found: paths.Spread) -> Spread:
    return Spread(**{name: getattr(found, name) for name in Spread.model_fields})


def way(found: paths.Way, rules: Sequence[str]) -> Way:
    """`rules`: for each flow of `found.close` the rule that allows it; "" where the policy denies it."""
    close = tuple(f"{flow} ({f'rule {rule}' if rule else 'denied by the policy, yet open'})"
                  for flow, rule in zip(found.close, rules, strict=True))
    return Way(hops=found.hops, shortest=tuple(map(str, found.shortest)), disjoint=found.disjoint, mend=found.mend,
               close=close)


def middle(found: survival.Middle) -> Middle:
    return Middle(**{name: getattr(found, name) for name in Middle.model_fields})


def multiple(found: survival.Multiple) -> Multiple:
    return Multiple(**{name: getattr(found, name) for name in Multiple.model_fields})


# --- on a terminal ----------------------------------------------------------------------------


def show(arms: Mapping[str, Lateral], console: Console) -> None:
    """The table, arms as columns, then what to mend, a few lines an arm."""
    console.print(table(arms))
    for name, arm in arms.items():
        for line in advice(arm):
            console.print(f"[bold]{escape(name)}:[/bold] {escape(line)}")


def table(arms: Mapping[str, Lateral]) -> Table:
    """Blast radius by rule of what is vulnerable, the way to the goal, and how hard it is."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", collapse_padding=True)
    grid.add_column("", no_wrap=True)
    for name in arms:
        grid.add_column(escape(name), min_width=9)
    for rule in dict.fromkeys(rule for arm in arms.values() for rule in arm.spread):
        spreads = [arm.spread[rule] for arm in arms.values()]
        grid.add_row(f"blast radius, {rule}", *[""] * len(arms))
        grid.add_row("  mean of every foothold", *(_percent(one.mean) for one in spreads))
        grid.add_row("  95th percentile", *(_percent(one.p95) for one in spreads))
        grid.add_row("  worst", *(_percent(one.worst) for one in spreads))
        grid.add_row("  mean, weighted by value", *(_percent(one.weighted_mean) for one in spreads))
    grid.add_section()
    for label, text in (("hops to the goal", _hops), ("ways with nothing in common", _disjoint),
                        ("attempts to the goal", _attempts), ("… times those of none", _attempts_multiple)):
        cells = [text(arm) for arm in arms.values()]
        if any(cell != "–" for cell in cells):
            grid.add_row(label, *cells)
    return grid


def advice(arm: Lateral) -> Iterable[str]:
    """What to mend or close first, in words; nothing where the goal is out of reach."""
    one = arm.way
    if one is None:
        return
    if one.hops is None:
        yield "the goal is out of reach of the scenario's foothold"
        return
    yield f"shortest way: {'; '.join(one.shortest)}"
    if one.mend:
        yield f"mend first: {_some(one.mend)} (no way is left then)"
    yield f"or close: {_some(one.close)}"


def _some(items: Sequence[str]) -> str:
    more = f", and {len(items) - MOST} more" if len(items) > MOST else ""
    return "; ".join(items[:MOST]) + more


def _percent(share: float) -> str:
    return f"{share * 100:.1f}".removesuffix(".0") + " %"


def _hops(arm: Lateral) -> str:
    return "–" if arm.way is None else "out of reach" if arm.way.hops is None else str(arm.way.hops)


def _disjoint(arm: Lateral) -> str:
    if arm.way is None or arm.way.hops is None:
        return "–"
    return "direct" if arm.way.disjoint is None else str(arm.way.disjoint)


def _attempts(arm: Lateral) -> str:
    return "–" if arm.difficulty is None else _middle(arm.difficulty.attempts)


def _middle(one: Middle) -> str:
    if one.median is None:
        return f"reached by {one.reached} of {one.n}"
    ends = [f"{end:,.0f}" if end is not None else "…" for end in (one.low, one.high)]
    return f"{one.median:,.0f} \\[{ends[0]}–{ends[1]}], n={one.n}"


def _attempts_multiple(arm: Lateral) -> str:
    return "–" if arm.difficulty is None else _multiple(arm.difficulty.attempts_multiple)


def _multiple(one: Multiple) -> str:
    if one.never:
        return "never"
    if one.ratio is None:
        return "–"
    low, high = (f"{end:,.3g}" if end is not None else "∞" for end in (one.low, one.high))
    return f"×{one.ratio:,.3g} \\[{low}–{high}]"
