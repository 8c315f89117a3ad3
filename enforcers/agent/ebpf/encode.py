"""One host's tables as the kernel's maps hold them: arrays of keys and of values, ready for one batch each. Pure.

The layouts are those of kernel/abi.h; what the daemon reads back (`Layout`) is in the policy file beside them.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from enforcers.agent.ebpf.classes import OTHER
from enforcers.agent.ebpf.tables import ICMP, OTHER_PROTOCOL, OUT, Tables

DIR_BIT, WANTS_CLAIM, PEER_IS_SELF = 0x8000, 2, 1
HAS_PREFIXES, HAS_RANGES, JUDGES_LOOPBACK, REFUSES_RAW, SENDS_CLAIM, READS_CLAIM = 1, 2, 4, 8, 16, 32
LONG_RANGE = 64  # ports; a longer range is looked up by prefix, not port by port
_PROTO = {"tcp": 6, "udp": 17}
MOST = 0x7FFF  # classes of one kind on one host

Entries = list[tuple[bytes, bytes]]
ORDER = ("owners", "peers", "peer_prefixes", "services", "service_ranges", "verdicts")


def encode(tables: Tables) -> tuple[dict[str, Any], bytes]:
    """What the policy file says of the tables, and the tables: for each map its keys, then its values.

    Raises ValueError where the policy needs more classes than the kernel can count.
    """
    numbers = [*tables.who.values(), *tables.where.values(), *tables.ports.values()]
    if max(numbers, default=0) > MOST:
        raise ValueError(f"{tables.host}: the policy tells more than {MOST} kinds of peers, owners or services apart")
    rest = {proto: _most(tables, proto) for proto in _PROTO}
    other, prefixes = _prefixes(tables)
    services, ranges = _services(tables, rest)
    maps: dict[str, Entries] = {
        "owners": [(struct.pack("<II", *key), struct.pack("<H", who)) for key, who in tables.who.items()],
        "peers": list(_peers(tables)),
        "peer_prefixes": prefixes,
        "services": services,
        "service_ranges": ranges,
        "verdicts": list(_verdicts(tables)),
    }
    flags = (HAS_PREFIXES * bool(prefixes) | HAS_RANGES * bool(ranges) | JUDGES_LOOPBACK * tables.loopback | REFUSES_RAW
             | (SENDS_CLAIM | READS_CLAIM) * tables.claims)
    layout, blob, offset = {}, [], 0
    for name in ORDER:
        entries = maps[name]
        if entries:
            keys, values = b"".join(key for key, _ in entries), b"".join(value for _, value in entries)
            layout[name] = [offset, len(entries), len(entries[0][0]), len(entries[0][1])]
            blob += [keys, values]
            offset += len(keys) + len(values)
    return {
        "maps": layout, "flags": flags, "default": int(tables.default), "owner_other": OTHER, "peer_other": other,
        "tcp_other": rest["tcp"], "udp_other": rest["udp"], "icmp_service": ICMP, "other_service": OTHER_PROTOCOL,
    }, b"".join(blob)


def address_bytes(text: str) -> bytes:
    """16 bytes; IPv4 as ::ffff:a.b.c.d."""
    address = ip_address(text)
    return b"\0" * 10 + b"\xff\xff" + address.packed if isinstance(address, IPv4Address) else address.packed


def _peers(tables: Tables) -> Iterator[tuple[bytes, bytes]]:
    own = set(tables.own.values())
    for address, where in tables.where.items():
        yield address_bytes(address), struct.pack("<HH", where, PEER_IS_SELF if where in own else 0)


def _prefixes(tables: Tables) -> tuple[int, Entries]:
    """The class of an address that nothing names, and the prefixes that say otherwise."""
    other = tables.networks["0.0.0.0/0"]
    own, found = set(tables.own.values()), []
    for text, where in tables.networks.items():
        net = ip_network(text)
        length = net.prefixlen + (96 if net.version == 4 else 0)
        if length > 0 or where != other:
            key = struct.pack("<I", length) + address_bytes(str(net.network_address))
            found.append((key, struct.pack("<HH", where, PEER_IS_SELF if where in own else 0)))
    told = any(where != other for where in tables.networks.values())
    return other, found if told else []


def _most(tables: Tables, proto: str) -> int:
    """The class that most ports of a protocol have."""
    sizes: Counter[int] = Counter()
    for (name, low, high), svc in tables.ports.items():
        if name == proto:
            sizes[svc] += high - low + 1
    return sizes.most_common(1)[0][0]


def _services(tables: Tables, rest: dict[str, int]) -> tuple[Entries, Entries]:
    single: Entries = []
    ranges: Entries = []
    for (proto, low, high), svc in tables.ports.items():
        value = struct.pack("<HBx", svc, 0)
        if svc == rest[proto]:
            continue
        if high - low < LONG_RANGE:
            single += [(struct.pack("<HBx", port, _PROTO[proto]), value) for port in range(low, high + 1)]
        else:
            ranges += [(struct.pack("<IB", 8 + bits, _PROTO[proto]) + port.to_bytes(2) + b"\0", value)
                       for port, bits in port_prefixes(low, high)]
    return single, ranges


def port_prefixes(low: int, high: int) -> Iterator[tuple[int, int]]:
    """(first port, bits) of the fewest prefixes that make up a range."""
    while low <= high:
        size = low & -low or 1 << 16
        while size > high - low + 1:
            size >>= 1
        yield low, 17 - size.bit_length()
        low += size


def _verdicts(tables: Tables) -> Iterable[tuple[bytes, bytes]]:
    for key, decision in tables.verdicts.items():
        service = key.svc | (DIR_BIT if key.direction == OUT else 0)
        flags = WANTS_CLAIM if decision.claim else 0
        yield (struct.pack("<HHHH", key.where, key.who, key.peer, service),
               struct.pack("<IBBxx", decision.rule, decision.allow, flags))


