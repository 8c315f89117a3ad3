"""What the kernel programs do with a flow, told by the maps alone, as they are placed: the lookups, and who asks where.

After kernel/abi.h; written apart from the compiler, which knows nothing of bytes.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any, NamedTuple

from enforcers.agent.ebpf.classes import Rules
from enforcers.agent.ebpf.encode import encode
from enforcers.agent.ebpf.tables import tables
from lab.model import Flow, Topology
from lab.policy import NOBODY_UID, owner_user

STRANGERS_ID = 0x6EAD  # of an executable that no rule names
MALLORY = 31337  # the uid of a user that neither topology nor policy knows
NO_UID = ("carol",)  # rules name her, and no host has her: no process can be hers
UNKNOWN, KERNEL = 0, 1
TCP, UDP, ICMP = 6, 17, 1
NUMBERS = {"tcp": TCP, "udp": UDP, "icmp": ICMP}


class Found(NamedTuple):
    allow: bool
    rule: int
    claims: bool


class Kernel:
    """One host's maps and the part of its `host_config` that the policy decides."""

    def __init__(self, about: dict[str, Any], blob: bytes) -> None:
        self.about = about
        self.maps: dict[str, dict[bytes, bytes]] = {}
        for name, (offset, count, key, value) in about["maps"].items():
            values = offset + count * key
            self.maps[name] = {blob[offset + i * key: offset + (i + 1) * key]:
                               blob[values + i * value: values + (i + 1) * value] for i in range(count)}
            assert len(self.maps[name]) == count, "a key was given twice"

    def owner(self, executable: int, uid: int) -> int:
        for key in ((executable, uid), (executable, 0xFFFFFFFF), (0, uid)):
            if found := self._get("owners", struct.pack("<II", *key)):
                return int(struct.unpack("<H", found)[0])
        return int(self.about["owner_other"])

    def peer(self, address: str) -> tuple[int, bool]:
        text = ip_address(address)
        whole = text.packed if text.version == 6 else b"\0" * 10 + b"\xff\xff" + text.packed
        found = self._get("peers", whole)
        if found is None and self.about["flags"] & 1:
            found = self._longest("peer_prefixes", whole, 4)
        if found is None:
            return int(self.about["peer_other"]), False
        peer, flags = struct.unpack("<HH", found)
        return peer, bool(flags & 1)

    def service(self, proto: int, port: int) -> int:
        if proto not in (TCP, UDP):
            return int(self.about["icmp_service" if proto == ICMP else "other_service"])
        found = self._get("services", struct.pack("<HBB", port, proto, 0))
        if found is None and self.about["flags"] & 2:
            found = self._longest("service_ranges", bytes([proto]) + port.to_bytes(2) + b"\0", 4)
        if found is None:
            return int(self.about["tcp_other" if proto == TCP else "udp_other"])
        service, mode, _ = struct.unpack("<HBB", found)
        assert mode == 0
        return int(service)

    def verdict(self, peer: int, here: int, there: int, service: int, out: bool) -> Found:
        key = struct.pack("<HHHH", peer, here, there, service | (0x8000 if out else 0))
        found = self._get("verdicts", key)
        if found is None:
            return Found(bool(self.about["default"]), 0, False)
        rule, allow, flags, _ = struct.unpack("<IBBH", found)
        return Found(bool(allow), rule, bool(flags & 2))

    def _get(self, name: str, key: bytes) -> bytes | None:
        return self.maps.get(name, {}).get(key)

    def _longest(self, name: str, whole: bytes, at: int) -> bytes | None:
        """Longest prefix match: the length in bits first, then the bytes."""
        best, number = None, int.from_bytes(whole)
        for key, value in self.maps.get(name, {}).items():
            length, bits = struct.unpack_from("<I", key)[0], len(whole) * 8
            if int.from_bytes(key[at:]) >> (bits - length) == number >> (bits - length) and (
                    best is None or length > best[0]):
                best = (length, value)
        return best[1] if best else None


class Hosts:
    """The maps of every host that takes an agent, and what becomes of a flow between any two hosts."""

    def __init__(self, rules: Rules) -> None:
        self.rules, self.topology = rules, rules.topology
        self.kernels = {host.name: Kernel(*encode(tables(host, rules)))
                        for host in self.topology.hosts.values() if host.takes_agent}

    def allows(self, flow: Flow) -> bool:
        """Both ends have to agree; an end without an agent agrees with everything."""
        if flow.source in self.kernels:
            out = self._ask(flow, out=True)
            if flow.source == flow.target:
                assert out[:2] == self._ask(flow, out=False)[:2], flow
            if not out.allow or flow.source == flow.target:
                return out.allow
        if flow.target not in self.kernels:
            return True
        if not self._ask(flow, out=False).allow:
            return False
        claimed = flow.proto == "tcp" and flow.source in self.kernels and out.claims and bool(
            self.kernels[flow.source].about["flags"] & 16)
        return not claimed or self._ask(flow, out=False, claimed=True).allow

    def _ask(self, flow: Flow, *, out: bool, claimed: bool = False) -> Found:
        kernel = self.kernels[flow.source if out else flow.target]
        address = self.topology.hosts[flow.target if out else flow.source].address(flow.family)
        peer, own = kernel.peer(address)
        source = kernel.owner(executable_id(flow.process, self.rules), uid(flow.user, self.topology))
        target = KERNEL if flow.proto == "icmp" else kernel.owner(
            executable_id(flow.target_process, self.rules),
            uid(owner_user(flow.target_process, self.topology), self.topology))
        if not own and out and flow.proto != "icmp":
            target = UNKNOWN
        if not own and not out and not claimed:
            source = UNKNOWN
        here, there = (source, target) if out else (target, source)
        return kernel.verdict(peer, here, there, kernel.service(NUMBERS[flow.proto], flow.port), out)


def executable_id(process: str, rules: Rules) -> int:
    """As the agent finds it: the content that a rule asks for, else the path."""
    declared = rules.topology.processes.get(process)
    if declared is not None:
        named = {(one.path, one.sha256): one.id for one in rules.executables}
        for key in ((declared.path, declared.sha256), (declared.path, None)):
            if key in named:
                return named[key]
    return STRANGERS_ID


def uid(user: str, topology: Topology) -> int:
    return {"root": 0, "nobody": NOBODY_UID, **topology.users}.get(user, MALLORY)
