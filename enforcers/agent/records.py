"""The agent's telemetry lines, read into the one shape that all arms share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from lab.model import Point, Sighting


def sightings(point: Point, lines: Iterable[bytes]) -> Iterator[Sighting]:
    """Every flow and every denied packet that an agent recorded for `point`; its header lines are skipped.

    A flow that was reported open and again later keeps its time, so the reports can be told to be one flow.
    Raises ValueError naming the point where a line is not the agent's: telemetry cut short must not pass for less.
    """
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if record["t"] != "header":
                yield _sighting(point, record)
        except (ValueError, KeyError, TypeError) as err:
            shown = line[:80].decode(errors="replace")
            raise ValueError(f"{point.host}: not a telemetry line of the agent ({err!r}): {shown}") from err


def _sighting(point: Point, record: dict[str, Any]) -> Sighting:
    return Sighting(
        point=point.host,
        time=record["time"],
        proto=record["proto"],
        source=record["source"],
        sport=record["sport"],
        target=record["target"],
        dport=record["dport"],
        process=record["process"],
        user=record["user"],
        target_process=record["target_process"],
        bytes=record["bytes"],
        packets=record["packets"],
        verdict=record.get("verdict", "allow"),
        rule=record.get("rule"),
    )
