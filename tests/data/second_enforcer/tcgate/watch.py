"""Records what opens a flow, on every interface, before tc drops it; the verdict is that of the program's table."""

import json
import os
import signal
import socket
import struct
import time

TABLE, OUT, PID = "/run/host/tcgate.json", "/run/host/tcgate.jsonl", "/run/host/tcgate.pid"
OUTGOING, AGAIN = 4, 10.0
table, seen = {}, {}


def load(*_):
    with open(TABLE) as file:
        read = json.load(file)
    table.clear()
    table.update({address: entry for family in read.values() for address, entry in family.items()})


def flow(packet, kind):
    if kind == 0x0800:
        if (packet[6] & 31) or packet[7]:
            return None  # a later fragment
        proto, at, ends, family = packet[9], (packet[0] & 15) * 4, (packet[12:16], packet[16:20]), socket.AF_INET
    elif kind == 0x86DD:
        proto, at, ends, family = packet[6], 40, (packet[8:24], packet[24:40]), socket.AF_INET6
    else:
        return None
    source, target = (socket.inet_ntop(family, end) for end in ends)
    if proto == 6:
        return ("tcp", source, *struct.unpack_from("!H", packet, at), target,
                *struct.unpack_from("!H", packet, at + 2)) if packet[at + 13] & 0x12 == 0x02 else None
    if proto == 17:
        sport, dport = struct.unpack_from("!HH", packet, at)
        return "udp", source, sport, target, dport
    if (proto, packet[at]) in ((1, 8), (58, 128)):
        return ("icmp", source, *struct.unpack_from("!H", packet, at + 4), target, 0)
    return None


def verdict(proto, source, dport):
    entry = table.get(source)
    if entry is None:
        return None
    if proto == "icmp":
        return "deny" if entry["icmp"] else "allow"
    return "deny" if any(low <= dport <= high for low, high in entry[proto]) else "allow"


packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
packets.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
signal.signal(signal.SIGHUP, load)
load()
with open(PID, "w") as file:
    file.write(str(os.getpid()))
while True:
    packet, (interface, kind, direction, *_) = packets.recvfrom(256)
    now = time.monotonic()
    try:
        found = flow(packet, kind)
    except (IndexError, struct.error):
        continue
    if found is None:
        continue
    proto, source, sport, target, dport = found
    known = next((key for key in (found, (proto, target, dport, source, sport)) if now - seen.get(key, -AGAIN) < AGAIN), None)
    if len(seen) > 200000:
        seen.clear()
    seen[known or found] = now
    if known:
        continue  # an answer or a repetition
    line = {"time": now, "proto": proto, "source": source, "sport": sport, "target": target, "dport": dport}
    if direction != OUTGOING and interface != "lo":
        line["verdict"] = verdict(proto, source, dport)
    with open(OUT, "a") as out:
        out.write(json.dumps(line) + "\n")
