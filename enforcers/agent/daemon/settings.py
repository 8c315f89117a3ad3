"""Connection tracking's settings in this network namespace: set on start, put back on stop, reported in between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_ROOT = Path("/proc/sys/net/netfilter")
WANTED: Mapping[str, int] = {
    "nf_conntrack_acct": 1,  # bytes and packets per connection
    "nf_conntrack_timestamp": 1,  # the kernel's own start time, so that a late reader still tells the right one
    # Closed connections stay 120 s by default, in one table for all network namespaces of the machine.
    "nf_conntrack_tcp_timeout_time_wait": 10,
    "nf_conntrack_tcp_timeout_close": 10,
    "nf_conntrack_udp_timeout": 30,
    "nf_conntrack_udp_timeout_stream": 60,
    "nf_conntrack_icmp_timeout": 10,
    "nf_conntrack_icmpv6_timeout": 10,
}
REPORTED = (*WANTED, "nf_conntrack_tcp_loose", "nf_conntrack_events", "nf_conntrack_max", "nf_conntrack_buckets")


def read(names: tuple[str, ...] = REPORTED) -> dict[str, int]:
    """The settings that this kernel has."""
    found = {}
    for name in names:
        try:
            found[name] = int((_ROOT / name).read_text())
        except (OSError, ValueError):
            continue  # this kernel was built without it
    return found


def write(values: Mapping[str, int]) -> None:
    """Set what this kernel has and lets us set; what came of it is in the telemetry's header."""
    for name, value in values.items():
        try:
            (_ROOT / name).write_text(str(value))
        except OSError:
            continue
