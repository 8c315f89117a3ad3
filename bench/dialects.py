"""From what each collector kept to a row a setting: decoded in the product's format, made sightings, judged. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.analysis.telemetry import quality
from bench.instruments.telemetry import aws, azure, cloud, netflow
from bench.instruments.telemetry.cloud import Clock, Delivery
from bench.instruments.telemetry.exporters import Export, Kind, Stream
from bench.instruments.telemetry.flows import Record, Told, told
from bench.instruments.telemetry.port_tap import Heard
from bench.instruments.telemetry.readings import Readings
from bench.report.telemetry import Dialect, Setting, setting
from lab.model import Sighting, Topology, Truth

EVERY_S = 2.0  # an arm's own records are read so often
MULTIPLES = (1, 2, 4)
EXPORTS = (
    *(Export(kind, idle, active) for kind in ("netflow-v9", "ipfix") for idle, active in ((1, 2), (3, 10), (8, 30))),
    *(Export("psamp", sampled=n) for n in (10, 100, 1000)),
)
MINUTE = 60.0
AWS = {"1 min, to CloudWatch": Delivery(MINUTE, 5 * MINUTE), "10 min, to CloudWatch": Delivery(10 * MINUTE, 5 * MINUTE),
       "10 min, to S3": Delivery(10 * MINUTE, 10 * MINUTE)}
AZURE = {"1 min": Delivery(MINUTE, 0.0), "10 min": Delivery(10 * MINUTE, 0.0), "60 min": Delivery(60 * MINUTE, 0.0)}
FACTOR = 60.0  # seconds of a cloud's log for one of the lab
SAMPLE_GAP_S = 10.0  # between samples of one flow
GAP_S = 1.0  # between records of one flow, beside what they are aggregated over
NAMES: Mapping[Kind, str] = {"netflow-v9": "NetFlow v9", "ipfix": "IPFIX", "psamp": "packet sampling"}
SPAN = "softflowd on a mirror port of each segment, behind the ports' firewall if there is one"
PORTS = "modelled on the headers at every switch port, verdicts from the arm's own records there"
OPEN_PORTS = "modelled on the headers at every switch port; the arm decides nothing there, so all is logged as accepted"
OPEN_ASSUMES = ("the cloud's own groups let everything pass, since this arm decides nothing at ports; what it refuses "
                "elsewhere they do not know",)
AWS_ASSUMES = ("log time to delivery is what the guide calls typical: about 5 minutes to CloudWatch Logs, 10 to S3",
               "the ports of ICMP are 0 (unverified)")
AZURE_ASSUMES = ("a flow that goes on is told in every window; the documentation says every five minutes",
                 "no time from a window's end to delivery is published: taken as 0, so real delays are longer",
                 "10 and 60 minutes are the intervals of traffic analytics; that it keeps source ports is assumed",
                 "the ports of ICMP are 0 (unverified)")


@dataclass(slots=True)
class Kept:
    """All that the collectors of one run kept. A `…_lacks` says why there is nothing of it."""

    clock: Clock
    readings: Readings | None = None
    streams: Sequence[Stream] = ()
    heard: Heard | None = None
    records_lack: str | None = None
    exports_lack: str | None = None
    ports_lack: str | None = None
    ports_judge: bool = True  # whether the arm decides at switch ports, as clouds do
    decided: dict[Hashable, Sighting] = field(default_factory=dict)  # by switch ports: the last of each flow


@dataclass(frozen=True, slots=True)
class Row:
    """One setting's row, and what it was made of."""

    dialect: str
    setting: Setting
    told: Sequence[Told]


@dataclass(frozen=True, slots=True)
class World:
    """What really was: who stood where, and what was done."""

    topology: Topology
    truths: Sequence[Truth]


# --- an arm's own records -------------------------------------------------------------------------


def own(kept: Kept, world: World, arm: str, where: str) -> tuple[Dialect, list[Row]]:
    """The arm's records, had they been read every so often."""
    name = f"records of {arm}"
    if kept.readings is None or kept.records_lack:
        return Dialect(name=name, where=where, unsupported=kept.records_lack), []
    readings, rows = kept.readings, []
    for every in MULTIPLES:
        found = [Told(one, _read_at(readings, index, every), one.time)
                 for index, (_at, some) in enumerate(readings.found) for one in some]
        rows.append(Row(name, setting(f"read every {every * EVERY_S:g} s", quality(world.truths, found, world.topology),
                                      records=len(found), lost=readings.lost, lost_what="records, by its own count"),
                        found))
    return Dialect(name=name, where=where, settings=tuple(row.setting for row in rows),
                   unsupported=readings.failed or None), rows


def _read_at(readings: Readings, index: int, every: int) -> float:
    last = len(readings.found) - 1
    return readings.found[min(last, (index // every + 1) * every - 1)][0]


def same(one: Sighting) -> Hashable:
    """What two records of one flow at one point have in common."""
    return one.point, one.proto, one.source, one.sport, one.target, one.dport, one.time


# --- exporters ------------------------------------------------------------------------------------


def exported(kept: Kept, world: World, exports: Iterable[Export]) -> tuple[list[Dialect], list[Row]]:
    """What softflowd sent, by dialect and setting; the streams of all segments together."""
    rows: list[Row] = []
    dialects = []
    for kind, name in NAMES.items():
        chosen = [export for export in exports if export.kind == kind]
        found = [] if kept.exports_lack else [_export(one, name, kept, world) for one in chosen]
        rows += found
        if chosen:
            dialects.append(Dialect(name=name, where=SPAN, settings=tuple(row.setting for row in found),
                                    unsupported=kept.exports_lack))
    return dialects, rows


def _export(export: Export, name: str, kept: Kept, world: World) -> Row:
    records: list[Record] = []
    lost: Counter[str] = Counter()
    malformed = 0
    for stream in kept.streams:
        if stream.export != export:
            continue
        decoder = netflow.Decoder()
        for at, datagram in stream.datagrams:
            message = decoder.decode(datagram)
            if message is not None:
                records += netflow.records(message, stream.segment, at, kept.clock.offset_s, export.sampled)
        malformed += decoder.malformed + decoder.unknown
        lost["datagrams" if export.kind == "netflow-v9" else "records"] += decoder.lost
        lost["flows still open at the end"] += stream.still_open if export.kind != "psamp" else 0
        lost["packets that softflowd had no room for"] += stream.missed_packets
    sightings = told(records, SAMPLE_GAP_S if export.kind == "psamp" else GAP_S + export.idle_s)
    what = ", ".join(f"{n:,} {word}" for word, n in lost.items() if n)
    words = f"1 of {export.sampled:,} packets" if export.kind == "psamp" else \
        f"idle {export.idle_s} s, active {export.active_s} s"
    words += f", only {export.only}" if export.only else ""
    row = setting(words, quality(world.truths, sightings, world.topology), records=len(records),
                  lost=sum(lost.values()), lost_what=f"({what})" if what else "", malformed=malformed)
    return Row(name, row, sightings)


# --- cloud logs -----------------------------------------------------------------------------------


def logged(kept: Kept, world: World) -> tuple[list[Dialect], list[Row], list[tuple[str, str, float, str]]]:
    """The flow logs of two clouds: written, read back, judged; and the lines with dialect and setting.

    An arm that decides elsewhere stands in a cloud whose own groups let everything pass.
    """
    found = []
    rows: list[Row] = []
    lines: list[tuple[str, str, float, str]] = []
    for name, deliveries, assumes in (("AWS VPC flow logs", AWS, AWS_ASSUMES),
                                      ("Azure VNet flow logs", AZURE, AZURE_ASSUMES)):
        made = [] if kept.ports_lack or kept.heard is None else \
            [_log(name, words, delivery, kept, world, lines) for words, delivery in deliveries.items()]
        rows += made
        where, more = (PORTS, ()) if kept.ports_judge else (OPEN_PORTS, OPEN_ASSUMES)
        found.append(Dialect(name=name, where=where, settings=tuple(row.setting for row in made),
                             time_factor=kept.clock.factor, assumes=(*assumes, *more) if made else (),
                             unsupported=kept.ports_lack))
    return found, rows, lines


def _log(name: str, words: str, delivery: Delivery, kept: Kept, world: World,
         lines: list[tuple[str, str, float, str]]) -> Row:
    assert kept.heard is not None
    hosts = world.topology.hosts
    homes = {host.address(family): host.name for host in hosts.values() for family in (4, 6)}
    entries = cloud.entries(kept.heard.packets, kept.decided.values(), homes, kept.clock, delivery.interval_s)
    guarded = [host.name for host in hosts.values() if not host.external]
    if name.startswith("AWS"):
        written = list(aws.write(entries, guarded, kept.clock, delivery, bool(kept.heard.dropped)))
        records, bad = aws.records(written, kept.clock)
    else:
        macs = {host.name: host.mac for host in hosts.values()}
        written = list(azure.write(entries, macs, kept.clock, delivery))
        records, bad = azure.records(written, kept.clock, {mac.replace(":", "").upper(): host
                                                           for host, mac in macs.items()})
    lines += [(name, words, at, line) for at, line in written]
    found = told(records, GAP_S + delivery.interval_s / kept.clock.factor)
    row = setting(words, quality(world.truths, found, world.topology), records=len(records), lost=kept.heard.dropped,
                  lost_what="packets that the ports' tap had no room for", malformed=bad, factor=kept.clock.factor)
    return Row(name, row, found)
