"""`labctl probe` and `labctl explain` on a terminal: from what a lab answered to text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.analysis.stats import percentile


def probed(found: Mapping[str, Any]) -> str:
    """A line on what happened to each attempt; for several, the outcomes counted and the latency's median and p99."""
    seen = found["observations"]
    if len(seen) == 1:
        return f"{found['flow']} under {found['arm']}: {happened(seen[0])}"
    counts: dict[str, int] = {}
    for one in seen:
        words = one["outcome"] + (", arrived" if one["arrived"] and one["outcome"] != "OPEN" else "")
        counts[words] = counts.get(words, 0) + 1
    times = [one["total_us"] for one in seen if one["outcome"] == "OPEN"]
    took = ""
    if times:
        took = f"; open in p50 {percentile(times, 50):,.0f} µs, p99 {percentile(times, 99):,.0f} µs"
    told = ", ".join(f"{n} × {words}" for words, n in counts.items())
    return f"{found['flow']} under {found['arm']}: {len(seen)} attempts: {told}{took}"


def happened(seen: Mapping[str, Any]) -> str:
    """One observation in words."""
    if seen["outcome"] == "OPEN":
        return f"OPEN in {seen['total_us']:,.0f} µs"
    proof = "yet it arrived at the target" if seen["arrived"] else "nothing arrived at the target"
    return f"{seen['outcome']}, {proof}"


def show(found: Mapping[str, Any]) -> None:
    """The whole explanation: the policy's word, then a row an arm, then the native rules that the packets met."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    intended = found["intended"]
    console.print(f"[bold]{escape(found['flow'])}[/]")
    console.print(f"intended: [bold]{_word(intended['allow'])}[/], by "
                  f"{'the default' if intended['rule'] == 'default' else 'rule ' + repr(intended['rule'])}",
                  markup=True)
    if found["matching"]:
        console.print(escape(f"rules about it: {'; '.join(found['matching'])}"))
    console.print()
    console.print(_table(found))
    for arm, reason in found["unsupported"].items():
        console.print(escape(f"{arm} cannot run here: {reason}"))
    for one in found["arms"]:
        rules = (one["seen"] or {}).get("rules") or ()
        if rules:
            console.print(f"\nwhat its packets met under {one['arm']}:")
            for rule in rules:
                console.print(escape(f"  {rule}"))
    if not any(one["seen"] for one in found["arms"]):
        console.print("\nnothing was tried: stand a lab up to observe it (labctl up)")


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("arm", "expected", "because", "observed"):
        table.add_column(head, overflow="fold")
    for one in found["arms"]:
        seen = one["seen"]
        gap = one["allow"] is not found["intended"]["allow"]
        told = "not tried" if seen is None else happened(seen["observation"])
        table.add_row(escape(one["arm"]), _word(one["allow"]) + (" (gap)" if gap else ""), escape(one["because"]),
                      told + (" (DEFECT)" if _odd(one) else ""))
    return table


def _odd(one: Mapping[str, Any]) -> bool:
    if one["seen"] is None:
        return False
    seen = one["seen"]["observation"]
    opened = seen["outcome"] == "OPEN"
    return opened is not one["allow"] or (not one["allow"] and bool(seen["arrived"]))


def _word(allow: bool) -> str:
    return "allow" if allow else "deny"
