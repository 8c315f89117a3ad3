"""Which class a service has that is enforced by itself, whatever table its port was in."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcers.agent.ebpf.daemon import selective
from enforcers.agent.ebpf.encode import port_prefixes

REST = {"tcp_other": 2, "udp_other": 3}


def row(entries: dict[bytes, bytes], key: int) -> selective.Row:
    return len(entries), key, 4, b"".join(entries), b"".join(entries.values())


def decoded(made: selective.Row) -> dict[tuple[int, int], tuple[int, int]]:
    count, key, value, keys, values = made
    return {struct.unpack_from("<HB", keys, at * key): struct.unpack_from("<HB", values, at * value)  # type: ignore[misc]
            for at in range(count)}


def test_a_port_without_an_entry_gets_one_of_the_rest_s_class() -> None:
    made = selective.enforced(None, None, REST, ["6379/tcp", "53/udp"])
    assert decoded(made) == {(6379, 6): (2, 2), (53, 17): (3, 2)}


def test_a_port_with_an_entry_keeps_its_class() -> None:
    services = row({struct.pack("<HBx", 80, 6): struct.pack("<HBx", 7, 0), struct.pack("<HBx", 81, 6):
                    struct.pack("<HBx", 8, 0)}, 4)
    assert decoded(selective.enforced(services, None, REST, ["80/tcp"])) == {(80, 6): (7, 2), (81, 6): (8, 0)}


@given(st.integers(1, 65535), st.integers(1, 65535), st.integers(1, 65535))
def test_a_port_in_a_range_has_the_range_s_class(one: int, other: int, port: int) -> None:
    low, high = sorted((one, other))
    ranges = row({struct.pack("<IB", 8 + bits, 6) + begin.to_bytes(2) + b"\0": struct.pack("<HBx", 9, 0)
                  for begin, bits in port_prefixes(low, high)}, 8)
    made = decoded(selective.enforced(None, ranges, REST, [f"{port}/tcp"]))
    assert made[port, 6] == (9 if low <= port <= high else 2, 2)


@pytest.mark.parametrize("word", ["80", "80/icmp", "0/tcp", "65536/udp", "x/tcp", ""])
def test_what_is_no_service_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="write one such as 6379/tcp"):
        selective.parsed(word)
