"""What about this machine spoils figures: read once, judged by stated limits.

`facts` reads, `judge` says what it means; so that a result keeps the first and any reader can redo the second.
Works inside a run's namespaces: what only the machine's own network namespace tells is asked of the kernel otherwise.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import bpf_probe

SAMPLE_S = 0.3
BUSY_SHARE, STEAL_SHARE = 0.25, 0.02
PRESSURE_PERCENT = 20.0
FREE_MEMORY_BYTES = 512 << 20
FULL_SHARE = 0.5
FEW_CPUS = 2
_CLOCKS = Path("/sys/devices/system/clocksource/clocksource0")
_CPUS = Path("/sys/devices/system/cpu")
_GUESTS = {"docker": "/.dockerenv", "podman": "/run/.containerenv"}


@dataclass(frozen=True, slots=True)
class Condition:
    """One fact about the machine, in words; where it `spoils` figures, `effect` says how and `remedy` what to do."""

    name: str
    value: str
    spoils: bool
    effect: str = ""
    remedy: str = ""


# --- reading --------------------------------------------------------------------------------------


def facts(sample_s: float = SAMPLE_S) -> dict[str, object]:
    """The machine as it is now; takes `sample_s` seconds. None is what the machine does not tell.

    Shares are of all processors' time (0..1), pressure is per cent of the last 10 s, sizes are bytes.
    """
    before = _cpu_ticks()
    time.sleep(sample_s)  # a measuring window, not a wait
    busy, steal = _shares(before, _cpu_ticks())
    memory = _memory()
    return {
        "cpus": os.cpu_count(), "cpus_usable": len(os.sched_getaffinity(0)),
        "load_average": list(os.getloadavg()), "cpu_busy_share": busy, "cpu_steal_share": steal,
        "cpu_pressure_percent": _pressure(),
        "bpf_jit_enable": _read("/proc/sys/net/core/bpf_jit_enable"), "bpf_is_compiled": _compiled(),
        "bridge_nf_call_iptables": _read("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        "governor": _read(_CPUS / "cpu0/cpufreq/scaling_governor"), "turbo": _turbo(),
        "clocksource": _read(_CLOCKS / "current_clocksource"),
        "conntrack_max": _number("/proc/sys/net/netfilter/nf_conntrack_max"),
        "conntrack_count": _number("/proc/sys/net/netfilter/nf_conntrack_count"),
        "memory_total_bytes": memory.get("MemTotal"), "memory_available_bytes": memory.get("MemAvailable"),
        "swap_used_bytes": memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        "virtual": _virtual(),
    }


def busiest(sample_s: float = SAMPLE_S, most: int = 3) -> list[tuple[str, float]]:
    """The processes that used most CPU in `sample_s` seconds, ourselves aside: command and share of one processor."""
    before = _process_ticks()
    time.sleep(sample_s)  # a measuring window, not a wait
    tick = os.sysconf("SC_CLK_TCK") * sample_s
    used = {key: ticks - before[key] for key, ticks in _process_ticks().items() if key in before}
    found = sorted(((name, spent / tick) for (pid, name), spent in used.items() if spent and pid != os.getpid()),
                   key=lambda item: -item[1])
    return found[:most]


def _cpu_ticks() -> list[int]:
    return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def _shares(before: list[int], after: list[int]) -> tuple[float | None, float | None]:
    """Busy and stolen, of all. Columns as in proc(5): user, nice, system, idle, iowait, irq, softirq, steal."""
    spent = [b - a for a, b in zip(before, after, strict=True)]
    total = sum(spent)
    return ((total - spent[3] - spent[4]) / total, spent[7] / total) if total > 0 else (None, None)


def _process_ticks() -> dict[tuple[int, str], int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                fields = rest.split()
                found[int(entry.name), name] = int(fields[11]) + int(fields[12])
    return found


def _pressure() -> float | None:
    for word in (_read("/proc/pressure/cpu") or "").split():
        if word.startswith("avg10="):
            return float(word.partition("=")[2])
    return None


def _compiled() -> bool | None:
    """Whether programs are compiled, as the kernel says of one; None where it lets us load none."""
    with contextlib.suppress(OSError):
        return bpf_probe.is_compiled()
    return None


def _turbo() -> str | None:
    no_turbo, boost = (_read(_CPUS / name) for name in ("intel_pstate/no_turbo", "cpufreq/boost"))
    if no_turbo is not None:
        return "off" if no_turbo == "1" else "on"
    return None if boost is None else "on" if boost == "1" else "off"


def _memory() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def _virtual() -> str:
    """What the machine is, as far as it shows: a container's mark, a hypervisor, its maker's name."""
    parts = [name for name, mark in _GUESTS.items() if Path(mark).exists()]
    if " hypervisor" in (_read("/proc/cpuinfo") or ""):
        parts.append("virtual machine")
    maker = [_read(f"/sys/class/dmi/id/{key}") for key in ("sys_vendor", "product_name")]
    return ", ".join([*(parts or ["no hypervisor seen"]), *(text for text in maker if text)])


def _read(path: str | Path) -> str | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return None


def _number(path: str) -> int | None:
    text = _read(path)
    return int(text) if text and text.isdigit() else None


# --- judging --------------------------------------------------------------------------------------


def judge(found: Mapping[str, Any]) -> tuple[Condition, ...]:
    """What these facts mean for figures. Facts that the machine does not tell are said to be unknown."""
    return tuple(rule(found) for rule in _RULES)


def spoiling(found: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The conditions that spoil figures."""
    return tuple(condition for condition in judge(found) if condition.spoils)


def _cpus(f: Mapping[str, Any]) -> Condition:
    usable, cpus = f["cpus_usable"], f["cpus"]
    value = str(cpus) if usable == cpus else f"{usable} of {cpus} usable"
    return Condition("processors", value, usable < FEW_CPUS,
                     "client, server and everything else share one processor: intervals are wide",
                     f"give the machine at least {FEW_CPUS} processors")


def _neighbours(f: Mapping[str, Any]) -> Condition:
    busy, pressure, load = f["cpu_busy_share"], f["cpu_pressure_percent"], f["load_average"][0]
    parts = [f"load {load:.2f}", f"{_percent(busy)} busy"]
    if pressure is not None:
        parts.append(f"{pressure:.0f} % of the time waited for")
    return Condition("busy neighbours", ", ".join(parts),
                     (busy or 0) > BUSY_SHARE or (pressure or 0) > PRESSURE_PERCENT,
                     "others' work lands in latencies and rates; intervals widen, A/A may differ",
                     "end or pause what is busy, or wait for it")


def _steal(f: Mapping[str, Any]) -> Condition:
    steal = f["cpu_steal_share"]
    return Condition("stolen time", _percent(steal), (steal or 0) > STEAL_SHARE,
                     "the hypervisor gives our processors to others: tails (p99) are theirs, not the arms'",
                     "use a machine with dedicated processors, or a quieter hour")


def _jit(f: Mapping[str, Any]) -> Condition:
    setting, compiled = f["bpf_jit_enable"], f["bpf_is_compiled"]
    on = compiled if compiled is not None else None if setting is None else setting != "0"
    return Condition("BPF compiler (JIT)", {True: "on", False: "off", None: "unknown"}[on], on is False,
                     "kernel programs are interpreted: arms that use them look several times dearer than they are",
                     "sysctl -w net.core.bpf_jit_enable=1")


def _bridge(f: Mapping[str, Any]) -> Condition:
    value = f["bridge_nf_call_iptables"]
    words = {"0": "off in new namespaces", "1": "on in new namespaces; the lab switches it off", None: "not loaded"}
    return Condition("bridge netfilter", words.get(value, str(value)), False,
                     "bridged packets would pay for netfilter (6 % of the connection rate) under every arm")


def _frequency(f: Mapping[str, Any]) -> Condition:
    governor, turbo = f["governor"], f["turbo"]
    if governor is None and turbo is None:
        return Condition("processor frequency", "not shown (fixed, or the hypervisor's)", False)
    value = ", ".join([*([f"governor {governor}"] if governor else []), *([f"turbo {turbo}"] if turbo else [])])
    scaling = governor not in (None, "performance")
    remedies = ["cpupower frequency-set -g performance"] if scaling else []
    if turbo == "on":
        remedies.append("switch turbo off (intel_pstate/no_turbo or cpufreq/boost in sysfs)")
    return Condition("processor frequency", value, scaling or turbo == "on",
                     "speed depends on load and heat: a dearer arm may run on a faster processor", "; ".join(remedies))


def _clock(f: Mapping[str, Any]) -> Condition:
    clock = f["clocksource"]
    return Condition("clock", clock or "unknown", clock not in (None, "tsc", "kvm-clock", "arch_sys_counter"),
                     "reading the time is a system call or worse: it adds to each measured latency",
                     f"echo tsc > {_CLOCKS}/current_clocksource, where the machine offers it")


def _conntrack(f: Mapping[str, Any]) -> Condition:
    count, limit = f["conntrack_count"], f["conntrack_max"]
    if limit is None:
        return Condition("connection tracking", "not loaded", False)
    return Condition("connection tracking", f"{count or 0:,} of {limit:,} entries", (count or 0) > limit * FULL_SHARE,
                     "a full table drops packets, and a crowded one slows every arm that tracks connections",
                     "conntrack -F, or sysctl -w net.netfilter.nf_conntrack_max=262144")


def _free_memory(f: Mapping[str, Any]) -> Condition:
    free, total = f["memory_available_bytes"], f["memory_total_bytes"]
    if free is None or total is None:
        return Condition("memory", "unknown", False)
    return Condition("memory", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB available", free < FREE_MEMORY_BYTES,
                     "large labs may be killed, and reclaim stalls whatever is measured", "end what fills it")


def _swap(f: Mapping[str, Any]) -> Condition:
    used = f["swap_used_bytes"]
    return Condition("swap", f"{used / 1e6:.0f} MB used" if used else "none used", bool(used),
                     "what was swapped out is waited for when it is needed: tails (p99) suffer", "swapoff -a")


def _machine(f: Mapping[str, Any]) -> Condition:
    return Condition("machine", str(f["virtual"]), False)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share * 100:.0f} %"


_RULES: tuple[Callable[[Mapping[str, Any]], Condition], ...] = (
    _cpus, _neighbours, _steal, _jit, _bridge, _frequency, _clock, _conntrack, _free_memory, _swap, _machine)
