"""The curves of `labctl bottleneck`: a table, a figure, sentences."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from bench.analysis.crowding import Curve
from bench.report.console import console
from bench.report.graph import COLOURS


def show(curves: Sequence[Curve], unsupported: Mapping[str, str], broken: Sequence[str], where: Path, *,
         as_json: Mapping[str, Any] | None) -> None:
    """Print everything for a person, or `as_json` alone."""
    if as_json is not None:
        print(json.dumps(as_json, indent=1, default=str))
        return
    out = console()
    out.print(table(curves))
    for line in sentences(curves, unsupported, broken):
        out.print(escape(line))
    out.print(f"\nsaved in {where}", highlight=False)


def table(curves: Sequence[Curve]) -> Table:
    """Achieved connections a second and p99, by pairs; what an arm does not bear is dimmed."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("pairs", justify="right")
    made.add_column("offered/s", justify="right")
    for one in curves:
        made.add_column(escape(one.arm), justify="right")
    for at, step in enumerate(curves[0].steps if curves else ()):
        cells = []
        for one in curves:
            other = one.steps[at]
            text = f"{other.achieved:,.0f}/s  {other.p99_us / 1e3:,.1f} ms"
            cells.append(text if other.borne else f"[dim]{text}[/]")
        made.add_row(str(step.pairs), f"{step.offered:,.0f}", *cells)
    return made


def sentences(curves: Sequence[Curve], unsupported: Mapping[str, str], broken: Sequence[str]) -> list[str]:
    """Where each arm bends, in words."""
    told = []
    for one in curves:
        tried = one.steps[-1].pairs
        where = (f"bears {one.knee} pairs; of more it achieves at most {one.capacity:,.0f} connections a second"
                 if one.bends else f"bears all {tried} pairs that were tried: no knee was reached")
        told.append(f"{one.arm}: {where}.")
    told += [f"{name}: not run on this machine: {reason}." for name, reason in unsupported.items()]
    return told + [f"{name}: its policy was not in force beside a window: do not use its figures." for name in broken]


def drawn(curves: Sequence[Curve]) -> str:
    """An SVG: what is achieved above, the slowest hundredth below, over what is offered; the knee as a ring."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "labctl", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.2, 6.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for one, colour in zip(curves, COLOURS * (1 + len(curves) // len(COLOURS)), strict=False):
            offered = [step.offered for step in one.steps]
            for axes, scale, names in ((above, 1.0, ("achieved", "achieved_low", "achieved_high")),
                                       (below, 1e3, ("p99_us", "p99_low_us", "p99_high_us"))):
                lines = [[getattr(step, name) / scale for step in one.steps] for name in names]
                axes.plot(offered, lines[0], color=colour, marker=".", label=one.arm)
                axes.fill_between(offered, lines[1], lines[2], color=colour, alpha=0.15, linewidth=0)
                ring = [at for at, step in enumerate(one.steps) if step.pairs == one.knee and one.bends]
                axes.plot([offered[at] for at in ring], [lines[0][at] for at in ring], "o", color=colour, markersize=10,
                          fillstyle="none")
        above.set_ylabel("connections achieved a second")
        below.set_ylabel("p99 from when due, ms")
        below.set_xlabel("connections offered a second, all pairs together")
        below.set_yscale("log")
        if curves:
            above.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
