"""Connection tracking in this network namespace: its settings, set on start and put back on stop, and its table."""

from __future__ import annotations

from . import files, netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_ROOT = "/proc/sys/net/netfilter"
_DELETE = 1 << 8 | 2  # IPCTNL_MSG_CT_DELETE
_COMPLETE = "end\n"
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
            found[name] = int(files.read(f"{_ROOT}/{name}"))
        except (OSError, ValueError):
            continue  # this kernel was built without it
    return found


def write(values: Mapping[str, int]) -> None:
    """Set what this kernel has and lets us set; what came of it is in the telemetry's header."""
    for name, value in values.items():
        try:
            files.write(f"{_ROOT}/{name}", str(value))
        except OSError:
            continue


def render(values: Mapping[str, int]) -> str:
    """`values` as text: a line each, and a last one by which a text that was cut short is known."""
    return "".join(f"{name} {value}\n" for name, value in values.items()) + _COMPLETE


def parse(text: str) -> dict[str, int]:
    """What `render` wrote. Raises ValueError where the end is missing."""
    if not text.endswith(_COMPLETE):
        raise ValueError("cut short")
    words = [line.split() for line in text.removesuffix(_COMPLETE).splitlines()]
    return {name: int(value) for name, value in words}


def kept(path: str) -> bool:
    """Whether what `render` wrote is there, whole."""
    try:
        parse(files.read(path))
    except (OSError, ValueError):
        return False
    return True


def forget() -> None:
    """Forget every tracked connection of this network namespace."""
    with netlink.connect(netlink.NETLINK_NETFILTER) as sock:
        netlink.command(sock, _DELETE, netlink.NFGEN.pack(0, 0, 0))
