"""Where a run's raw data goes, as it comes: compressed JSON lines, one file a kind, readable up to the last flush."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any

FORMAT = 1
_BATCH = 1000  # lines that are compressed in one go


class ResultStore:
    """`results/<scenario>/<utc>/`: an append-only file a kind of record, plus whole JSON documents.

    Each `append` ends in a sync flush, so that a run that is killed keeps all that it had appended. Every line carries
    `f`, the format version.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self._files: dict[str, _Lines] = {}

    @classmethod
    def create(cls, root: Path, scenario: str, now: datetime | None = None) -> ResultStore:
        """A new directory named by the time in UTC; a second run in the same second gets a suffix."""
        stamp = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H%M%SZ")
        for suffix in ("", *(f"-{n}" for n in range(2, 100))):
            try:
                return cls(root / scenario / f"{stamp}{suffix}")
            except FileExistsError:
                continue
        raise FileExistsError(f"{root / scenario}: a hundred results in one second")

    def append(self, kind: str, records: Iterable[object], **also: Any) -> None:
        """Append records (dataclasses or mappings) to `<kind>.jsonl.gz`, each with the fields `also`."""
        if kind not in self._files:
            self._files[kind] = _Lines(self.directory / f"{kind}.jsonl.gz")
        self._files[kind].write({"f": FORMAT, **also, **_fields(record)} for record in records)

    def document(self, name: str, value: object) -> Path:
        """Write a whole document, replacing an earlier one in one step."""
        path = self.directory / name
        text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str) + "\n"
        temporary = path.with_suffix(path.suffix + ".new")
        temporary.write_text(text)
        temporary.replace(path)
        return path

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for lines in self._files.values():
            lines.close()


class _Lines:
    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        self._gzip = gzip.GzipFile(fileobj=self._raw, mode="wb", compresslevel=1)

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        lines = map(_ENCODER.encode, records)
        while batch := tuple(islice(lines, _BATCH)):
            self._gzip.write("\n".join((*batch, "")).encode())
        self._gzip.flush(zlib.Z_SYNC_FLUSH)
        self._raw.flush()

    def close(self) -> None:
        self._gzip.close()
        self._raw.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole record of a raw file, also of one that a killed run never closed."""
    unzip = zlib.decompressobj(wbits=31)
    rest = b""
    with path.open("rb") as raw:
        while chunk := raw.read(1 << 16):
            rest += unzip.decompress(chunk)
            *lines, rest = rest.split(b"\n")
            yield from (json.loads(line) for line in lines)


def _fields(record: object) -> Mapping[str, Any]:
    return record if isinstance(record, Mapping) else _plain(record)


def _plain(value: object) -> Any:
    """What JSON has no word for. `dataclasses.asdict` would copy deeply, ten times as slow; the encoder asks again."""
    if is_dataclass(value) and not isinstance(value, type):
        return dict(zip(_names(type(value)), _getter(type(value))(value), strict=True))
    return str(value)


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@cache
def _getter(kind: type) -> Callable[[object], tuple[Any, ...]]:
    names = _names(kind)
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain)
