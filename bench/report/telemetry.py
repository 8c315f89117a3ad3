"""What `labctl telemetry` found: the JSON that programs read, and the tables that people do."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.analysis.telemetry import BEGAN, KINDS, SHORT_S, Quality
from bench.report.summary import Recall

FORMAT = 1
FULL = 0.995  # rounds to 100 %
_MINUTE_S = 90.0


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Setting(_Model):
    """One dialect at one setting."""

    setting: str = Field(description="sampling or aggregation, in words")
    recall: Recall = Field(description="flows of which any record was had")
    kinds: dict[str, Recall] = Field(description="the same for short, long, denied and same-host flows, each apart")
    fields: dict[str, Recall] = Field(description="process, user, bytes, verdict, began (who asked whom): share of "
                                                "flows told rightly")
    delay_p50_s: float | None = Field(description="from a flow's beginning to its first readable record; log time "
                                                  "where time was compressed")
    delay_p95_s: float | None
    records: int = Field(description="records read")
    lost: int = Field(description="what is known to be lost on the way")
    lost_what: str = Field(description="what `lost` counts")
    malformed: int = Field(0, description="datagrams, lines or documents that could not be read")
    unexplained: int = Field(description="sightings of nothing that was done: the lab's own, or noise")
    blind_spots: tuple[str, ...] = ()


class Dialect(_Model):
    name: str
    where: str = Field(description="where it listens")
    settings: tuple[Setting, ...] = ()
    time_factor: float = Field(1.0, description="of so many seconds in its log one passed in the lab")
    assumes: tuple[str, ...] = ()
    unsupported: str | None = None


class Telemetry(_Model):
    """Every dialect over the same flows of one run."""

    format: int = FORMAT
    scenario: str
    arm: str
    seed: int
    seconds: float
    flows: dict[str, int] = Field(description="flows really made, by kind")
    sampled_from: int = Field(description="flows of the scenario that the probed ones were chosen from")
    dialects: tuple[Dialect, ...]
    notes: tuple[str, ...] = ()


def setting(words: str, found: Quality, *, records: int, lost: int, lost_what: str, malformed: int = 0,
            factor: float = 1.0) -> Setting:
    """A row, from what was judged."""
    delay = found.delay
    return Setting(
        setting=words, recall=_recall(found.recall), kinds={name: _recall(found.kinds[name]) for name in KINDS},
        fields={name: _recall(one) for name, one in found.fields.items()},
        delay_p50_s=None if delay.p50_s is None else delay.p50_s * factor,
        delay_p95_s=None if delay.p95_s is None else delay.p95_s * factor, records=records, lost=lost,
        lost_what=lost_what, malformed=malformed, unexplained=found.unexplained, blind_spots=found.blind_spots)


def _recall(one: object) -> Recall:
    return Recall.model_validate(one, from_attributes=True)


# --- for people -----------------------------------------------------------------------------------


def show(found: Telemetry, console: Console) -> None:
    """One table of all dialects, then each dialect's blind spots, assumptions and reasons."""
    counts = ", ".join(f"{n:,} {name}" for name, n in found.flows.items())
    console.print(f"[bold]{escape(found.scenario)}[/bold] under {escape(found.arm)}: {sum(found.flows.values()):,} "
                  f"flows ({counts}), {found.seconds:.0f} s\n", soft_wrap=True)
    console.print(table(found))
    console.print(f"\nShare of the flows of a kind that any record tells of: short and long (from {SHORT_S:g} s on) "
                  "passed between hosts. Then share of all flows with the field right. Delay: from a flow's beginning "
                  "to its first readable record, p50.\n", soft_wrap=True)
    for dialect in found.dialects:
        _below(dialect, console)
    for note in found.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)


def table(found: Telemetry) -> Table:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False, header_style="bold")
    grid.add_column("dialect, setting", no_wrap=True)
    for heading in ("short", "long", "denied", "in host", "bytes", "verdict", "process", "began", "delay", "lost"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for dialect in found.dialects:
        grid.add_row(f"[bold]{escape(dialect.name)}[/bold]")
        for one in dialect.settings:
            told = (*(one.kinds[name] for name in KINDS),
                    *(one.fields[name] for name in ("bytes", "verdict", "process", BEGAN)))
            grid.add_row(f"  {escape(one.setting)}", *map(_share, told), _time(one.delay_p50_s), f"{one.lost:,}")
    return grid


def _below(dialect: Dialect, console: Console) -> None:
    if dialect.unsupported:
        console.print(f"{escape(dialect.name)}: unsupported, because {escape(dialect.unsupported)}", soft_wrap=True)
        return
    compressed = f"; time compressed 1:{dialect.time_factor:g}" if dialect.time_factor != 1 else ""
    console.print(f"{escape(dialect.name)}: {escape(dialect.where)}{compressed}", soft_wrap=True)
    everywhere = set.intersection(*(set(one.blind_spots) for one in dialect.settings)) if dialect.settings else set()
    for spot in dialect.settings[0].blind_spots if dialect.settings else ():
        if spot in everywhere:
            console.print(f"  blind spot: {escape(spot)}", soft_wrap=True)
    for one in dialect.settings:
        lost = f"; lost: {one.lost:,} {one.lost_what}" if one.lost else ""
        bad = f"; not readable: {one.malformed:,}" if one.malformed else ""
        console.print(f"  {escape(one.setting)}: {one.records:,} records of {one.recall.recall or 0:.1%} of all flows; "
                      f"delay p95 {_time(one.delay_p95_s)}{lost}{bad}", soft_wrap=True)
        for spot in one.blind_spots:
            if spot not in everywhere:
                console.print(f"    blind spot: {escape(spot)}", soft_wrap=True)
    for assumed in dialect.assumes:
        console.print(f"  assumed: {escape(assumed)}", soft_wrap=True)


def _share(one: Recall) -> str:
    if one.recall is None:
        return "–"
    text = f"{one.recall * 100:.0f} %"
    if text == "100 %" and one.recall < 1:  # neither is said where it is not so
        text = ">99 %"
    elif text == "0 %" and one.recall > 0:
        text = "<1 %"
    colour = "green" if one.recall >= FULL else "red" if one.recall == 0 else "yellow"
    return f"[{colour}]{text}[/{colour}]"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds >= _MINUTE_S:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
