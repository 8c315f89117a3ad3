"""nftables rule sets as text: verdict maps keyed by address, protocol and port, never a list of rules. Pure.

What a packet meets, in order (both arms share it):

1. The connection's mark says that this very rule set allowed it: accept. One rule for all established traffic, its
   replies and the ICMP errors about it. The upper 20 bits are a digest of the rule set, so after an update every
   connection is judged again at its next packet, in either direction, and those still allowed do not notice. The
   lower 12 bits say which user's socket asked, as the kernel knows at that moment: telemetry reads it back.
2. What is outside the policy: loopback (unless the policy says otherwise), neighbour discovery.
3. `ct state`: related is accepted (errors about what is allowed), invalid is dropped.
4. Three lookups per family at most, the narrowest first: port, protocol, address. Deny-over-allow was settled when the
   maps were made, so each key has one verdict; empty maps are left out.
5. The default.

Lookups cost the same for ten entries and for ten thousand (measured: CRR rate 0.84-0.85 of no firewall, where 10,000
linear rules leave 0.19). Maps are hashes; one that needs a port range is an interval map.
A TCP connection picked up mid-stream (nf_conntrack_tcp_loose=1, the kernel's default) is judged like a new one, by the
direction of the first packet seen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from enforcers.base import Services
from lab.model import FAMILIES, Family

TABLE = "labctl_agent"
NFLOG_GROUP = 7
SNAPLEN = 96  # bytes of a denied packet that are logged: an IPv6 header, a full TCP header, and room
_RANGE = re.compile(r"/|\d-\d+$")  # a prefix, or a port range at the end
MARK_MASK, MAX_USERS = 0xFFFFF000, 0xFFF
_MARK = "@mark@"  # five digits, replaced by the digest when the whole text is known

Mode = Literal["enforce", "monitor"]
Level = Literal["port", "proto", "host"]
LEVELS: tuple[Level, ...] = ("port", "proto", "host")
_KEY_TYPES = {"port": " . inet_proto . inet_service", "proto": " . inet_proto", "host": ""}
_ICMP: dict[Family, str] = {4: "icmp", 6: "ipv6-icmp"}


@dataclass(slots=True)
class Lookup:
    """Verdicts keyed by one address (`ends` 1) or by source and target address (2), in both families.

    `name` begins the names of its maps and of the chain that accepts: `<name>_port4`, `<name>_allow`. `users` (uid by
    index) are told apart in the mark, where the socket that asks is a local one.
    """

    name: str
    ends: int
    default: bool
    users: Sequence[int] = ()
    elements: dict[tuple[Level, Family], dict[str, bool]] = field(default_factory=dict)

    def add(self, addresses: Sequence[str], services: Services, family: Family) -> None:
        """Enter what `services` says about these addresses, as far as it differs from the default."""
        where = " . ".join(addresses)
        for transport, low, high, allow in services.ports:
            port = str(low) if low == high else f"{low}-{high}"
            self._put("port", family, f"{where} . {transport} . {port}", allow)
        for proto, allow in services.protocols:
            self._put("proto", family, f"{where} . {_ICMP[family] if proto == 'icmp' else proto}", allow)
        if services.other != self.default:
            self._put("host", family, where, services.other)

    def _put(self, level: Level, family: Family, key: str, allow: bool) -> None:
        self.elements.setdefault((level, family), {})[key] = allow

    @property
    def count(self) -> int:
        return sum(len(entries) for entries in self.elements.values())

    def used(self) -> Iterator[tuple[Level, Family, dict[str, bool]]]:
        """The maps that have entries, narrowest level first."""
        for level in LEVELS:
            for family in FAMILIES:
                if entries := self.elements.get((level, family)):
                    yield level, family, entries

    def maps(self) -> Iterator[str]:
        """The text of each map that has entries."""
        for level, family, entries in self.used():
            address = " . ".join([f"ipv{family}_addr"] * self.ends)
            yield f"\tmap {self.name}_{level}{family} {{"
            yield f"\t\ttype {address}{_KEY_TYPES[level]} : verdict"
            if any(_RANGE.search(key) for key in entries):
                yield "\t\tflags interval"
            yield "\t\telements = {"
            verdicts = {True: f"goto {self.name}_allow", False: "return"}
            yield from (f"\t\t\t{key} : {verdicts[allow]}," for key, allow in entries.items())
            yield "\t\t}"
            yield "\t}"

    def chain(self, name: str, address: str, port: str) -> Iterator[str]:
        """A chain that looks packets up; it comes back to its caller where the verdict is deny.

        `address` has `{ip}` where the family goes; `port` is `th dport`, or `th sport` for replies.
        """
        yield f"\tchain {name} {{"
        for level, family, _ in self.used():
            key = address.format(ip="ip" if family == 4 else "ip6")
            more = {"port": f" . meta l4proto . {port}", "proto": " . meta l4proto", "host": ""}[level]
            yield f"\t\t{key}{more} vmap @{self.name}_{level}{family}"
        if self.default:
            yield f"\t\tgoto {self.name}_allow"
        yield "\t}"

    def allow(self) -> Iterator[str]:
        """The chain that accepts, and marks the connection so that its other packets need no lookup."""
        yield f"\tchain {self.name}_allow {{"
        yield f"\t\tct mark set 0x{_MARK}000"
        if self.users:
            marks = ", ".join(f"{uid} : 0x{_MARK}{index:03x}" for index, uid in enumerate(self.users, 1))
            yield f"\t\tct mark set meta skuid map {{ {marks} }}"
        yield "\t\taccept"
        yield "\t}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What becomes of a denied packet: logged as `label` and then `statements`; in monitor mode only logged."""

    label: str
    statements: tuple[str, ...]

    def render(self, mode: Mode, allow: str) -> Iterator[str]:
        """A verdict has one home: its log prefix, which the daemon reads back. `allow` is where a monitor goes on."""
        word = "deny" if mode == "enforce" else "would-deny"
        # One packet per message: a deny must be seen while its socket still exists.
        log = f'log prefix "{word} {self.label}" group {NFLOG_GROUP} snaplen {SNAPLEN} queue-threshold 1'
        yield f"\t\t{log}"
        yield from (f"\t\t{statement}" for statement in (self.statements if mode == "enforce" else (f"goto {allow}",)))


# A reset ends connect() at once: ICMP errors are rate-limited (measured: of 600 denied connects over IPv6 none got
# one within 20 ms), and the sender of a datagram gets EPERM from the call itself either way.
REJECT = ("meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited")
DROP = ("drop",)


@dataclass(frozen=True, slots=True)
class Question:
    """Which lookup answers for a packet, and where in the packet its key is (`Lookup.chain`)."""

    lookup: Lookup
    address: str
    port: Literal["th dport", "th sport"]


@dataclass(frozen=True, slots=True)
class Hook:
    """One base chain: the question for a new flow, the one for a packet of the other direction, and what is refused."""

    name: Literal["input", "output", "forward"]
    word: str  # how log prefixes name it
    original: Question
    reply: Question
    refuse: tuple[str, ...]
    exempt: tuple[str, ...] = ()


def ruleset(lookups: Sequence[Lookup], hooks: Sequence[Hook], mode: Mode) -> str:
    """The whole file for `nft -f`: replaces the table in one transaction."""
    lines = [f"table inet {TABLE} {{"]
    for lookup in lookups:
        lines += [*lookup.maps(), *lookup.allow()]
    for hook in hooks:
        lines += hook.original.lookup.chain(f"{hook.name}_lookup", hook.original.address, hook.original.port)
        lines += hook.reply.lookup.chain(f"{hook.name}_reply_lookup", hook.reply.address, hook.reply.port)
        lines += _base_chain(hook, mode)
    text = "\n".join([*lines, "}", ""])
    return f"table inet {TABLE}\ndelete table inet {TABLE}\n{text.replace(_MARK, generation(text))}"


def generation(text: str) -> str:
    """What sets one rule set's marks apart: five hex digits of its SHA-256, not all zero (no mark at all)."""
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 12
    return f"{value or 1:05x}"


def _base_chain(hook: Hook, mode: Mode) -> Iterator[str]:
    passing = hook.original.lookup.default or mode == "monitor"
    yield f"\tchain {hook.name}_reply {{"
    yield f"\t\tjump {hook.name}_reply_lookup"
    yield from Refusal(f"{hook.word} reply", hook.refuse).render(mode, f"{hook.reply.lookup.name}_allow")
    yield "\t}"
    yield f"\tchain {hook.name} {{"
    yield f"\t\ttype filter hook {hook.name} priority filter; policy {'accept' if passing else 'drop'};"
    yield f"\t\tct mark and 0x{MARK_MASK:08x} == 0x{_MARK}000 accept"
    yield from (f"\t\t{statement}" for statement in hook.exempt)
    # In monitor mode nothing may be cut, not even what connection tracking cannot place.
    yield f"\t\tct state vmap {{ related : accept, invalid : {'accept' if mode == 'monitor' else 'drop'} }}"
    yield f"\t\tct direction reply goto {hook.name}_reply"
    yield f"\t\tjump {hook.name}_lookup"
    yield from Refusal(hook.word, hook.refuse).render(mode, f"{hook.original.lookup.name}_allow")
    yield "\t}"
