"""Records that outlive the daemon that took them from the ring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enforcers.agentless.switch.daemon.spool import Spool

ROOM = 1 << 20


def test_what_waits_is_handed_out_once_and_in_order_also_by_the_next_daemon(tmp_path: Path) -> None:
    first = Spool(tmp_path, ROOM)
    first.append(b"one")
    first.append(b"two")
    second = Spool(tmp_path, ROOM)  # the first was killed
    second.append(b"three")
    assert list(second.take()) == [b"one", b"two", b"three"]
    assert list(second.take()) == [] and list(tmp_path.iterdir()) == []


def test_a_chunk_that_was_being_written_when_the_daemon_died_is_not_looked_at(tmp_path: Path) -> None:
    """The ring still has it: it comes again, whole, from the next one."""
    Spool(tmp_path, ROOM).append(b"whole")
    with next(tmp_path.iterdir()).open("ab") as file:
        file.write(b"\x09\0\0\0torn")
    after = Spool(tmp_path, ROOM)
    after.append(b"torn here")
    assert list(after.take()) == [b"whole", b"torn here"]


def test_where_there_is_no_room_the_oldest_goes_and_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 800)
    for number in range(40):
        spool.append(bytes([number]) * 100)
    kept = list(spool.take())
    assert kept == [bytes([number]) * 100 for number in range(40 - len(kept), 40)]
    assert 100 * len(kept) + spool.lost == 4000 and 700 <= 100 * len(kept) <= 900


def test_the_last_portion_is_known_to_the_next_daemon(tmp_path: Path) -> None:
    assert Spool(tmp_path, ROOM).last() == b""
    first = Spool(tmp_path, ROOM)
    first.append(b"one")
    first.append(b"two")
    assert Spool(tmp_path, ROOM).last() == b"two"
    with next(tmp_path.iterdir()).open("ab") as file:
        file.write(b"\x09\0\0\0torn")
    assert Spool(tmp_path, ROOM).last() == b"two"


def test_what_a_full_disk_tore_is_not_gone_on_with(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ROOM)
    spool.append(b"one")
    (path,) = tmp_path.iterdir()
    path.chmod(0o600)
    with pytest.raises(OSError, match="No space"), full(path):
        spool.append(b"lost")
    spool.append(b"two")
    assert list(spool.take()) == [b"one", b"two"]


@contextmanager
def full(path: Path) -> Iterator[None]:
    """Whatever is added to `path` meanwhile does not find room."""
    whole = path.read_bytes()
    path.unlink()
    path.symlink_to("/dev/full")
    try:
        yield
    finally:
        path.unlink()
        path.write_bytes(whole + b"\x04\0\0\0lo")


@example([b"of each"] + [None, b"of each"] * 12)
@given(st.lists(st.one_of(st.binary(max_size=64), st.none()), max_size=30))
def test_nothing_is_lost_or_told_twice_however_often_it_is_killed(tmp_path_factory: object,
                                                                  steps: list[bytes | None]) -> None:
    """None: the daemon is killed, and another one comes."""
    directory = tmp_path_factory.mktemp("spool")  # type: ignore[attr-defined]
    spool = Spool(directory, ROOM)
    for step in steps:
        if step is None:
            spool = Spool(directory, ROOM)
        else:
            spool.append(step)
    assert list(spool.take()) == [step for step in steps if step is not None]
