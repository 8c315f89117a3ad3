"""Some services enforced while their host is only monitored: entries of their own, whatever class their port is in."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Row = tuple[int, int, int, bytes, bytes]  # entries, sizes of key and value, keys, values

ALWAYS_ENFORCE = 2  # enum service_mode
_PROTOCOLS = {"tcp": 6, "udp": 17}
_KEY, _VALUE = struct.Struct("<HBx"), struct.Struct("<HBx")  # service_key, service_value
_RANGE = struct.Struct("<IB2sx")  # range_key


def parsed(word: str) -> tuple[int, int]:
    """(port, protocol number) of a service such as 6379/tcp. Raises ValueError with the remedy."""
    port, _, proto = word.partition("/")
    if proto not in _PROTOCOLS or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{word}: not a service that can be enforced by itself; write one such as 6379/tcp")
    return int(port), _PROTOCOLS[proto]


def rows(tables: dict[str, list[tuple[bytes, bytes]]], about: dict[str, Any], words: Iterable[str]) -> dict[str, Row]:
    """Tables that were read back, in which these services are always enforced, and no others. Raises ValueError."""
    plain = [(key, _VALUE.pack(_VALUE.unpack(value)[0], 0)) for key, value in tables["services"]]
    found = {name: _row(entries) for name, entries in {**tables, "services": plain}.items()}
    found["services"] = enforced(found["services"], found["service_ranges"], about, words)
    return found


def enforced(services: Row | None, ranges: Row | None, about: dict[str, Any], words: Iterable[str]) -> Row:
    """The row of `services` with these always enforced. `about`: the classes of ports that no table names."""
    entries = dict(_entries(services))
    prefixes = [(*_RANGE.unpack(key), _VALUE.unpack(value)[0]) for key, value in _entries(ranges)]
    for word in words:
        port, proto = parsed(word)
        key = _KEY.pack(port, proto)
        rest = about["tcp_other" if proto == _PROTOCOLS["tcp"] else "udp_other"]
        number = _VALUE.unpack(entries[key])[0] if key in entries else _by_range(prefixes, port, proto, rest)
        entries[key] = _VALUE.pack(number, ALWAYS_ENFORCE)
    return len(entries), _KEY.size, _VALUE.size, b"".join(entries), b"".join(entries.values())


def _row(entries: list[tuple[bytes, bytes]]) -> Row:
    key, value = (len(entries[0][0]), len(entries[0][1])) if entries else (0, 0)
    return len(entries), key, value, b"".join(key for key, _ in entries), b"".join(value for _, value in entries)


def _entries(row: Row | None) -> list[tuple[bytes, bytes]]:
    count, key, value, keys, values = row or (0, _KEY.size, _VALUE.size, b"", b"")
    return [(keys[at * key: (at + 1) * key], values[at * value: (at + 1) * value]) for at in range(count)]


def _by_range(prefixes: list[tuple[int, int, bytes, int]], port: int, proto: int, rest: int) -> int:
    """The class of the longest prefix that holds the port."""
    best, found = -1, rest
    for length, of, begin, number in prefixes:
        bits = length - 8
        if of == proto and bits > best and port >> 16 - bits == int.from_bytes(begin, "big") >> 16 - bits:
            best, found = bits, number
    return found
