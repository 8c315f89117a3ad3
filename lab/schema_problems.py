"""A document against its shape: every mistake as one line, and the document without the parts that are wrong.

What is wrong is cut out and the rest is kept, so that mistakes of shape and mistakes of meaning come out at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lab.problems import Place, Report, closest, shown, suggest
from lab.schema import Document
from lab.yaml_text import Data

_EXPECTED = {
    "string_type": "text", "bool_type": "true or false", "int_type": "a whole number", "list_type": "a list",
    "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping", "tuple_type": "a list",
}  # fmt: skip
_ENTRIES: tuple[Place, ...] = (("topology", "segments"), ("topology", "hosts"), ("processes",), ("policy", "rules"))
_OPTIONAL: tuple[Place, ...] = (("traffic",), ("attack",), ("arms",), ("seed",), ("replay",), ("invented",))
# What stands for a required or whole part that is wrong, so that the others can be checked all the same.
_STAND_INS: tuple[tuple[Place, Data], ...] = (
    (("policy",), {"default": "deny"}), (("policy", "default"), "deny"), (("policy", "rules"), []),
    (("policy", "loopback"), False), (("processes",), {}), (("version",), 1), (("name",), "x"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shaped:
    """The document as far as its shape is right. `cut`: what had to go; `rules`: each kept rule's index in the file."""

    document: Document
    cut: frozenset[Place]
    rules: tuple[int, ...] = field(default=())

    def whole(self, *prefix: str) -> bool:
        """Whether nothing under `prefix` had to go, so that what is missing there really is missing."""
        return not any(place[: len(prefix)] == prefix for place in self.cut)

    def may_have(self, name: str, *prefix: str) -> bool:
        """Whether `name` may stand under `prefix` in the file, in what had to go."""
        return prefix in self.cut or (*prefix, name) in self.cut


def shape(data: Data, report: Report) -> Shaped:
    """The document that `data` is. Mistakes go to `report`; raises ScenarioError where too little is left to go on."""
    if not isinstance(data, dict):
        report.stop("is not a mapping; write a scenario, beginning with version: 1", 1)
    try:
        return Shaped(Document.model_validate(data), frozenset(), tuple(range(_rule_count(data))))
    except ValidationError as err:
        errors = err.errors(include_url=False)
    for error in errors:
        report.add(*_described(error))
    kept, cut, rules = _without(data, errors)
    try:
        return Shaped(Document.model_validate(kept), cut, rules)
    except ValidationError:
        report.stop_if_any()
        raise


# --- what to say ------------------------------------------------------------------------------


def _described(error: ErrorDetails) -> tuple[Place, str]:
    place: Place = tuple(part for part in error["loc"] if part != "[key]")
    kind, value, info = error["type"], error["input"], _field_at(place)
    remedy = f"write {info.description}" if info is not None and info.description else "see another scenario"
    if kind == "labctl":
        return place, str(error["ctx"]["message"])
    if kind == "missing":
        return place, f"is missing; {remedy}"
    if kind == "extra_forbidden":
        keys = _keys_at(place[:-1])
        return place, f"unknown key {shown(place[-1])}; {suggest(str(place[-1]), keys, 'keys here')}"
    if kind in ("too_short", "string_too_short"):
        return place, f"is empty; {remedy}"
    if kind in _EXPECTED:
        return place, f"{shown(value)} is not {_EXPECTED[kind]}; {remedy}"
    return place, f"{shown(value)} does not fit; {remedy}"


def _keys_at(place: Place) -> list[str]:
    model = _model_at(place)
    return [] if model is None else [info.alias or name for name, info in model.model_fields.items()]


def _field_at(place: Place) -> FieldInfo | None:
    """The field that says what to write at `place`: the innermost one on the way there."""
    for depth in range(len(place), 0, -1):
        model, key = _model_at(place[: depth - 1]), place[depth - 1]
        if model is not None:
            return next((f for name, f in model.model_fields.items() if key in (name, f.alias)), None)
    return None


def _model_at(place: Place) -> type[BaseModel] | None:
    """The model of the mapping at `place`; None where the document has none there."""
    kind: Any = Document
    for part in place:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields
            kind = next((f.annotation for name, f in fields.items() if part in (name, f.alias)), None)
        else:  # a list or dict: what its items are
            kind = get_args(kind)[-1] if get_origin(kind) in (list, dict) else None
        kind = _bare(kind)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _bare(kind: Any) -> Any:
    """`kind` without Annotated and without "or None"."""
    while True:
        if hasattr(kind, "__metadata__"):
            kind = kind.__origin__
        elif get_origin(kind) in (Union, UnionType):
            kind = next(arg for arg in get_args(kind) if arg is not type(None))
        else:
            return kind


# --- what is left -----------------------------------------------------------------------------


def _without(
    data: dict[str, Data], errors: list[ErrorDetails]
) -> tuple[dict[str, Data], frozenset[Place], tuple[int, ...]]:
    """`data` without what `errors` name, with stand-ins where needed; what was cut; the old indices of kept rules."""
    cut = frozenset([*map(_to_cut, errors), *_misspelt(data, errors)])
    kept: Any = _copied(data)
    gone = {place[2] for place in cut if place[:2] == ("policy", "rules") and len(place) == 3}
    for place in sorted(cut, key=lambda p: [str(part).zfill(9) for part in p], reverse=True):
        inner = kept
        for part in place[:-1]:
            inner = inner[part] if isinstance(part, int) else inner.get(part)
        if isinstance(inner, list):
            del inner[int(place[-1])]
        elif isinstance(inner, dict):
            inner.pop(place[-1], None)
    for place, value in _STAND_INS:
        if place in cut:
            (kept if len(place) == 1 else kept["policy"])[place[-1]] = value
    return kept, cut, tuple(index for index in range(_rule_count(data)) if index not in gone)


def _copied(data: Data) -> Data:
    """A copy in which nothing is shared: what an alias repeats can then be cut in one place only."""
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    return [_copied(value) for value in data] if isinstance(data, list) else data


def _to_cut(error: ErrorDetails) -> Place:
    """The smallest part of the document that can go without making another part wrong."""
    place: Place = tuple(part for part in error["loc"] if part != "[key]")
    for entries in _ENTRIES:
        if place[: len(entries)] == entries and len(place) > len(entries):
            return place[: len(entries) + 1]
    return place[:1] if place[:1] in _OPTIONAL else place


def _misspelt(data: dict[str, Data], errors: list[ErrorDetails]) -> list[Place]:
    """Parts that are missing, it seems, only because their key is misspelt: nothing can be said of what is in them."""
    unknown = [
        str(error["loc"][0]) for error in errors if error["type"] == "extra_forbidden" and len(error["loc"]) == 1
    ]
    absent = [name for name in Document.model_fields if name not in data]
    return [(close,) for name in unknown for close in closest(name, absent)]


def _rule_count(data: dict[str, Data]) -> int:
    policy = data.get("policy")
    rules = policy.get("rules") if isinstance(policy, dict) else None
    return len(rules) if isinstance(rules, list) else 0
