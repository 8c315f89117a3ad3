"""From what is denied to a classic BPF program, in the text that `tc ... bpf bytecode-file` takes."""

import ipaddress

LDB, LDH, LDW = 0x30, 0x28, 0x20  # [k], from the Ethernet header
LDBX, LDHX = 0x50, 0x48  # [x+k]
LDX, LDX_IHL, LDM, ST, AND = 0x01, 0xB1, 0x60, 0x02, 0x54
JA, JEQ, JGT, JGE, JSET, RET = 0x05, 0x15, 0x25, 0x35, 0x45, 0x06
OK, SHOT = 0, 2  # TC_ACT_*
L4 = 14  # x is the length of the IP header(s)


def denied(services, spare_udp):
    """What of one peer is to be dropped, as {"tcp": [[low, high]...], "udp": ..., "icmp": bool, "other": bool}."""
    wide = dict(services.protocols)
    entry = {"icmp": not wide.get("icmp", services.other), "other": not services.other}
    for proto in ("tcp", "udp"):
        edges, verdicts = [], wide.get(proto, services.other)
        at = 0
        for ports in (p for p in services.ports if p.proto == proto):
            if at < ports.low and not verdicts:
                edges.append([at, ports.low - 1])
            if not ports.allow:
                edges.append([ports.low, ports.high])
            at = ports.high + 1
        if at <= 65535 and not verdicts:
            edges.append([at, 65535])
        entry[proto] = edges
    low, high = spare_udp
    entry["udp"] = [part for first, last in entry["udp"]
                    for part in ([first, min(last, low - 1)], [max(first, high + 1), last]) if part[0] <= part[1]]
    return entry


class Assembler:
    def __init__(self):
        self.code, self.labels = [], {}

    def put(self, code, k=0, jt=0, jf=0):
        self.code.append((code, jt, jf, k))

    def label(self, name):
        self.labels[name] = len(self.code)

    def goto(self, name):
        self.put(JA, name)

    def when(self, code, k, name):  # conditional jumps reach 255 only, JA anywhere
        self.put(code, k, 0, 1)
        self.goto(name)

    def unless(self, code, k, name):
        self.put(code, k, 1, 0)
        self.goto(name)

    def text(self):
        self.label("pass")
        self.put(RET, OK)
        self.label("drop")
        self.put(RET, SHOT)
        lines = [f"{code} {jt} {jf} {self.labels[k] - at - 1 if code == JA else k}"
                 for at, (code, jt, jf, k) in enumerate(self.code)]
        return f"{len(lines)}," + ",".join(lines) + "\n"


def program(four, six):
    a = Assembler()
    a.put(LDH, 12)
    a.when(JEQ, 0x0800, "v4")
    a.unless(JEQ, 0x86DD, "pass")

    a.put(LDX, 40)  # IPv6
    a.put(LDB, 20)
    a.put(ST, 0)
    a.unless(JEQ, 44, "v6 peers")
    fragment(a, 56, 0xFFF8, 0x0008)
    a.put(LDX, 48)
    a.put(LDB, 54)
    a.put(ST, 0)
    a.label("v6 peers")
    groups = {}
    for address, entry in six.items():
        words = ipaddress.IPv6Address(address).packed
        name = groups.setdefault(repr(entry), (f"v6 group {len(groups)}", entry))[0]
        for word in range(4):
            a.put(LDW, 22 + 4 * word)
            a.unless(JEQ, int.from_bytes(words[4 * word:4 * word + 4], "big"), f"not {address}")
        a.goto(name)
        a.label(f"not {address}")
    a.goto("pass")
    for name, entry in groups.values():
        group(a, name, entry, icmp=58, echo=128, hidden=(0, 43, 44, 60))

    a.label("v4")
    a.put(LDB, 23)
    a.put(ST, 0)
    fragment(a, 20, 0x1FFF, 1)
    a.put(LDX_IHL, 14)
    a.put(LDW, 26)
    groups = {}
    for address, entry in four.items():
        name = groups.setdefault(repr(entry), (f"v4 group {len(groups)}", entry))[0]
        a.when(JEQ, int(ipaddress.IPv4Address(address)), name)
    a.goto("pass")
    for name, entry in groups.values():
        group(a, name, entry, icmp=1, echo=8, hidden=())
    return a.text()


def fragment(a, at, mask, second):
    """Later fragments pass, since nothing is made of them without the first; a second at 8 bytes hides TCP's flags."""
    a.put(LDH, at)
    a.put(AND, mask)
    a.when(JEQ, second, "drop")
    a.unless(JEQ, 0, "pass")


def group(a, name, entry, icmp, echo, hidden):
    a.label(name)
    a.put(LDM, 0)
    a.when(JEQ, 6, f"{name} tcp")
    a.when(JEQ, 17, f"{name} udp")
    a.when(JEQ, icmp, f"{name} icmp")
    for header in hidden:  # extension headers behind which a denied protocol could hide
        a.when(JEQ, header, "drop" if any(entry.values()) else "pass")
    a.goto("drop" if entry["other"] else "pass")

    a.label(f"{name} icmp")
    if entry["icmp"]:
        a.put(LDBX, L4)
        a.when(JEQ, echo, "drop")
    a.goto("pass")

    a.label(f"{name} tcp")
    if entry["tcp"]:
        a.put(LDBX, L4 + 13)
        a.put(AND, 0x12)
        a.unless(JEQ, 0x02, "pass")  # SYN without ACK: who asks
        ports(a, f"{name} tcp", entry["tcp"])
    a.goto("pass")

    a.label(f"{name} udp")
    ports(a, f"{name} udp", entry["udp"])
    a.goto("pass")


def ports(a, name, ranges):
    if ranges:
        a.put(LDHX, L4 + 2)
    for low, high in ranges:  # ascending
        a.unless(JGE, low, "pass")
        a.unless(JGT, high, "drop")
