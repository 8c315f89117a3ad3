"""What `labctl failure` found, as a table a person reads."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.analysis.exposure import Exposure
from bench.analysis.failures import Report, Row, Side

_WORDS = {"holds": "[green]holds[/]", "opens": "[bold red]opens[/]", "closes": "[yellow]closes[/]",
          "opens and closes": "[bold red]both[/]", "guards nothing": "–"}
HEADS = ("leak-seconds", "outage-seconds", "gaps", "repair", "fails")


def show(report: Report, console: Console) -> None:
    """The table, a fault after the other, and what it was made of."""
    denied = sum(not allow for _flow, allow in report.flows)
    console.print(f"{report.scenario}: seed {report.seed}; watched {len(report.flows) - denied} allowed and {denied} "
                  f"denied flows, each tried {report.design.rate:g} times a second")
    for fault in dict.fromkeys(row.fault for row in report.rows):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left",
                      title=f"{fault}: {_about(fault, report)}")
        table.add_column("arm", no_wrap=True)
        for head in HEADS:
            table.add_column(head, no_wrap=True)
        rows = [row for row in report.rows if row.fault == fault]
        for row in rows:
            table.add_row(*cells(row))
        console.print(table)
    for name, reason in report.unsupported.items():
        console.print(f"{name}: unsupported: {escape(reason)}")
    for row in report.rows:
        if row.why:
            console.print(f"{_name(row)}, {row.fault}: {escape(row.why)}")
    for note in report.notes:
        console.print(f"note: {escape(note)}")
    console.print(*_footnotes(report), sep="\n")


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    if row.judged is None or row.judged.invalid:
        word = "invalid" if row.judged else "n/a"
        return (_name(row), *["–"] * (len(HEADS) - 1), word)
    found = row.judged
    design = f"{found.by_design.hit}/{found.by_design.flows}" if found.by_design.flows else "–"
    return (_name(row), side(found.leak), side(found.outage), design, f"{found.repair_s:.2f}", _WORDS[found.word])


def side(found: Side) -> str:
    """Seconds in which any flow was so, with bounds, and how many of how many flows ever were."""
    return f"{seconds(found.any) if found.hit else '0'} {found.hit}/{found.flows}" if found.flows else "–"


def seconds(found: Exposure) -> str:
    """The estimate with its bounds, where rounding leaves any."""
    low, middle, high = (f"{value:.2f}" for value in (found.low, found.seconds, found.high))
    return middle if low == high else rf"{middle} \[{low}–{high}]"


def _name(row: Row) -> str:
    return row.arm if row.way == "as it comes" else f"{row.arm}, {row.way.removeprefix('fails ')}"


def _about(fault: str, report: Report) -> str:
    design = report.design
    where = f" at {design.point}" if design.point else ""
    return {
        "kill": f"all that runs of the arm{where} is killed, and started again {design.hold_s:g} s later",
        "restart": f"all that runs of the arm{where} is killed, and started again at once",
        "overload": f"{design.flood:,.0f} new flows a second for {design.hold_s:g} s, half of them denied",
        "partition": f"the policy changes, and the points{where} hear of it {design.hold_s:g} s later",
        "unplug": f"the points' links{where} are down for {design.hold_s:g} s",
    }[fault]


def _footnotes(report: Report) -> Iterator[str]:
    gaps = [row.judged.resolution_s for row in report.rows if row.judged and row.judged.resolution_s]
    if gaps:
        yield (f"resolution: {1 / report.design.rate * 1000:.0f} ms between two tries of a flow, at most "
               f"{max(gaps) * 1000:.0f} ms; what is shorter may have gone unseen")
    yield "leak: the policy denies it, the arm claims to, and it arrived; outage: allowed, and not open within " \
          f"{report.timeout_s:g} s"
    yield (r"seconds from the fault to the end in which any watched flow was so \[certain–possible], and how many "
           "flows of how many ever were; gaps: denied flows open by design; repair: until its points "
           "were ready; fails: what that did to new flows; open, closed: set to fail so")
