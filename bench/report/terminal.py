"""The comparison on a terminal: one table with the arms as columns, then a plain sentence per arm."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.report import load
from bench.report.lateral import EVERYTHING
from bench.report.summary import FIELDS, FIGURES, Arm, Figure, FigureName, Summary, Until, differs, ends

BASELINE = "none"
NO_DIFFERENCE = "no measurable difference"
LABELS: dict[FigureName, str] = {
    "crr_rate": "connections/s (CRR)", "crr_p50_us": "connection p50", "crr_p99_us": "connection p99",
    "rr_p50_us": "request p50 (RR)", "rr_p99_us": "request p99 (RR)", "bulk_bps": "bulk throughput",
    "cpu_per_conn_us": "CPU per connection", "app_p50_us": "application p50", "app_p99_us": "application p99"}
HIGHER_IS_BETTER = frozenset({"crr_rate", "bulk_bps"})
_SPOKEN: dict[FigureName, str] = {
    "crr_rate": "new connections per second", "cpu_per_conn_us": "CPU per connection",
    "rr_p50_us": "latency on an established connection", "app_p50_us": "application latency"}
MOST_NOTES = 4
MOST_FINDINGS = 5  # shown; the summary has more, the raw data all
Cell = Callable[[str, Arm], str]


def show(summary: Summary, console: Console | None = None) -> None:
    """Print the comparison. Colour only on a terminal and never with NO_COLOR (https://no-color.org), as rich does."""
    console = console or Console(highlight=False)
    for line in headlines(summary):
        console.print(line)
    console.print()
    console.print(table(summary))
    console.print()
    for arm, said in sentences(summary):
        console.print(f"[bold]{escape(arm)}:[/bold] {escape(said)}")
        for line in details(arm, summary.arms[arm]):
            console.print(f"  {escape(line)}")
    for note in (*load.notes(summary), *summary.notes[:MOST_NOTES]):
        console.print(f"note: {escape(note)}")
    if len(summary.notes) > MOST_NOTES:
        console.print(f"{len(summary.notes) - MOST_NOTES} more notes are in summary.json")


def compare_text(summary: Summary, width: int = 100) -> str:
    """What `show` prints on a terminal of `width` columns, without colour and without trailing blanks."""
    out = io.StringIO()
    show(summary, Console(file=out, width=width, no_color=True, force_terminal=False, highlight=False, record=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def headlines(summary: Summary) -> list[str]:
    """What a reader must know before the figures, as rich markup: how the run went and whether to trust it."""
    size = f"{summary.blocks} blocks" if summary.blocks else "no cost measured"
    quick = ", [yellow]quick: fewer blocks, wider intervals[/yellow]" if summary.quick else ""
    lines = [f"[bold]{escape(summary.scenario)}[/bold]: seed {summary.seed}, {size}, {summary.duration_s:.0f} s{quick}"]
    if summary.until:
        lines.append(_until(summary.until))
    if summary.interrupted:
        lines.append("[yellow]interrupted: what is shown was measured until then[/yellow]")
    lines += [f"[bold red]INVALID[/bold red] {escape(reason)}" for reason in summary.invalid]
    if summary.aa.differs:
        names = ", ".join(LABELS[name] for name in summary.aa.differs)
        lines.append(f"[bold yellow]A/A differs[/bold yellow] ({names}): `none` is not equal to itself, "
                     "so this run names no winner on cost")
    return lines


def _until(one: Until) -> str:
    target = f"intervals of connection p50 within {_percent(one.target)}"
    if one.reached:
        return f"{target}: reached"
    seen = f"{escape(one.arm)} is within {_percent(one.widest)}" if one.widest is not None else "there is no interval"
    more = f"; it takes about {one.needed:,} blocks" if one.needed else ""
    return f"[yellow]{target}: not reached in {one.budget_s:.0f} s[/yellow], {seen}{more}"


# --- the table --------------------------------------------------------------------------------


def table(summary: Summary) -> Table:
    """Arms as columns; a section each for verdicts, cost against `none`, telemetry, attack, and what it took."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", collapse_padding=True)
    grid.add_column("", no_wrap=True)
    for name in summary.arms:
        grid.add_column(escape(name), min_width=9)
    aa = bool(summary.aa.cost or summary.aa.load)
    if aa:
        grid.add_column("A/A sees")
    for section in (_verdict_rows(), _cost_rows(summary), load.rows(summary), _seen_rows(), _attack_rows(summary),
                    _effort_rows()):
        for label, cell, note in section:
            cells = [_guarded(cell, name, arm) for name, arm in summary.arms.items()]
            if any(text != "–" for text in cells):
                grid.add_row(label, *cells, *([note] if aa else []))
        grid.add_section()
    return grid


def _guarded(cell: Cell, name: str, arm: Arm) -> str:
    return "–" if arm.unsupported is not None else cell(name, arm)


Row = tuple[str, Cell, str]


def _verdict_rows() -> Iterable[Row]:
    yield "leaks", lambda _, a: _of(a.leaks, a.denied), ""
    yield "breaks", lambda _, a: _of(a.breaks, a.allowed), ""
    yield "gaps (by design)", lambda _, a: _count(a.gaps), ""
    yield "defects", lambda _, a: _alarm(a.defects), ""
    yield "inconclusive", lambda _, a: _count(a.inconclusive), ""
    yield "later flows broken", _unforeseen, ""
    yield "spoofed, arrived", _spoofed, ""


def _cost_rows(summary: Summary) -> Iterable[Row]:
    for name in FIGURES:
        yield LABELS[name], _cost_cell(name, noise(summary, name)), _aa_cell(summary, name)


def _seen_rows() -> Iterable[Row]:
    for field in FIELDS:
        yield f"sees {field}", lambda _, a, f=field: _recall(a, f), ""  # type: ignore[misc]


def _attack_rows(summary: Summary) -> Iterable[Row]:
    if not any(arm.attack for arm in summary.arms.values()):
        return
    yield "attacker's goal", lambda _, a: _goal(a), ""
    yield "blast radius", lambda _, a: "–" if a.attack is None else _percent(a.attack.blast_radius), ""
    yield "… no dropped binary", lambda _, a: _alone(a), ""
    yield "… mean, every foothold", lambda _, a: _everywhere(a), ""


def _effort_rows() -> Iterable[Row]:
    yield "native rules", lambda n, a: "–" if n == BASELINE or a.policy is None else f"{a.policy.native_rules:,}", ""
    yield "deployed in", lambda n, a: "–" if n == BASELINE or a.deploy is None else f"{a.deploy.seconds:.1f} s", ""
    yield "placed per host", lambda _, a: "–" if a.deploy is None else _bytes(a.deploy.bytes_per_host), ""
    yield "memory per host", lambda _, a: "–" if a.footprint is None else _bytes(a.footprint.host_rss_bytes), ""
    yield "memory off hosts", lambda _, a: "–" if a.footprint is None else _bytes(a.footprint.off_host_rss_bytes), ""
    yield "CPU on hosts", lambda n, a: _cpu(n, a.footprint.host_cpu_s if a.footprint else None), ""
    yield "CPU off hosts", lambda n, a: _cpu(n, a.footprint.off_host_cpu_s if a.footprint else None), ""
    yield "CPU in programs", lambda n, a: _cpu(n, a.footprint.kernel_s if a.footprint else None), ""
    yield "in force after", _converged, ""


# --- cells ------------------------------------------------------------------------------------


def _cost_cell(name: FigureName, least: float | None) -> Cell:
    def cell(arm_name: str, arm: Arm) -> str:
        one = arm.cost.get(name)
        if one is None or one.n == 0:
            return "–"
        return quantity(name, one.value) if arm_name == BASELINE else cost_text(name, one, least)
    return cell


def noise(summary: Summary, name: FigureName) -> float | None:
    """By how much `none` may differ from itself: half its 95 % interval, on the logarithm. None: not measured."""
    one = summary.aa.cost.get(name)
    if one is None or one.low is None or one.high is None or one.low <= 0:
        return None
    return math.log(one.high / one.low) / 2


def distinct(one: Figure, least: float | None = None) -> bool:
    """Whether to speak of a difference: the family's interval excludes 1, and it is more than A/A's own noise.

    The second, because intervals over a few blocks are now and then narrow by luck.
    """
    return differs(one) and (least is None or one.ratio is None or abs(math.log(one.ratio)) > least)


def cost_text(name: FigureName, one: Figure, least: float | None = None) -> str:
    """A ratio with its interval, or that there is no measurable difference; `least`: see `distinct`."""
    if one.ratio is None:
        return "–"
    low, high = ends(one)
    if low is None or high is None:
        return f"×{one.ratio:.2f} (n={one.n}: no interval)"
    if not distinct(one, least):
        return f"[dim]{NO_DIFFERENCE}[/dim]"
    better = (one.ratio > 1) == (name in HIGHER_IS_BETTER)
    colour = "green" if better else "red"
    # Two decimals, but never so few that an interval seems to touch 1 when it does not.
    digits = 2 if min(abs(low - 1), abs(high - 1)) >= 0.005 else 3
    return f"[{colour}]×{one.ratio:.{digits}f}[/{colour}] \\[{low:.{digits}f}–{high:.{digits}f}]"


def _aa_cell(summary: Summary, name: FigureName) -> str:
    """The smallest effect this run could see in this figure, or by how much `none` differed from itself."""
    one = summary.aa.cost.get(name)
    if one is None or one.ratio is None:
        return "–"
    if name in summary.aa.differs:
        return f"[yellow]×{one.ratio:.2f}![/yellow]"
    smallest = summary.mde.get(name)
    return "–" if smallest is None else f"≥ {_percent(smallest)}"


def quantity(name: FigureName, value: float | None) -> str:
    """A figure with its unit, to three digits or so."""
    if value is None:
        return "–"
    if name == "bulk_bps":
        return f"{value / 1e9:.2f} Gb/s"
    if name == "crr_rate":
        return f"{value:,.0f}/s"
    return f"{value / 1000:.2f} ms" if value >= 1000 else f"{value:.1f} µs"


def _of(found: int | None, n: int | None) -> str:
    """Findings of n; none of n is not zero but at most 3/n (rule of three, 95 %)."""
    if found is None:
        return "–"
    if n is None:
        return f"{found:,}"
    if found == 0 and n:
        return f"0 of {n:,} (≤ 3/{n:,})"
    return f"{found:,} of {n:,}"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _alarm(value: int | None) -> str:
    return _count(value) if not value else f"[bold red]{value:,}[/bold red]"


def _percent(share: float) -> str:
    """A share in per cent; nearly all is never written as all, nor nearly nothing as nothing."""
    if 0.9995 <= share < 1:
        return "99.9 %"
    if 0 < share < 0.0005:
        return "0.1 %"
    text = f"{share * 100:.1f}"
    return f"{text.removesuffix('.0')} %"


def _recall(arm: Arm, field: str) -> str:
    one = arm.visibility.get(field)  # type: ignore[call-overload]
    return "–" if one is None or one.recall is None else _percent(one.recall)


def _goal(arm: Arm) -> str:
    if arm.attack is None:
        return "–"
    if not arm.attack.reached:
        return "not reached"
    after = arm.attack.time_to_goal_s
    if after is None:
        return "reached"
    return f"reached in {after:.1f} s" if after >= 1 else f"reached in {after * 1000:.0f} ms"


def _alone(arm: Arm) -> str:
    return "–" if arm.attack is None or arm.attack.blast_radius_by_process is None else _percent(
        arm.attack.blast_radius_by_process)


def _everywhere(arm: Arm) -> str:
    """From the matrix, with everything that listens taken as vulnerable: what `labctl attack` shows in full."""
    return "–" if arm.lateral is None else _percent(arm.lateral.spread[EVERYTHING].mean)


def _unforeseen(_name: str, arm: Arm) -> str:
    return "–" if arm.unforeseen is None else _of(arm.unforeseen.broken, arm.unforeseen.n)


def _spoofed(_name: str, arm: Arm) -> str:
    return "–" if arm.spoofing is None else f"{arm.spoofing.arrived:,} of {arm.spoofing.n:,}"


def _converged(_name: str, arm: Arm) -> str:
    if arm.convergence is None:
        return "–"
    last = [t for t in (arm.convergence.last_leak_s, arm.convergence.last_break_s) if t is not None]
    return f"{max(last) * 1000:.0f} ms" if last else "–"


def _bytes(value: float | None) -> str:
    if value is None:
        return "–"
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def _cpu(name: str, seconds: float | None) -> str:
    return "–" if name == BASELINE or seconds is None else f"{seconds:.2f} s"


# --- sentences --------------------------------------------------------------------------------


def sentences(summary: Summary) -> list[tuple[str, str]]:
    """One plain sentence per arm, as (arm, sentence)."""
    return [(name, _sentence(summary, name, arm)) for name, arm in summary.arms.items()]


def _sentence(summary: Summary, name: str, arm: Arm) -> str:
    if arm.unsupported is not None:
        return f"not run on this machine: {arm.unsupported}."
    parts = [_passes(name, arm), "" if name == BASELINE else _costs(summary, arm), _sees(name, arm), _attacked(arm)]
    return "; ".join(part for part in parts if part) + "."


def details(name: str, arm: Arm) -> list[str]:
    """Why there are gaps, what was found wrong, and what was not seen, a line each; nothing of the baseline."""
    if name == BASELINE:
        return []
    gaps = [f"gap, {_flows(g.flows)}: {g.reason}" for g in arm.gap_classes]
    if arm.spoofing and arm.spoofing.arrived:
        word = "defect" if arm.spoofing.defects else "gap"
        gaps.append(f"{word}, {arm.spoofing.arrived} of {arm.spoofing.n} datagrams in another's name: such as "
                    f"{arm.spoofing.example}")
    strained = [f"strained: {_flows(arm.strained)} failed while all were tried at once, and opened alone"
                ] if arm.strained else []
    return [*arm.findings[:MOST_FINDINGS], *strained, *gaps, *(f"blind spot: {spot}" for spot in arm.blind_spots)]


def _passes(name: str, arm: Arm) -> str:
    if arm.leaks is None or arm.breaks is None:
        return "verdicts were not measured"
    leaks = f"lets {arm.leaks:,} of {arm.denied:,} denied flows through" if arm.leaks and arm.denied else (
        "lets no denied flow through" if not arm.leaks else f"lets {arm.leaks:,} denied flows through")
    breaks = f"breaks {arm.breaks:,} that are allowed" if arm.breaks else "breaks nothing that is allowed"
    if arm.strained:
        breaks += f" ({arm.strained:,} opened only when tried alone)"
    if arm.defects:
        return f"{leaks} and {breaks}; {_flows(arm.defects)} did not behave as the arm says they would"
    # without a defect every leak and every break is one that the arm announced
    by_design = ", all by design" if name != BASELINE and (arm.leaks or arm.breaks) else ""
    return f"{leaks} and {breaks}{by_design}"


def _costs(summary: Summary, arm: Arm) -> str:
    if summary.invalid:
        return "its cost is not judged, the measurement is invalid"
    if summary.aa.differs:
        return "its cost is not judged, since A/A differs"
    shown = {name: arm.cost[name] for name in _SPOKEN if name in arm.cost and arm.cost[name].low is not None}
    if not shown:
        return "its cost was not measured"
    told = [f"{_more_or_less(name, one)} {_SPOKEN[name]}" for name, one in shown.items()
            if distinct(one, noise(summary, name))]
    return f"costs: {', '.join(told)}" if told else f"{NO_DIFFERENCE} in cost"


def _more_or_less(name: FigureName, one: Figure) -> str:
    assert one.ratio is not None
    less = "fewer" if name == "crr_rate" else "less"
    return f"{_percent(abs(one.ratio - 1))} {'more' if one.ratio > 1 else less}"


def _sees(name: str, arm: Arm) -> str:
    flow, process = arm.visibility.get("flow"), arm.visibility.get("process")
    if name == BASELINE or flow is None or flow.recall is None:
        return ""
    if flow.recall == 0:
        return "its telemetry saw none of the flows"
    named = "" if process is None or process.recall is None else f", the process of {_percent(process.recall)}"
    return f"its telemetry saw {_percent(flow.recall)} of the flows{named}"


def _attacked(arm: Arm) -> str:
    if arm.attack is None:
        return ""
    goal = "and reached the goal" if arm.attack.reached else "and did not reach the goal"
    return f"the attacker took {_percent(arm.attack.blast_radius)} of the other hosts {goal}"


def _flows(n: int) -> str:
    return f"{n:,} flow{'s' if n != 1 else ''}"
