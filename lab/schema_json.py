"""The JSON Schema of a scenario file, for editors and for docs/scenario.md. Made of `lab.schema`; pure.

It knows the shape alone: what refers to what (a host in no segment, a rule that selects nothing) only `labctl validate`
sees. What it refuses, labctl refuses too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from lab.schema import Document

Schema = dict[str, Any]


class Described(NamedTuple):
    """One field: its place (`<name>` stands for a key, `[]` for each of a list), if it must be there, its words."""

    place: str
    required: bool
    default: str  # as YAML, "" if there is none
    means: str
    write: str


def scenario_schema(arms: Collection[str] = ()) -> Schema:
    """The schema as a document. `arms`: the only names that `arms:` may list; none given: any."""
    made = Document.model_json_schema(by_alias=True)
    for described in _objects(made):
        _tidy(described)
    if arms:
        _list_of(made["properties"]["arms"])["items"] = {"enum": list(arms)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "A labctl scenario"}


def schema_text(arms: Collection[str] = ()) -> str:
    """`scenario_schema` as text with a final newline."""
    return json.dumps(scenario_schema(arms), indent=1, ensure_ascii=False) + "\n"


def fields() -> tuple[Described, ...]:
    """Every field of a scenario file in the order of the format."""
    made = Document.model_json_schema(by_alias=True)
    return tuple(_fields(made, made["$defs"], ""))


def _fields(described: Schema, known: dict[str, Schema], prefix: str) -> Iterator[Described]:
    required = described.get("required", ())
    for name, one in described["properties"].items():
        place = prefix + name
        default = one.get("default")
        shown = "" if default is None or default in ([], {}) else json.dumps(default)
        yield Described(place, name in required, shown, one["title"], one["description"])
        below, suffix = _below(one, known)
        if below is not None and not (name == "deny" and "allow" in described["properties"]):
            yield from _fields(below, known, f"{place}{suffix}.")


def _below(one: Schema, known: dict[str, Schema]) -> tuple[Schema | None, str]:
    """The object described inside a field, and how its place goes on."""
    for option in (one, *one.get("anyOf", ())):
        if "$ref" in option:
            return known[option["$ref"].rsplit("/", 1)[-1]], ""
        for values in (option.get("additionalProperties"), *option.get("patternProperties", {}).values()):
            if isinstance(values, dict) and "$ref" in values:
                return known[values["$ref"].rsplit("/", 1)[-1]], ".<name>"
        if "$ref" in option.get("items", {}):
            return known[option["items"]["$ref"].rsplit("/", 1)[-1]], "[]"
    return None, ""


def _objects(value: Any) -> Iterator[Schema]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(part)


def _tidy(described: Schema) -> None:
    """Title and description in one sentence for whoever hovers over the field; a name that fits no pattern is wrong."""
    if "title" in described and "description" in described:
        means, write = described.pop("title"), described["description"]
        described["description"] = f"{means[0].upper()}{means[1:]}. Write {write}."
    if isinstance(described.get("title"), str):
        del described["title"]
    if "patternProperties" in described:
        described["additionalProperties"] = False


def _list_of(optional: Schema) -> Schema:
    found: Schema = next(option for option in optional["anyOf"] if option.get("type") == "array")
    return found
