"""summary.json: the shape of a run's result that other programs build on, with the meaning of every field.

The descriptions below are the documentation: `results/README.md` and `results/summary.schema.json` are made of them.
A change of meaning or a field taken away raises `FORMAT`; a new field does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from bench.analysis import matrices, stats, visibility
from bench.analysis.bootstrap import Effect
from bench.report.lateral import Lateral

FORMAT = 1
FigureName = Literal["crr_rate", "crr_p50_us", "crr_p99_us", "rr_p50_us", "rr_p99_us", "bulk_bps", "cpu_per_conn_us",
                     "app_p50_us", "app_p99_us"]
FieldName = Literal["flow", "process", "user", "bytes", "verdict"]
FIGURES: tuple[FigureName, ...] = get_args(FigureName)
FIELDS: tuple[FieldName, ...] = get_args(FieldName)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Model):
    """One cost figure of one arm against `none`, paired within blocks."""

    ratio: float | None = Field(
        description="arm / none, geometric mean over blocks without the lowest and highest fifth; null if no block "
                    "measured both")
    low: float | None = Field(description="lower end of the 95 % interval; null below three blocks")
    high: float | None = Field(description="upper end; an interval that spans 1 is no measurable difference")
    n: int = Field(description="blocks in which both were measured")
    value: float | None = Field(
        None, description="median over blocks of the arm's own figure as measured, in the figure's unit")
    family_low: float | None = Field(
        None, description="lower end of the interval that holds for all arms of this figure together (in `aa`: for all "
                          "figures) with 95 %; reports name a difference by this one")
    family_high: float | None = Field(None, description="its upper end")
    p: float | None = Field(None, description="of 'the ratio is 1', adjusted for the same family")
    raw: float | None = Field(None, description="the ratio with the machine's changes of speed left in")
    adjusted: bool = Field(False, description="whether the machine's own speed was taken out of ratio and intervals")


class Recall(_Model):
    """How much of what was really done the telemetry got right in one field."""

    recall: float | None = Field(description="share that was right, 0..1; 0 if it cannot be seen, null if n is 0")
    n: int = Field(description="flows really made to which the field applies")


class Attack(_Model):
    """How far the live attacker got from the foothold."""

    reached: bool = Field(description="whether any goal was taken")
    blast_radius: float = Field(description="share of the other hosts taken, 0..1")
    time_to_goal_s: float | None = Field(description="seconds to the first goal; null if none was taken")
    taken: tuple[str, ...] = Field((), description="hosts taken, the foothold first")
    blast_radius_by_process: float | None = Field(
        None, description="the same with no dropped binary anywhere on the way: through taken processes alone")
    attempts: int | None = Field(None, description="connections the attacker tried")


class Policy(_Model):
    """What the policy became when it was compiled for the arm."""

    native_rules: int = Field(description="the arm's own rules or set elements, at all points together")
    widened: int = Field(description="rules enforced more permissively than written")
    narrowed: int = Field(description="rules enforced more strictly than written")
    omitted: int = Field(description="rules not enforced at all")


class Deploy(_Model):
    """What placing the arm cost, once."""

    seconds: float = Field(description="wall-clock time of the deployment to all points")
    bytes_per_host: float | None = Field(description="mean size of what was placed; null where nothing was")


class Footprint(_Model):
    """What the arm's daemons used during the run."""

    host_rss_bytes: float | None = Field(description="mean proportional memory of the daemons at a host; null: none")
    host_cpu_s: float | None = Field(description="CPU seconds of the daemons beside the hosts, all together")
    off_host_cpu_s: float | None = Field(description="CPU seconds of the daemons off hosts: at the router, at switch "
                                          "ports, on the machine that carries containers")
    off_host_rss_bytes: float | None = Field(default=None, description="proportional memory of those, all together; "
                                             "null: none, or not told")
    kernel_s: float | None = Field(default=None, description="seconds in the arm's kernel programs, a part of the CPU "
                                   "time of whoever sent the packets; from the kernel's run statistics, null: not told")


class GapClass(_Model):
    """Gaps (policy against what the arm can do) with one reason."""

    reason: str = Field(description="the reason in words")
    flows: int = Field(description="flows with this gap")
    leaks: int = Field(description="of these, leaked when tried")
    breaks: int = Field(description="of these, broken when tried")
    example: str = Field(description="one of them")


class Kind(_Model):
    """The verdicts of one kind of flow."""

    flows: int = Field(description="flows of this kind")
    leaks: int = Field(description="leaks among them")
    breaks: int = Field(description="breaks among them")
    defects: int = Field(description="defects among them")
    inconclusive: int = Field(description="of these, nothing can be said")
    bound: float | None = Field(None, description="95 % upper bound 3/n where none leaked or broke, else null")


class Convergence(_Model):
    """How long a change of policy took to be in force everywhere, probed at every host."""

    last_leak_s: float | None = Field(description="from commit to the last packet that leaked; null: not measured")
    last_break_s: float | None = Field(description="from commit to the last allowed attempt that failed; null likewise")
    interval_s: float | None = Field(None, description="time between two probes of one host: the resolution")


class Verified(_Model):
    """Flows probed before, during and after the measured windows: was the policy in force while the cost was taken?"""

    n: int = Field(description="probes made")
    wrong: int = Field(description="probes that contradicted what the arm should do; any makes the cost invalid")


class Unforeseen(_Model):
    """Legitimate flows that came after the policy was learnt (imported scenarios)."""

    n: int = Field(description="such flows, each counted once, judged")
    broken: int = Field(description="of these, not open")
    share: float | None = Field(description="broken / n; null if n is 0")


class Spoofing(_Model):
    """Datagrams sent in another host's name, where the policy allows that host and not the sender."""

    n: int = Field(description="sent, of those that arrive with nothing enforced")
    arrived: int = Field(description="of these, arrived at the service")
    defects: int = Field(description="of these, sent by a host that the arm says cannot")
    example: str | None = Field(description="one that arrived, in words; null: none")


class Load(_Model):
    """What an arm did under load (`--load`): figures against `none`, paired within the load's own blocks."""

    windows: int = Field(description="windows of the application's traffic, at all shares of the knee together")
    invalid: int = Field(description="of these, INVALID by their certificate: they make no figures")
    wrong: int = Field(description="visits in which the policy was not in force: they make no figures either")
    reasons: tuple[str, ...] = Field((), description="why, and why figures are missing: the first few, in words")
    points: dict[str, dict[str, Figure]] = Field(
        default_factory=dict,
        description="by share of the knee (`25%`), and `beside` for what has no rate; then by figure, whose name ends "
                    "in its unit (`_us`, `_per_s`, `_bps`; `held`: connections; `udp_loss`: a share)")


class Knee(_Model):
    """How much of the scenario's traffic this machine carries with nothing enforced."""

    rate: float | None = Field(description="highest rate that held, in requests a second; null: none did")
    failed: float | None = Field(description="lowest rate above it that did not; null: the search ended before")
    why: tuple[str, ...] = Field((), description="why that rate failed, in words")
    steps: int = Field(description="windows that the search took; `knee.jsonl.gz` has them")
    rates: dict[str, float] = Field(default_factory=dict, description="the rates measured at, by share of the knee")
    counters: dict[str, str] = Field(
        default_factory=dict, description="sources of CPU (`cpu_SOURCE_…`) and the counter each was read from")


class Arm(_Model):
    """One arm. All but `unsupported` is null or empty where the arm was not run."""

    unsupported: str | None = Field(None, description="why this machine cannot run the arm; null if it ran")
    flows: int | None = Field(None, description="flows probed")
    leaks: int | None = Field(None, description="the policy denies it, yet it was open or it arrived")
    breaks: int | None = Field(None, description="the policy allows it and `none` had it open, yet it was not open")
    gaps: int | None = Field(None, description="the policy and what the arm says it can do differ")
    defects: int | None = Field(None, description="what the arm says it will do and what it did differ")
    inconclusive: int | None = Field(None, description="no word on it: not open with `none` either, or never tried")
    denied: int | None = Field(None, description="conclusive flows that the policy denies: the n of leaks")
    allowed: int | None = Field(None, description="conclusive flows that the policy allows: the n of breaks")
    strained: int | None = Field(None, description="flows that it lets through, that failed while all were tried at "
                                 "once and opened each time when tried alone: what it bears, not what it forbids")
    findings: tuple[str, ...] = Field((), description="the first defects and inconclusive flows, in words")
    kinds: dict[str, Kind] = Field(default_factory=dict, description="the verdicts by kind of flow")
    cost: dict[FigureName, Figure] = Field(default_factory=dict, description="cost by figure, against `none`")
    load: Load | None = Field(None, description="what it did under load; null: not asked for (`--load`)")
    verified: Verified | None = Field(None, description="whether the policy was in force while the cost was measured")
    visibility: dict[FieldName, Recall] = Field(default_factory=dict, description="recall of the telemetry by field")
    coverage: dict[str, dict[FieldName, Recall]] = Field(
        default_factory=dict, description="recall by class of traffic (where it ran, protocol, passed or denied, kind "
                                          "of attempt), then by field")
    blind_spots: tuple[str, ...] = Field((), description="what the telemetry missed, in words with counts")
    attack: Attack | None = Field(None, description="the live attack; null if the scenario has none")
    lateral: Lateral | None = Field(
        None, description="what the whole matrix offers an attacker from every foothold; null: the matrix was a sample")
    policy: Policy | None = Field(None, description="the compiled policy")
    spoofing: Spoofing | None = Field(None, description="datagrams in another's name; null: the policy leaves no room")
    gap_classes: tuple[GapClass, ...] = Field((), description="the gaps by reason")
    deploy: Deploy | None = Field(None, description="the deployment")
    footprint: Footprint | None = Field(None, description="CPU and memory of the arm's daemons")
    convergence: Convergence | None = Field(None, description="time until a change of policy is in force")
    foreseen: Unforeseen | None = Field(
        None, description="recorded flows that the policy was learnt from, likewise; null: not asked")
    unforeseen: Unforeseen | None = Field(None, description="later legitimate flows; null: none in the scenario")


class AA(_Model):
    """`none` against itself, in the same blocks: what the instrument makes of no difference."""

    cost: dict[FigureName, Figure] = Field(default_factory=dict, description="as in an arm; should all span 1")
    differs: tuple[FigureName, ...] = Field(
        (), description="figures that differ, at 5 % for all together; if any, the run names no winner")
    load: Load | None = Field(None, description="the same under load; null: not asked for")


class Until(_Model):
    """A run that was to go on until its intervals were narrow (`--until`)."""

    target: float = Field(description="half-width wanted of every arm's interval of crr_p50_us: 0.02 is 2 %")
    reached: bool = Field(description="whether it was reached; if not, the budget was spent first")
    widest: float | None = Field(description="half-width of the widest interval at the end; null: there is none")
    arm: str = Field(description="the arm with the widest interval")
    needed: int | None = Field(description="blocks in all that the target takes at this spread; null: cannot be said")
    budget_s: float = Field(description="seconds after whose end no further block began")


class Summary(_Model):
    """A whole run."""

    format: Literal[1] = Field(1, description="format version of this document")
    labctl: str = Field(description="version of labctl")
    scenario: str = Field(description="name of the scenario")
    seed: int = Field(description="seed of everything random in the run")
    started: str = Field(description="start in UTC, ISO 8601")
    duration_s: float = Field(description="wall-clock time of the run")
    quick: bool = Field(description="a short run: fewer blocks, wider intervals")
    until: Until | None = Field(None, description="how a run with `--until` ended; null: the blocks were counted out")
    interrupted: bool = Field(False, description="the user ended the run early: what is here was measured until then")
    invalid: tuple[str, ...] = Field((), description="why the measurement cannot be trusted; empty if it can")
    blocks: int = Field(0, description="blocks measured; each runs every arm once and `none` twice")
    arms: dict[str, Arm] = Field(description="the arms by name, `none` (the baseline) first")
    aa: AA = Field(default_factory=lambda: AA(cost={}, differs=()), description="`none` against itself")
    mde: dict[FigureName, float | None] = Field(
        default_factory=dict,
        description="smallest relative effect that these blocks show in 4 of 5 runs (0.03 is 3 %), from the A/A spread")
    knee: Knee | None = Field(None, description="of a run with `--load`; null: not asked for, or no traffic")
    environment: dict[str, Any] = Field(default_factory=dict, description="the machine and the versions of its tools")
    notes: tuple[str, ...] = Field((), description="what else a reader should know, such as what an importer invented")


# --- made of what the analysis found ----------------------------------------------------------


def figure(effect: Effect, blocks: stats.Blocks, raw: float | None = None, adjusted: bool = False) -> Figure:
    """One figure of an arm: its effect against the baseline, and `blocks`, its own values as measured."""
    return Figure(ratio=effect.ratio, low=effect.low, high=effect.high, n=effect.n, value=stats.median(blocks),
                  family_low=effect.family_low, family_high=effect.family_high, p=effect.p, raw=raw, adjusted=adjusted)


def aa(cost: dict[FigureName, Figure], load: Load | None = None) -> AA:
    """`none` against itself, and which figures differ: those whose interval of the family misses 1."""
    return AA(cost=cost, differs=tuple(name for name, one in cost.items() if differs(one)), load=load)


def differs(one: Figure) -> bool:
    """Whether the interval of the family excludes 1: only then may a report speak of a difference."""
    low, high = ends(one)
    return low is not None and high is not None and not low <= 1.0 <= high


def ends(one: Figure) -> tuple[float | None, float | None]:
    """The interval that a report shows and judges by: the family's; that of the arm alone where there is none."""
    return (one.low, one.high) if one.family_low is None else (one.family_low, one.family_high)


def verdicts(found: matrices.Matrix) -> dict[str, Any]:
    """The fields of `Arm` that the matrix fills: flows … allowed, and kinds."""
    counts = found.counts
    names = ("flows", "leaks", "breaks", "gaps", "defects", "inconclusive", "denied", "allowed")
    return {**{name: getattr(counts, name) for name in names},
            "kinds": {kind: _kind(one) for kind, one in found.by_kind.items()}}


def _kind(counts: matrices.Counts) -> Kind:
    clean = counts.leaks == counts.breaks == 0
    return Kind(flows=counts.flows, leaks=counts.leaks, breaks=counts.breaks, defects=counts.defects,
                inconclusive=counts.inconclusive,
                bound=stats.zero_bound(counts.denied + counts.allowed) if clean else None)


def gap_classes(found: tuple[matrices.GapClass, ...]) -> tuple[GapClass, ...]:
    return tuple(GapClass(reason=g.reason, flows=g.flows, leaks=g.leaks, breaks=g.breaks, example=g.example)
                 for g in found)


def coverage(seen: visibility.Visibility, fields: tuple[FieldName, ...] = FIELDS) -> dict[str, dict[FieldName, Recall]]:
    """The field `coverage` of `Arm`. Of fields that are not in `fields` nothing can be said."""
    nothing = visibility.Recall(None, 0)
    return {name: {field: _recall(one[field] if field in fields else nothing) for field in FIELDS}
            for name, one in seen.by_class.items()}


def _recall(one: visibility.Recall) -> Recall:
    return Recall(recall=one.recall, n=one.n)


def recalls(seen: visibility.Visibility) -> dict[FieldName, Recall]:
    """The field `visibility` of `Arm`."""
    return {field: Recall(recall=seen.fields[field].recall, n=seen.fields[field].n) for field in FIELDS}


# --- as text ----------------------------------------------------------------------------------


def to_json(summary: Summary) -> str:
    """summary.json, one document with a final newline."""
    return summary.model_dump_json(indent=1) + "\n"


def from_json(text: str | bytes) -> Summary:
    """A summary read back. Raises pydantic.ValidationError with the place of what is wrong."""
    return Summary.model_validate_json(text)


def schema_text() -> str:
    """The JSON Schema of summary.json."""
    return json.dumps(Summary.model_json_schema(mode="serialization"), indent=1, sort_keys=True) + "\n"


def fields_markdown() -> str:
    """A Markdown table of every field, for results/README.md."""
    rows = [f"| `{place}` | {text} |" for place, text in fields()]
    return "\n".join(["| field | meaning |", "|---|---|", *rows]) + "\n"


def fields() -> Iterator[tuple[str, str]]:
    """Every field of summary.json as (place, meaning), in order. `<…>` stands for a key, `[]` for each of a list."""
    yield from _fields(Summary, "")


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, info in model.model_fields.items():
        yield prefix + name, info.description or ""
        yield from _below(info.annotation, prefix + name)


_KEYS: dict[str, str] = {"arms": "<arm>", "kinds": "<kind>", "cost": "<figure>", "visibility": "<field>",
                         "spread": "<rule>"}


def _below(annotation: Any, place: str) -> Iterator[tuple[str, str]]:
    """The fields of the models inside an annotation: a model, an optional one, a tuple or a mapping of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _fields(annotation, f"{place}.")
        return
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            origin = getattr(annotation, "__origin__", None)
            key = f".{_KEYS[place.rsplit('.', 1)[-1]]}" if origin is dict else "[]" if origin is tuple else ""
            yield from _fields(part, f"{place}{key}.")
