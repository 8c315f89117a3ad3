"""What contextlib, collections and json have too, without what they load: 3 MB of an agent of 10, 12 ms of a command.

JSON is read and written by the same C functions that `json` calls.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class suppress:  # noqa: N801  # as contextlib calls it
    """Goes on behind the block when one of these is raised in it."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._kinds)


class Counts(dict[str, int]):
    """Numbers by name; what was not counted is 0."""

    def __missing__(self, name: str) -> int:
        return 0


class _Plain:
    """How `json` reads where nothing else is asked for."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def _functions() -> tuple[Callable[[str, int], tuple[Any, int]], Callable[[Any, int], tuple[str, ...]]]:
    import _json

    encoder = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, False)
    scanner = _json.make_scanner(_Plain)  # type: ignore[arg-type]  # anything that has these
    return scanner, encoder


def _refuse(value: object) -> None:
    raise TypeError(f"{type(value).__name__} is nothing that JSON can say")


def loads(data: bytes | str) -> Any:
    """What JSON says. Raises ValueError."""
    text = (data.decode() if isinstance(data, bytes) else data).strip()
    try:
        found, end = _scan(text, 0)
    except StopIteration as err:
        raise ValueError(f"not JSON at character {err.value}") from None
    if end != len(text):
        raise ValueError(f"not JSON at character {end}")
    return found


def dumps(value: Any) -> bytes:
    """JSON in one line, without spaces."""
    return "".join(_encode(value, 0)).encode()


try:
    _scan, _encode = _functions()
except (ImportError, TypeError):  # another Python than the ones that are known
    import json

    _scan = json.JSONDecoder().raw_decode
    _one = json.JSONEncoder(separators=(",", ":")).encode

    def _encode(value: Any, _indent: int) -> tuple[str, ...]:
        return (_one(value),)
