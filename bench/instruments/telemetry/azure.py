"""Azure's flow logs: virtual network flow logs (flowLogVersion 4) written, these and NSG flow logs (version 2) read.

Tuples as in Azure's documentation ("Virtual network flow logs", "NSG flow logs"): state B begins and has no counts, C
goes on, E ends, both with what was new since; in version 4 a refusal is the state D, in version 2 a field of its own.
*Unverified*, so assumed: ports of ICMP are 0; that a flow which began and ended within a window has both B and E.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from bench.instruments.telemetry.cloud import Clock, Conversation, Delivery, Entry, deliveries
from bench.instruments.telemetry.flows import PROTOS, Record

_NUMBERS = {"tcp": "6", "udp": "17"}
_LETTERS = {"T": "tcp", "U": "udp"}
_TUPLE_V4, _TUPLE_NSG = 13, 13  # fields of a whole one; a B or D of version 2 may leave out the counts
_LEAST_NSG = 9
DEFAULT_RULE = "(default)"


class LineError(ValueError):
    """A document or a tuple is no flow log; the message says why."""


# --- written --------------------------------------------------------------------------------------


def write(found: Sequence[Entry], macs: Mapping[str, str], clock: Clock,
          delivery: Delivery) -> Iterator[tuple[float, str]]:
    """(when it can be read, JSON document) of every port and window."""
    read_at = deliveries(found, clock, delivery)
    pages: dict[tuple[int, str], list[tuple[str, str]]] = defaultdict(list)
    for flow in _flows(found):
        for window, line in _tuples(flow):
            pages[window, flow.host].append((flow.rule, line))
    for (window, host), lines in sorted(pages.items()):
        groups: dict[str, list[str]] = defaultdict(list)
        for rule, line in lines:
            groups[rule].append(line)
        record = {"flowLogVersion": 4, "macAddress": macs[host].replace(":", "").upper(),
                  "category": "FlowLogFlowEvent",
                  "flowRecords": {"flows": [{"aclID": host, "flowGroups": [
                      {"rule": rule, "flowTuples": tuples} for rule, tuples in groups.items()]}]}}
        yield read_at[window], json.dumps({"records": [record]})


@dataclass(frozen=True, slots=True)
class _Flow:
    """Both directions at one port: by window what was sent by who began, and what came back."""

    host: str
    talk: Conversation  # as who began sends
    out: bool
    rule: str
    allowed: bool
    windows: Mapping[int, tuple[Entry | None, Entry | None]]


def _flows(found: Sequence[Entry]) -> Iterator[_Flow]:
    by_flow: dict[tuple[str, Conversation], dict[int, list[Entry | None]]] = {}
    began: dict[tuple[str, Conversation], Entry] = {}
    for entry in found:
        key, back = (entry.host, entry.talk), (entry.host, _back(entry.talk))
        answers = key not in by_flow and (back in by_flow or entry.asks is False)
        at = back if answers else key
        began.setdefault(at, entry)
        windows = by_flow.setdefault(at, {})
        windows.setdefault(entry.window, [None, None])[int(answers)] = entry
    for (host, talk), windows in by_flow.items():
        first = began[host, talk]
        yield _Flow(host, talk, first.out == (first.talk == talk), first.rule or DEFAULT_RULE, first.allowed,
                    {window: (pair[0], pair[1]) for window, pair in sorted(windows.items())})


def _back(talk: Conversation) -> Conversation:
    return talk[0], talk[3], talk[4], talk[1], talk[2]


def _tuples(flow: _Flow) -> Iterator[tuple[int, str]]:
    last = max(flow.windows)
    begun = False
    for window, (ahead, back) in flow.windows.items():
        some = [entry for entry in (ahead, back) if entry]
        first, until = min(e.first for e in some), max(e.last for e in some)
        if not flow.allowed:
            yield window, _line(first, flow, "D", None, None)
            continue
        if not begun:
            yield window, _line(first, flow, "B", None, None)
            begun = True
        ends = window == last and (flow.talk[0] != "tcp" or any(e.ends for e in some))
        yield window, _line(until, flow, "E" if ends else "C", ahead, back)


def _line(at: float, flow: _Flow, state: str, ahead: Entry | None, back: Entry | None) -> str:
    proto, source, sport, target, dport = flow.talk
    number = _NUMBERS.get(proto) or ("58" if ":" in source else "1")
    counts = [n for e in (ahead, back) for n in ((e.packets, e.bytes) if e else (0, 0))]
    words = [int(at * 1000), source, target, sport, dport, number, "O" if flow.out else "I", state, "NX", *counts]
    return ",".join(map(str, words))


# --- read -----------------------------------------------------------------------------------------


def records(documents: Iterable[tuple[float, str]], clock: Clock,
            hosts: Mapping[str, str]) -> tuple[list[Record], int]:
    """The records of documents with when they can be read, and how many tuples or documents could not be.

    `hosts`: by MAC address (hexadecimal, capitals), whose port it is.
    """
    found: list[Record] = []
    bad = 0
    for at, text in documents:
        try:
            lines = list(_lines(json.loads(text), hosts))
        except (ValueError, KeyError, TypeError, AttributeError):
            bad += 1
            continue
        for point, rule, version, line in lines:
            try:
                found.append(read(line, version, point, rule, at, clock))
            except LineError:
                bad += 1
    return found, bad


def _lines(document: Any, hosts: Mapping[str, str]) -> Iterator[tuple[str, str, int, str]]:
    for record in document["records"]:
        if "flowRecords" in record:  # virtual network flow logs
            point = hosts.get(str(record["macAddress"]), str(record["macAddress"]))
            for flow in record["flowRecords"]["flows"]:
                for group in flow["flowGroups"]:
                    for line in group["flowTuples"]:
                        yield point, str(group["rule"]), 4, str(line)
            continue
        for rule in record["properties"]["flows"]:
            for flow in rule["flows"]:
                for line in flow["flowTuples"]:
                    yield hosts.get(str(flow["mac"]), str(flow["mac"])), str(rule["rule"]), 2, str(line)


def read(line: str, version: int, point: str, rule: str, at: float, clock: Clock) -> Record:
    """The record of one tuple. Raises LineError, never anything else."""
    words = line.split(",")
    try:
        if version == 4:
            if len(words) != _TUPLE_V4:
                raise LineError(f"{len(words)} fields, not {_TUPLE_V4}")
            start, number, state = int(words[0]) / 1e3, int(words[5]), words[7]
            proto, refused = PROTOS.get(number, str(number)), state == "D"
        else:
            if not _LEAST_NSG <= len(words) <= _TUPLE_NSG:
                raise LineError(f"{len(words)} fields, not {_LEAST_NSG} to {_TUPLE_NSG}")
            start, proto, state = float(int(words[0])), _LETTERS[words[5]], words[8]
            refused = {"A": False, "D": True}[words[7]]
        if state not in ("B", "C", "E", "D"):
            raise LineError(f"state '{state}'")
        counts = [int(word or 0) for word in words[9:]] or [0]
        ends = str(ip_address(words[1])), str(ip_address(words[2]))
        ports = (0, 0) if proto == "icmp" else (int(words[3]), int(words[4]))
        when = clock.lab(start)
    except (KeyError, ValueError, OverflowError) as err:
        raise LineError(f"not a flow tuple: {err}") from None
    told = not refused and state in ("C", "E")
    return Record(point, proto, ends[0], ports[0], ends[1], ports[1], when, when, at,
                  sum(counts[1::2]) if told else None, sum(counts[::2]) if told else None,
                  "deny" if refused else "allow", None if rule == DEFAULT_RULE else rule, asked=True)
