"""What the agent says of itself, to people: what is loaded, in which mode, what it decided and why. JSON."""

from __future__ import annotations

import struct
import time

from .host import Host
from .hosts import Hosts
from .kernel import MODES, SILENCES, Kernel
from .lean import dumps
from .lookups import Lookups
from .place import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class Answers:
    """Read back from the kernel wherever it can be: what is in force, not what was asked for."""

    def __init__(self, hosts: Hosts, kernel: Kernel) -> None:
        self._hosts, self._kernel = hosts, kernel
        self._begun = time.monotonic()

    def to(self, verb: str, name: str, words: list[str]) -> Iterator[bytes]:
        """Raises AgentError where the question makes no sense."""
        answer = {"status": self.status, "policy": self.policy, "flows": self.flows, "explain": self.explain}.get(verb)
        if answer is None:
            raise AgentError(f"unknown command {verb!r}")
        said = answer(self._hosts.get(name), words)
        return iter([dumps(said) + b"\n"])

    def status(self, host: Host, _words: list[str]) -> dict[str, Any]:
        config = self._kernel.config(host.cookie)
        policy = host.policy or {}
        return {
            "host": host.name, "mode": _word(MODES, config["mode"]) if config else "none",
            "enforced": policy.get("enforced", []),
            "on_silence": _word(SILENCES, config["on_silence"]) if config else None,
            "default": "allow" if config and config["default_in"] else "deny",
            "rules": len(policy.get("rules", ())), "entries": self._entries(policy), "epoch": host.epoch,
            "update_ms": host.update_ms, "revoke_ms": host.revoke_ms, "counters": self._kernel.counters(host.index),
            "interfaces": host.interfaces,
            "agent": {"hosts": self._hosts.names(), "up_s": round(time.monotonic() - self._begun, 1),
                      "cpu_s": round(time.process_time(), 3), "took_over": not self._kernel.fresh,
                      "executables": len(self._hosts.executables.by_key), "hashed": self._hosts.executables.hashed,
                      "programs": self._kernel.programs()},
        }

    def policy(self, host: Host, _words: list[str]) -> dict[str, Any]:
        """The tables in force, read back, with names."""
        policy, tables = host.policy or {}, self._kernel.tables(host.slot)
        paths = {number: path for number, path, _ in policy["executables"]}
        users = policy["users"]
        return {
            "host": host.name, "mode": policy["mode"], "default": "allow" if policy["default"] else "deny",
            "owners": [{"class": who, "process": paths.get(exe), "user": users.get(str(uid)) if uid != _ANY else None}
                       for exe, uid, who in _rows(tables["owners"], "<IIH")],
            "peers": [{"class": peer, "address": _address(address), "own": bool(flags & 1)}
                      for address, peer, flags in _rows(tables["peers"], "<16sHH")],
            "services": [{"class": service, "port": port, "proto": {6: "tcp", 17: "udp"}[proto]}
                         for port, proto, _, service, _, _ in _rows(tables["services"], "<HBBHBB")],
            "verdicts": [self._verdict(host, *row) for row in _rows(tables["verdicts"], "<HHHHIBBH")],
        }

    def flows(self, host: Host, _words: list[str]) -> dict[str, Any]:
        """What is open now, and what was denied last."""
        self._hosts.pump()
        assert host.teller is not None
        return {"host": host.name, "open": [host.teller.flow(one) for one in self._hosts.live(host)],
                "denied": [host.teller.flow(one) for one in host.recent]}

    def explain(self, host: Host, words: list[str]) -> dict[str, Any]:
        """What the tables in force say of a flow, looked up as the kernel does, and why.

        Words: in or out, protocol, port, the peer's address, path and uid here, path and uid there ('-': not known).
        """
        try:
            direction, proto, port, address, path, uid, peer_path, peer_uid = words
            here = (self._hosts.number_of(path), int(uid))
            there = None if peer_path == "-" else (self._hosts.number_of(peer_path), int(peer_uid))
            asked = (direction == "out", proto, int(port), address, here, there)
        except ValueError:
            raise AgentError("explain: that is no flow") from None
        config = self._kernel.config(host.cookie)
        if config is None or host.teller is None:
            raise AgentError(f"{host.name}: the kernel holds nothing for it")
        tables = {name: dict(entries) for name, entries in self._kernel.tables(host.slot).items()}
        found = Lookups(tables, config).decide(*asked)
        self._hosts.pump()
        recent = [host.teller.flow(one) for one in host.recent]
        same = [one for one in recent if one["proto"] == proto and one["dport"] in (int(port), 0)
                and address in (one["source"], one["target"])]
        return {"host": host.name, "mode": _word(MODES, config["mode"]), **found,
                "rule": host.teller.rule(found["rule"]), "denied": same[-5:]}

    def _entries(self, policy: dict[str, Any]) -> int:
        return sum(count for _, count, _, _ in policy["tables"]["maps"].values()) if policy else 0

    def _verdict(self, host: Host, peer: int, here: int, there: int, service: int, rule: int, allow: int,
                 flags: int, _unused: int) -> dict[str, Any]:
        assert host.teller is not None
        return {"direction": "out" if service & 0x8000 else "in", "peer": peer, "owner": here, "peer_owner": there,
                "service": service & 0x7FFF, "verdict": "allow" if allow else "deny", "rule": host.teller.rule(rule),
                "seen": bool(flags & 128)}


_ANY = 0xFFFFFFFF


def _rows(entries: list[tuple[bytes, bytes]], form: str) -> list[Any]:
    return sorted(struct.unpack(form, key + value) for key, value in entries)


def _word(words: dict[str, int], number: int) -> str:
    return next((word for word, value in words.items() if value == number), str(number))


def _address(data: bytes) -> str:
    from .telemetry import address_text

    return address_text(data)
