"""A reader of rendered rule sets: it walks the text as the kernel would, for one packet of a new flow. No root.

It knows the statements that the enforcers write and fails on any other, so that a new statement cannot go untested.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network


@dataclass(frozen=True)
class Packet:
    """The first packet of a flow, or with `reply` the first of the other direction of a flow that is tracked."""

    source: str
    target: str
    proto: str  # tcp, udp, icmp, sctp
    sport: int
    dport: int
    loopback: bool = False  # crosses the lo interface
    state: str = "new"
    reply: bool = False
    marked: bool = False

    @property
    def ip(self) -> str:
        return "ip6" if ":" in self.source else "ip"

    @property
    def l4proto(self) -> str:
        return "ipv6-icmp" if (self.proto, self.ip) == ("icmp", "ip6") else self.proto


class Ruleset:
    """The maps and chains of one rendered file."""

    def __init__(self, text: str) -> None:
        self.maps: dict[str, list[tuple[list[str], str]]] = {}
        self.interval: dict[str, bool] = {}
        self.chains: dict[str, list[str]] = {}
        for kind, name, body in re.findall(r"^\t(map|chain) (\w+) \{\n(.*?)^\t\}$", text, re.M | re.S):
            lines = [line.strip() for line in body.splitlines()]
            if kind == "map":
                self.interval[name] = "flags interval" in lines
                entries = [line.rstrip(",").rpartition(" : ") for line in lines if " : " in line and "type" not in line]
                self.maps[name] = [(key.split(" . "), verdict) for key, _, verdict in entries]
            else:
                self.chains[name] = lines

    def judge(self, hook: str, packet: Packet) -> tuple[str, str]:
        """(what becomes of the packet, the log prefix it met) on one base chain."""
        base = self.chains[hook]
        assert base[0].startswith(f"type filter hook {hook} priority filter; policy ")
        verdict, logged = self._walk(base[1:], packet)
        return verdict or base[0].rsplit("policy ", 1)[1].rstrip(";"), logged

    def _walk(self, lines: list[str], packet: Packet) -> tuple[str, str]:
        """("" or the final verdict, the log prefix); "" means that the chain came back to its caller."""
        logged = ""
        for line in lines:
            verdict, prefix = self._statement(line, packet)
            logged = prefix or logged
            if verdict == "return":
                return "", logged
            if verdict.startswith("goto "):
                final, prefix = self._walk(self.chains[verdict[5:]], packet)
                return final, prefix or logged
            if verdict.startswith("jump "):
                final, prefix = self._walk(self.chains[verdict[5:]], packet)
                logged, verdict = prefix or logged, final
            if verdict:
                return verdict, logged
        return "", logged

    def _statement(self, line: str, packet: Packet) -> tuple[str, str]:
        """(verdict or "" where it does not decide, log prefix)."""
        if match := re.fullmatch(r'log prefix "([a-z -]+)" group 7 snaplen 96 queue-threshold 1', line):
            return "", match[1]
        if re.fullmatch(r"(goto|jump) \w+|accept|drop", line):
            return line, ""
        if line == "reject with icmpx admin-prohibited":
            return "drop", ""
        if line == "meta l4proto tcp reject with tcp reset":
            return ("drop" if packet.proto == "tcp" else ""), ""
        if re.fullmatch(r"ct mark set (0x[0-9a-f]{5}000|meta skuid map \{( \d+ : 0x[0-9a-f]{8},?)+ \})", line):
            return "", ""
        if line.startswith("icmpv6 type { nd-router-solicit"):
            return "", ""  # no packet here is neighbour discovery
        if re.fullmatch(r"ct mark and 0xfffff000 == 0x[0-9a-f]{5}000 accept", line):
            return ("accept" if packet.marked else ""), ""
        if match := re.fullmatch(r"ct state vmap \{ related : accept, invalid : (accept|drop) \}", line):
            return {"related": "accept", "invalid": match[1]}.get(packet.state, ""), ""
        if match := re.fullmatch(r"ct direction reply (goto \w+)", line):
            return (match[1] if packet.reply else ""), ""
        if match := re.fullmatch(r'(?:iif|oif) "lo" (ip6?) ([sd])addr (\S+) accept', line):
            address = packet.source if match[2] == "s" else packet.target
            inside = match[1] == packet.ip and ip_address(address) in ip_network(match[3])
            return ("accept" if packet.loopback and inside else ""), ""
        if match := re.fullmatch(r"(.+) vmap @(\w+)", line):
            return self._lookup(match[1], match[2], packet), ""
        raise AssertionError(f"a statement that this model does not know: {line}")

    def _lookup(self, key: str, name: str, packet: Packet) -> str:
        values = []
        for part in key.split(" . "):
            if part.startswith(("ip ", "ip6 ")):
                family, end = part.split()
                if family != packet.ip:
                    return ""
                values.append(packet.source if end == "saddr" else packet.target)
            elif part == "meta l4proto":
                values.append(packet.l4proto)
            else:
                values.append(str({"th sport": packet.sport, "th dport": packet.dport}[part]))
        found = {verdict for entry, verdict in self.maps[name]
                 if all(_matches(e, v) for e, v in zip(entry, values, strict=True))}
        assert len(found) <= 1, f"{values} has several verdicts in {name}"
        return next(iter(found), "")


def _matches(entry: str, value: str) -> bool:
    if "/" in entry:
        return ip_address(value) in ip_network(entry)
    if re.fullmatch(r"\d+-\d+", entry):
        low, high = entry.split("-")
        return value.isdigit() and int(low) <= int(value) <= int(high)
    return entry == value
