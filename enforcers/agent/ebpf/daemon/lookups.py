"""A verdict looked up in the tables in force, as the kernel looks it up, with every step told."""

from __future__ import annotations

import struct

from .sockets import address_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

UNKNOWN, KERNEL = 0, 1
_ANY_UID, _DIR_BIT, _WANTS_CLAIM, _SENDS_CLAIM = 0xFFFFFFFF, 0x8000, 2, 16
_NUMBERS = {"tcp": 6, "udp": 17}
Owner = tuple[int, int]  # number of the executable (0: not known), uid


class Lookups:
    """The tables of one host in force (name → key → value), with its `host_config`."""

    def __init__(self, tables: Mapping[str, Mapping[bytes, bytes]], config: Mapping[str, Any]) -> None:
        self._tables, self._config = tables, config

    def decide(self, out: bool, proto: str, port: int, address: str, here: Owner,
               there: Owner | None) -> dict[str, Any]:
        """`there` None: nobody said who is at the other end."""
        peer, own = self._peer(address)
        source, target = (here, there) if out else (there, here)
        sender = UNKNOWN if source is None else self._owner(source)
        receiver = KERNEL if proto == "icmp" else UNKNOWN if target is None else self._owner(target)
        local, remote = (sender, receiver) if out else (receiver, sender)
        service = self._service(proto, port)
        key = struct.pack("<HHHH", peer, local, remote, service | (_DIR_BIT if out else 0))
        found = self._tables["verdicts"].get(key)
        default = bool(self._config["default_out" if out else "default_in"])
        rule, allow, flags = (0, default, 0) if found is None else struct.unpack_from("<IBB", found)
        return {"direction": "out" if out else "in", "verdict": "allow" if allow else "deny", "rule": rule,
                "claims": bool(flags & _WANTS_CLAIM and self._config["flags"] & _SENDS_CLAIM),
                "peer": peer, "own": own, "owner": local, "peer_owner": remote, "service": service}

    def _owner(self, owner: Owner) -> int:
        for key in ((owner[0], owner[1]), (owner[0], _ANY_UID), (0, owner[1])):
            found = self._tables["owners"].get(struct.pack("<II", *key))
            if found:
                return int(struct.unpack("<H", found)[0])
        return int(self._config["owner_other"])

    def _peer(self, address: str) -> tuple[int, bool]:
        whole = address_bytes(address)
        found = self._tables["peers"].get(whole) or _longest(self._tables["peer_prefixes"], whole)
        if found is None:
            return int(self._config["peer_other"]), False
        peer, flags = struct.unpack("<HH", found)
        return peer, bool(flags & 1)

    def _service(self, proto: str, port: int) -> int:
        number = _NUMBERS.get(proto)
        if number is None:
            return int(self._config["icmp_service" if proto == "icmp" else "other_service"])
        found = self._tables["services"].get(struct.pack("<HBB", port, number, 0)) or _longest(
            self._tables["service_ranges"], bytes([number]) + port.to_bytes(2, "big") + b"\0")
        return int(struct.unpack_from("<H", found)[0]) if found else int(self._config[f"{proto}_other"])


def _longest(table: Mapping[bytes, bytes], whole: bytes) -> bytes | None:
    best, number, size = (-1, b""), int.from_bytes(whole, "big"), len(whole) * 8
    for key, value in table.items():
        length = struct.unpack_from("<I", key)[0]
        if int.from_bytes(key[4:], "big") >> (size - length) == number >> (size - length):
            best = max(best, (length, value))
    return best[1] or None
