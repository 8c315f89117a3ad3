"""Amazon VPC flow logs, version 2 and custom formats: written from what ports saw, and read.

Fields and their meaning: Amazon VPC User Guide, "Flow log records" (versions 2 to 5; later ones are not known here and
are skipped). *Unverified*, so assumed: ports of ICMP are 0; how a window with several verdicts is logged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address

from bench.instruments.telemetry.cloud import Clock, Delivery, Entry, deliveries, idle
from bench.instruments.telemetry.flows import PROTOS, Record, Verdict

V2 = ("version", "account-id", "interface-id", "srcaddr", "dstaddr", "srcport", "dstport", "protocol", "packets",
      "bytes", "start", "end", "action", "log-status")
WITH_FLAGS = (*V2, "tcp-flags", "flow-direction")  # what the lab writes; the reader takes any order
ACCOUNT = "123456789010"
_NUMBERS = {"tcp": "6", "udp": "17"}
_VERDICTS: Mapping[str, Verdict] = {"ACCEPT": "allow", "REJECT": "deny"}


def write(found: Sequence[Entry], hosts: Sequence[str], clock: Clock, delivery: Delivery, skipped: bool,
          fields: Sequence[str] = WITH_FLAGS) -> Iterator[tuple[float, str]]:
    """(when it can be read, line) of every record. `skipped`: packets were missed, which is told as SKIPDATA."""
    read_at = deliveries(found, clock, delivery)
    for entry in found:
        proto, source, sport, target, dport = entry.talk
        number = _NUMBERS.get(proto) or ("58" if ":" in source else "1")
        said = {"version": "5", "account-id": ACCOUNT, "interface-id": interface(entry.host), "srcaddr": source,
                "dstaddr": target, "srcport": str(sport), "dstport": str(dport), "protocol": number,
                "packets": str(entry.packets), "bytes": str(entry.bytes), "start": str(int(entry.first)),
                "end": str(int(entry.last)), "action": "ACCEPT" if entry.allowed else "REJECT", "log-status": "OK",
                "tcp-flags": str(entry.flags), "flow-direction": "egress" if entry.out else "ingress"}
        yield read_at[entry.window], " ".join(said[name] for name in fields)
    for host, window in idle(found, hosts):
        yield (clock.lab((window + 1) * delivery.interval_s + delivery.delay_s),
               _nothing(host, window, delivery, "NODATA", fields))
    if skipped and found:
        window = found[-1].window
        yield read_at[window], _nothing(found[-1].host, window, delivery, "SKIPDATA", fields)


def _nothing(host: str, window: int, delivery: Delivery, status: str, fields: Sequence[str]) -> str:
    said = {"version": "5", "account-id": ACCOUNT, "interface-id": interface(host), "log-status": status,
            "start": str(int(window * delivery.interval_s)), "end": str(int((window + 1) * delivery.interval_s))}
    return " ".join(said.get(name, "-") for name in fields)


def interface(host: str) -> str:
    """A network interface's name that leads back to its host."""
    return f"eni-{host}"


class LineError(ValueError):
    """A line is no flow log record; the message says why."""


def read(line: str, at: float, clock: Clock, fields: Sequence[str] = WITH_FLAGS) -> Record | None:
    """The record of one line; None for NODATA and SKIPDATA. Raises LineError, never anything else."""
    words = line.split()
    if len(words) != len(fields):
        raise LineError(f"{len(words)} fields, not {len(fields)}")
    said: Mapping[str, str] = dict(zip(fields, words, strict=True))
    if said.get("log-status") in ("NODATA", "SKIPDATA"):
        return None
    try:
        number = int(said["protocol"])
        verdict = _VERDICTS[said["action"]]
        proto = PROTOS.get(number, str(number))
        ports = (0, 0) if proto == "icmp" else (int(said["srcport"]), int(said["dstport"]))
        start, end = clock.lab(int(said["start"])), clock.lab(int(said["end"]) + 1)
        ends = str(ip_address(said["srcaddr"])), str(ip_address(said["dstaddr"]))
        return Record(said["interface-id"].removeprefix("eni-"), proto, ends[0], ports[0], ends[1], ports[1], start,
                      end, at, int(said["bytes"]), int(said["packets"]), verdict,
                      asked=_asked(said.get("tcp-flags", "-")))
    except (KeyError, ValueError) as err:
        raise LineError(f"not a flow log record: {err!r}") from None


def _asked(flags: str) -> bool | None:
    """SYN alone opens (2), SYN with ACK answers (18); the guide says that ACK alone is not told."""
    value = int(flags) if flags.isdigit() else 0
    return None if not value & 2 else not value & 16


def records(lines: Iterable[tuple[float, str]], clock: Clock) -> tuple[list[Record], int]:
    """The records of lines with when they can be read, and how many lines could not be."""
    found, bad = [], 0
    for at, line in lines:
        try:
            record = read(line, at, clock)
        except LineError:
            bad += 1
        else:
            found += [record] if record else []
    return found, bad
