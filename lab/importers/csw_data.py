"""Reads one graph of "A Dataset of Networks of Computing Hosts": hourly edges, groups of nodes.

Madani, Averineni, Gandham; Cisco Secure Workload; IWSPA 2022. An edge line is tab-separated: graph id, client node,
server node, comma-separated `<code>p<protocol>-<packets>`, where the code is an anonymised service, not a port.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

EDGES = "dir_includes_packets_and_other_nodes"
GROUPS = "groupings.gt.txt"
_SERVICE = re.compile(r"([0-9]{1,5})p([0-9]{1,3})-[0-9]{1,15}")


class CswError(Exception):
    """The data cannot be imported; the message is one line: place, what is wrong, what to do."""


class Triple(NamedTuple):
    """A client node, a server node, a service code and an IP protocol number."""

    client: int
    server: int
    code: int
    protocol: int


@dataclass(frozen=True, slots=True)
class Graph:
    """`hours`: per triple the hours, from 0 in order of the files, in which it was seen. `groups`: nodes by group."""

    name: str
    hours: Mapping[Triple, tuple[int, ...]]
    groups: tuple[tuple[int, ...], ...]
    hour_count: int


def read_graph(directory: Path) -> Graph:
    """The graph in `directory`, every hour of it. Raises CswError."""
    groups = _groups(directory / GROUPS)
    files = sorted((directory / EDGES).glob("edges_to_ports_*.txt.gz"))
    if not files:
        raise CswError(f"{directory / EDGES}: there are no edges_to_ports_*.txt.gz; name the directory of one graph")
    hours: dict[Triple, list[int]] = {}
    names: dict[str, None] = {}
    for hour, file in enumerate(files):
        seen = set()
        for name, triple in _edges(file):
            names[name] = None
            seen.add(triple)
        for triple in seen:
            hours.setdefault(triple, []).append(hour)
    if len(names) != 1:
        raise CswError(f"{directory / EDGES}: edges of {len(names)} graphs; keep the files of one")
    ordered = {triple: tuple(hours[triple]) for triple in sorted(hours)}
    return Graph(next(iter(names)), ordered, groups, len(files))


def _groups(file: Path) -> tuple[tuple[int, ...], ...]:
    try:
        lines = file.read_text(encoding="ascii").split()
        return tuple(tuple(int(node) for node in line.split(",")) for line in lines)
    except OSError as err:
        raise CswError(f"{file}: {err.strerror}; name the directory of one graph") from None
    except ValueError:
        raise CswError(f"{file}: is not lines of node,node,…; take the file as published") from None


def _edges(file: Path) -> Iterator[tuple[str, Triple]]:
    try:
        with gzip.open(file, "rt", encoding="ascii") as lines:
            for number, line in enumerate(lines, 1):
                yield from _line(line.rstrip("\n"), f"{file}:{number}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as err:
        raise CswError(f"{file}: cannot be read ({type(err).__name__}); take the file as published") from None


def _line(line: str, place: str) -> Iterator[tuple[str, Triple]]:
    fields = line.split("\t")
    if len(fields) != 4 or not re.fullmatch(r"[a-z0-9-]{1,20}", fields[0]):
        raise CswError(f"{place}: is not graph, client, server, services; take the file as published")
    for service in fields[3].split(","):
        found = _SERVICE.fullmatch(service)
        if found is None or not (fields[1].isdecimal() and fields[2].isdecimal()):
            raise CswError(f"{place}: {service[:40]!r} is not code, protocol and packets; take the file as published")
        yield fields[0], Triple(int(fields[1]), int(fields[2]), int(found[1]), int(found[2]))
