"""A policy as four maps of its own, filled before anybody looks, then put in force by one word."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from array import array
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from lab.bpf.syscall import ARRAY, HASH, LPM_TRIE, NO_PREALLOC, Map, create_map

from . import layout

Maps = Mapping[str, Map]
_INDEX = struct.Struct("=I")


class Policies:
    """Which policy holds for which tenant. A change is whole at every packet: the one before stays until the next.

    To hang a map into another one waits until no processor can be looking (milliseconds), so four empty ones hang
    there already when a policy comes.
    """

    def __init__(self, maps: Maps, directory: Path) -> None:
        self._maps = maps
        self._directory = directory  # where it is noted, for the next daemon, what is in force
        self.rules: dict[int, list[str]] = {}  # by generation: names, for telemetry
        self._digests: dict[int, str] = {}  # by tenant: of the policy that is in force
        self._kept: dict[int, list[int]] = {}  # by tenant: slots that are taken, the newest last
        self._spare: Spare | None = None
        self._last = 0

    def put(self, policy: dict[str, Any]) -> float:
        """Put `policy` in force for its tenant; returns the seconds that took, without reading it. One that is in force
        already stays as it is: no flow is judged again."""
        digest = _digest(policy)
        if self._digests.get(int(policy["tenant"])) == digest:
            return 0.0
        tables = packed(policy)
        begin = time.monotonic()
        tenant, spare = int(policy["tenant"]), self._fitting(tables)
        for name, (keys, values) in tables.items():
            if _INNER[name].kind == ARRAY:
                spare.maps[name].put(keys, values)
            else:
                spare.maps[name].put_many(keys, values)
        self._last += 1
        generation = self._last * layout.SLOTS + spare.slot
        self.rules[generation] = policy["rules"]
        self._maps["tenants"].put(_INDEX.pack(tenant), layout.tenant_value(generation, policy))
        took = time.monotonic() - begin
        spare.close()
        self._spare = None
        slots = self._kept.setdefault(tenant, [])
        slots.append(spare.slot)
        while len(slots) > 2:  # a packet under way may still look into the last one
            self._empty(slots.pop(0))
        self._digests[tenant] = digest
        with contextlib.suppress(OSError):  # a full disk: the next daemon puts the policy again
            self._note(tenant, generation, policy["rules"])
        return took

    def prepare(self) -> None:
        """Have room for the next policy. Takes milliseconds, so not while anybody waits."""
        if self._spare is None:
            self._spare = self._made(_SPARE_ENTRIES)

    def adopt(self) -> None:
        """Take over what an earlier daemon left in force."""
        tenants = self._maps["tenants"]
        for index in range(1, tenants.entries):
            value = tenants.get(_INDEX.pack(index))
            if value and (generation := layout.generation_of(value)):
                self._kept[index] = [generation % layout.SLOTS]
                self._last = max(self._last, generation // layout.SLOTS)
                self._remember(index, generation)

    def forget(self) -> None:
        """Take the notes away: nothing is in force any more."""
        for tenant in self._kept:
            self._path(tenant).unlink(missing_ok=True)

    def holds(self, tenant: int) -> bool:
        return tenant in self._kept

    # --- parts ---

    def _note(self, tenant: int, generation: int, rules: list[str]) -> None:
        """Whole or not at all. Who dies before it leaves a note of another generation, which is not believed."""
        fresh = self._path(tenant).with_suffix(".new")
        fresh.write_text(json.dumps({"generation": generation, "digest": self._digests[tenant], "rules": rules}))
        fresh.rename(self._path(tenant))

    def _remember(self, tenant: int, generation: int) -> None:
        try:
            noted = json.loads(self._path(tenant).read_text())
            if noted["generation"] == generation:
                self.rules[generation], self._digests[tenant] = noted["rules"], noted["digest"]
        except (OSError, ValueError, KeyError):  # none was written: the policy is put again when it comes
            return

    def _path(self, tenant: int) -> Path:
        return self._directory / f"in-force.{tenant}"

    def _fitting(self, tables: Tables) -> Spare:
        needed = max(len(keys) // _INNER[name].key for name, (keys, _values) in tables.items())
        spare = self._spare
        if spare is not None and needed <= spare.entries:
            return spare
        if spare is not None:
            spare.close()
            self._empty(spare.slot)
            self._spare = None
        return self._made(max(needed, 1))

    def _made(self, entries: int) -> Spare:
        slot = self._free_slot()
        maps = {name: Map(create_map(one.kind, one.key, one.value, 1 if one.kind == ARRAY else entries, one.flags))
                for name, one in _INNER.items()}
        for name, inner in maps.items():
            self._maps[name].put(_INDEX.pack(slot), _INDEX.pack(inner.fd))
        return Spare(slot, entries, maps)

    def _free_slot(self) -> int:
        taken = {slot for slots in self._kept.values() for slot in slots}
        free = next((slot for slot in range(layout.SLOTS) if slot not in taken), None)
        if free is None:
            raise OSError(f"no more than {layout.SLOTS // 2} tenants have room")
        return free

    def _empty(self, slot: int) -> None:
        for name in _INNER:
            self._maps[name].delete(_INDEX.pack(slot))


Tables = Mapping[str, tuple[bytes, bytes]]  # by map: its keys and its values, packed one after the other


class Spare(NamedTuple):
    """Four maps in their places, with room for so many entries each."""

    slot: int
    entries: int
    maps: Maps

    def close(self) -> None:
        for one in self.maps.values():
            one.close()


class Inner(NamedTuple):
    """A map as state.h declares it: its kind, bytes of a key and of a value, flags."""

    kind: int
    key: int
    value: int
    flags: int = 0


_INNER = {
    "addresses": Inner(HASH, 16, 4),
    "prefixes": Inner(LPM_TRIE, 20, 4, NO_PREALLOC),
    "service_classes": Inner(ARRAY, 4, layout.SERVICES_BYTES),
    "verdicts": Inner(HASH, 12, 8),
}
_SPARE_ENTRIES = 16384


def _digest(policy: dict[str, Any]) -> str:
    return sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest()


def packed(policy: dict[str, Any]) -> Tables:
    """Keys and values of each map, packed one after the other."""
    addresses, prefixes, verdicts = policy["addresses"], policy["prefixes"], policy["verdicts"]
    return {
        "addresses": (b"".join(layout.address(one) for one, _ in addresses), _words(group for _, group in addresses)),
        "prefixes": (b"".join(layout.prefix(one) for one, _ in prefixes), _words(group for _, group in prefixes)),
        "service_classes": (_INDEX.pack(0), _classes(policy["services"])),
        "verdicts": (_words(word for source, target, service, _rule, _allow in verdicts
                            for word in (source, target, service)),
                     _words(word for _source, _target, _service, rule, allow in verdicts for word in (allow, rule))),
    }


def _words(numbers: Any) -> bytes:
    return array("I", numbers).tobytes()


def _classes(services: dict[str, list[list[int]]]) -> bytes:
    of = array("H")
    for proto in ("tcp", "udp"):
        for low, high, number in services[proto]:
            of.extend(array("H", [number]) * (high - low + 1))
    return of.tobytes()
