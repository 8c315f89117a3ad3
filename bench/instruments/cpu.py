"""CPU by who used it, each with the counter it came from: processes on hosts, the enforcer's daemons, the kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.backends.base import Testbed

HOSTS, DAEMONS, SOFTIRQ = "hosts", "daemons", "softirq"
IN_KERNEL = {HOSTS: "hosts_kernel", DAEMONS: "daemons_kernel"}  # of these, in the kernel
_CGROUP, _SYSTEM = "cgroup v2 cpu.stat usage_usec", "cgroup v2 cpu.stat system_usec"
_STAT = ("/proc/stat softirq, all processors: packets that the kernel handled outside of any process of the lab, "
         "those of the rest of the machine included; counted in ticks of {:.0f} ms, and in part also in the processes "
         "that sent them")


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU seconds since some beginning, by source; None where it cannot be known, `why` then says so."""

    seconds: Mapping[str, float | None]
    counter: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of a window by source, and the counter, or the reason why there is none."""

    seconds: Mapping[str, float | None]
    counter: Mapping[str, str]

    def per_connection_us(self, connections: int) -> dict[str, float | None]:
        return {name: None if s is None or not connections else s * 1e6 / connections
                for name, s in self.seconds.items()}

    def per_gigabit_s(self, bits: float) -> dict[str, float | None]:
        """CPU seconds for each 10^9 bits carried."""
        return {name: None if s is None or bits <= 0 else s / (bits / 1e9) for name, s in self.seconds.items()}


def read(testbed: Testbed, stat: str = "/proc/stat") -> Reading:
    """Now. Take one before and one after a window; a reading costs about 0.1 ms a host."""
    usage = testbed.usage(memory=False)
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    counters = {HOSTS: _CGROUP, DAEMONS: _CGROUP, **dict.fromkeys(IN_KERNEL.values(), _SYSTEM),
                SOFTIRQ: _STAT.format(tick_s * 1e3)}
    found = {HOSTS: usage.host_cpu_s, DAEMONS: usage.daemon_cpu_s, IN_KERNEL[HOSTS]: usage.host_system_s,
             IN_KERNEL[DAEMONS]: usage.daemon_system_s}
    seconds: dict[str, float | None] = {name: sum(by_host.values()) if by_host else None
                                        for name, by_host in found.items()}
    seconds[SOFTIRQ] = _softirq_s(stat, tick_s)
    for name in found:
        if seconds[name] is None:
            counters[name] = usage.source
    if seconds[SOFTIRQ] is None:
        counters[SOFTIRQ] = f"unavailable: {stat} has no softirq column"
    return Reading(seconds, counters)


def between(before: Reading, after: Reading) -> Spent:
    """What a window used. A counter that went backwards is not believed."""
    seconds: dict[str, float | None] = {}
    for name, end in after.seconds.items():
        begin = before.seconds.get(name)
        seconds[name] = None if begin is None or end is None or end < begin else end - begin
    return Spent(seconds, after.counter)


def _softirq_s(stat: str, tick_s: float) -> float | None:
    """Column 7 of the first line (proc_stat(5))."""
    try:
        words = Path(stat).read_text().partition("\n")[0].split()
        return int(words[7]) * tick_s if words[0] == "cpu" else None
    except (OSError, ValueError, IndexError):
        return None
