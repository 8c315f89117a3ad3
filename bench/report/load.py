"""What a run found under load, as rows of the comparison and as notes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from bench.instruments.held import MOST
from bench.report.summary import Arm, Figure, Load, Summary, differs, ends

BASELINE, BESIDE = "none", "beside"
NO_DIFFERENCE = "no measurable difference"
SHOWN = (("app_p50_us", "p50"), ("app_p99_us", "p99"), ("ttfb_p50_us", "first byte p50"))
BESIDE_SHOWN = {
    "crr_p90_us": "connection p90", "crr_p99_9_us": "connection p99.9", "rr_p90_us": "request p90",
    "rr_p99_9_us": "request p99.9", "http_per_s": "HTTP requests/s", "tls_per_s": "TLS handshakes/s",
    "held": "connections held", "udp_loss": "UDP loss", "udp_jitter_us": "UDP jitter",
    "cpu_hosts_per_conn_us": "CPU/connection: hosts", "cpu_daemons_per_conn_us": "… daemons",
    "cpu_softirq_per_conn_us": "… kernel (softirq)", "cpu_hosts_s_per_gb": "CPU/gigabit: hosts"}
Row = tuple[str, Callable[[str, Arm], str], str]


def rows(summary: Summary) -> Iterator[Row]:
    """Label, cell by arm, and what `none` against itself says; none where nothing was measured under load."""
    for point in _points(summary):
        for name, label in SHOWN:
            yield _row(summary, point, name, f"at {point.removesuffix('%')} % load: {label}")
    for name, label in BESIDE_SHOWN.items():
        if any(name in _of(arm.load, BESIDE) for arm in summary.arms.values()):
            yield _row(summary, BESIDE, name, label)
    if any(arm.load and arm.load.windows for arm in summary.arms.values()):
        yield "load windows INVALID", lambda _, arm: _spoilt(arm.load), ""


def notes(summary: Summary) -> list[str]:
    """The knee, and why windows do not count."""
    found = []
    if summary.knee:
        rate = "no rate held" if summary.knee.rate is None else f"{summary.knee.rate:,.0f} requests/s hold"
        why = f"; {summary.knee.failed:,.0f}/s do not: {summary.knee.why[0]}" if (
            summary.knee.failed is not None and summary.knee.why) else ""
        found.append(f"the knee, with nothing enforced: {rate}{why}")
    reasons = {name: set(arm.load.reasons) for name, arm in summary.arms.items() if arm.load}
    common = set.intersection(*reasons.values()) if reasons else set()
    found += [f"under load: {reason}" for reason in sorted(common)]
    for name, own in reasons.items():
        found += [f"{name} under load: {reason}" for reason in sorted(own - common)[:1]]
    return found


def _points(summary: Summary) -> list[str]:
    names = {name for arm in summary.arms.values() if arm.load for name in arm.load.points if name != BESIDE}
    return sorted(names, key=lambda name: float(name.removesuffix("%")))


def _of(load: Load | None, point: str) -> dict[str, Figure]:
    return load.points.get(point, {}) if load else {}


def _row(summary: Summary, point: str, name: str, label: str) -> Row:
    again = _of(summary.aa.load, point).get(name)

    def cell(arm_name: str, arm: Arm) -> str:
        one = _of(arm.load, point).get(name)
        if one is None or one.value is None:
            return "–"
        return quantity(name, one.value) if arm_name == BASELINE or one.ratio is None else ratio(name, one, again)
    return label, cell, _noise(again)


def ratio(name: str, one: Figure, again: Figure | None) -> str:
    """A ratio to `none` with its interval; a difference only beyond what `none` shows against itself."""
    low, high = ends(one)
    if one.ratio is None:
        return "–"
    if low is None or high is None:
        return f"×{one.ratio:.2f} (n={one.n}: no interval)"
    least = _half(again)
    if not differs(one) or (least is not None and abs(math.log(one.ratio)) <= least):
        return f"[dim]{NO_DIFFERENCE}[/dim]"
    better = (one.ratio > 1) == higher_is_better(name)
    return f"[{'green' if better else 'red'}]×{one.ratio:.2f}[/] \\[{low:.2f}–{high:.2f}]"


def higher_is_better(name: str) -> bool:
    return name.endswith(("_per_s", "_bps")) or name == "held"


def quantity(name: str, value: float) -> str:
    """A figure with the unit that its name ends in."""
    if name == "held":
        return f"≥ {value:,.0f}" if value >= MOST else f"{value:,.0f}"
    if name == "udp_loss":
        return f"{value * 100:.2f} %"
    if name.endswith("_s_per_gb"):
        return f"{value * 1e3:.1f} ms"
    if name.endswith("_bps"):
        return f"{value / 1e9:.2f} Gb/s"
    if name.endswith("_us"):
        return f"{value / 1000:.2f} ms" if value >= 1000 else f"{value:.1f} µs"
    return f"{value:,.0f}{'/s' if name.endswith('_per_s') else ''}"


def _half(again: Figure | None) -> float | None:
    if again is None or again.low is None or again.high is None or again.low <= 0:
        return None
    return math.log(again.high / again.low) / 2


def _noise(again: Figure | None) -> str:
    half = _half(again)
    return "–" if half is None else f"± {math.expm1(half) * 100:.0f} %"


def _spoilt(load: Load | None) -> str:
    return "–" if load is None else f"{load.invalid} of {load.windows}"
