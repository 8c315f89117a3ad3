"""A calibration, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the noise floor by figure, the instruments' own cost, and the knee."""
    noise, costs, knee = found["noise"], found["instruments"], found["knee"]
    table = Table("figure", "value", "none / none", "sees from", "goes with the yardstick", box=None, padding=(0, 2))
    for name, one in noise["figures"].items():
        table.add_row(name, _number(one["value"]), _interval(one), _share(one["detectable"]),
                      _number(noise["yardstick"].get(name)))
    console.print(f"noise floor: nothing enforced, {noise['blocks']} blocks")
    console.print(table)
    if noise["differs"]:
        console.print(f"none differs from itself in: {', '.join(noise['differs'])}")
    for reason in noise["invalid"]:
        console.print(f"not valid: {reason}")
    probe, locust, yardstick = costs["probe"], costs["locust"], costs["yardstick"]
    console.print(f"\nprobe: {probe['per_s']:,.0f} attempts/s; each {probe['labctl_cpu_us']:.0f} µs of labctl's CPU "
                  f"and {_number(probe['hosts_cpu_us'])} µs of the hosts' (n = {probe['n']})")
    console.print(f"locust: a request takes {locust['generator_cpu_us']:,.0f} µs of its generator's CPU "
                  f"(n = {locust['requests']}, {locust['rate']:.0f} a second)")
    for reason in locust["invalid"]:
        console.print(f"  not valid: {reason}")
    console.print(f"yardstick: a reading takes {yardstick['takes_us']:,.0f} µs, says {yardstick['reads_us']:.0f} µs; "
                  f"between its 10th and 90th percentile lie {yardstick['spread']:.0%} (n = {yardstick['n']})")
    console.print(_knee(knee))


def _knee(knee: Mapping[str, Any]) -> str:
    if knee["rate"] is None:
        return f"knee: no rate held; {'; '.join(knee['why'])}"
    if knee["failed"] is None:
        return f"knee: at least {knee['rate']:.0f} requests/s ({len(knee['steps'])} steps)"
    return (f"knee: {knee['rate']:.0f} requests/s hold, {knee['failed']:.0f} do not: {'; '.join(knee['why'])} "
            f"({len(knee['steps'])} steps)")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _interval(one: Mapping[str, Any]) -> str:
    if one["low"] is None:
        return f"×{one['ratio']:.3f}"
    return f"×{one['ratio']:.3f} [{one['low']:.3f}–{one['high']:.3f}]"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
