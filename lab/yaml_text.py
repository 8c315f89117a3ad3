"""YAML text to plain data that remembers its lines; what is odd or ambiguous in YAML is a problem, not a guess.

Scalars follow the YAML 1.2 core schema, narrowed: only `true`, `false`, `null`, whole numbers and decimals in their
usual spelling are not text, so that `no`, `on`, `22:22`, `007` and `1.10` stay what was written. Mapping keys are
always text. No tags, no merge keys; every node counts, those repeated by an alias too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from lab.problems import Place, Report, one_line, place_text, shown

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 24
MAX_NODES = 1_000_000

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML was built with it: 10 times faster
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?")
_PLAIN_TAGS = (None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

Data = None | bool | int | float | str | list["Data"] | dict[str, "Data"]


@dataclass(slots=True)
class Node:
    """One value of the document: its line (from 1), its data, and the nodes inside by key or index."""

    line: int
    data: Data
    size: int = 1
    parts: dict[str | int, Node] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)

    def line_of(self, place: Place) -> int:
        """The line of `place`: of its key in a mapping; of the nearest place around it if it is not there."""
        node, line = self, self.line
        for part in place:
            inner = node.parts.get(part)
            if inner is None:
                break
            line = node.key_lines.get(part, inner.line) if isinstance(part, str) else inner.line
            node = inner
        return line


def parse(text: str, report: Report) -> Node:
    """The one document in `text`; what is wrong but can be passed over goes to `report`, which learns the lines.

    Raises ScenarioError where no data can be had.
    """
    try:
        node = _Reader(text, report).document()
    except (UnicodeEncodeError, yaml.reader.ReaderError):
        report.stop("not YAML: a control character or half a character is in it; write plain UTF-8 text")
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        said = one_line(err.problem or err.context or "it cannot be read")
        line = None if mark is None else mark.line + 1
        report.stop(f"not YAML: {said}; check indentation, quotes and brackets here and above", line)
    report.line_of = node.line_of
    return node


class _Reader:
    """Builds nodes from YAML events; the library itself would recurse without bound and expand aliases."""

    def __init__(self, text: str, report: Report) -> None:
        self._events = yaml.parse(text, Loader=_Loader)
        self._report = report
        self._anchors: dict[str, Node] = {}
        self._nodes = 0

    def document(self) -> Node:
        """The root; there must be exactly one document."""
        next(self._events)  # stream start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            self._report.stop("the file is empty; write a scenario, beginning with version: 1")
        root = self._node(next(self._events), ())
        next(self._events)  # document end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._report.stop("a second document starts here; write one scenario a file", _line(after))
        return root

    def _node(self, event: yaml.Event, place: Place) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._counted(self._repeated(event), event)
        if len(place) > MAX_DEPTH:
            self._report.stop(f"nested more than {MAX_DEPTH} deep; a scenario never is", _line(event))
        tag, anchor = getattr(event, "tag", None), getattr(event, "anchor", None)
        if tag not in _PLAIN_TAGS:
            self._report.add(place, f"the tag {shown(tag)} is not used here; remove it", _line(event))
        node = self._counted(Node(_line(event), None), event)
        if isinstance(event, yaml.ScalarEvent):
            node.data = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._sequence(node, place)
        else:
            self._mapping(node, place)
        if anchor:
            self._anchors[anchor] = node
        return node

    def _repeated(self, event: yaml.AliasEvent) -> Node:
        known = self._anchors.get(event.anchor or "")
        if known is None:  # unknown, or the alias stands inside what it names
            name = one_line(event.anchor or "")
            self._report.stop(f"the alias *{name} names nothing above; write the value", _line(event))
        return known

    def _counted(self, node: Node, event: yaml.Event) -> Node:
        self._nodes += node.size
        if self._nodes > MAX_NODES:
            self._report.stop(f"more than {MAX_NODES} values, aliases expanded; write a smaller scenario", _line(event))
        return node

    def _sequence(self, node: Node, place: Place) -> None:
        items: list[Data] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            inner = self._node(event, (*place, len(items)))
            node.parts[len(items)] = inner
            node.size += inner.size
            items.append(inner.data)
        node.data = items

    def _mapping(self, node: Node, place: Place) -> None:
        entries: dict[str, Data] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, place)
            inner = self._node(next(self._events), (*place, key))
            node.size += inner.size
            if key in entries:
                first = node.key_lines[key]
                self._report.add((*place, key), f"written twice, first in line {first}; keep one", _line(event))
                continue
            entries[key], node.parts[key], node.key_lines[key] = inner.data, inner, _line(event)
        node.data = entries

    def _key(self, event: yaml.Event, place: Place) -> str:
        if isinstance(event, yaml.ScalarEvent):
            return str(event.value)
        return self._report.stop(f"a key under {place_text(place) or 'the top'} is not text", _line(event))


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else event.start_mark.line + 1


def _scalar(event: yaml.ScalarEvent) -> Data:
    text = str(event.value)
    if event.style not in (None, "") or not event.implicit[0]:
        return text
    special: dict[str, Data] = {"true": True, "false": False, "null": None, "~": None, "": None}
    if text in special:
        return special[text]
    if not _NUMBER.fullmatch(text):
        return text
    number = float(text) if "." in text else int(text)
    return number if str(number) == text else text
