"""Raw data survives the death of whoever writes it."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.store import ResultStore, read
from lab.model import Flow, Observation, Outcome

ROOT = Path(__file__).parents[2]
WRITER = """
import signal, sys
from pathlib import Path
from bench.store import ResultStore
store = ResultStore(Path(sys.argv[1]))
store.append("things", ({"n": n} for n in range(1000)), arm="none")
print("appended", flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Pair:
    left: int
    right: str


@dataclass(frozen=True)
class Single:
    pair: Pair


def test_what_was_appended_outlives_a_kill(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "r")], cwd=ROOT, stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"appended\n"
    writer.kill()
    assert writer.wait(timeout=30) == -signal.SIGKILL
    writer.stdout.close()
    records = list(read(tmp_path / "r" / "things.jsonl.gz"))
    assert [r["n"] for r in records] == list(range(1000))
    assert all(r["arm"] == "none" and r["f"] == 1 for r in records)


def test_an_open_file_is_readable_up_to_the_last_append(tmp_path: Path) -> None:
    with ResultStore(tmp_path / "r") as store:
        raw = tmp_path / "r" / "things.jsonl.gz"
        store.append("things", [{"n": 1}])
        assert [r["n"] for r in read(raw)] == [1]
        store.append("things", [{"n": 2}, Pair(3, "é\n")])
        assert list(read(raw))[1:] == [{"f": 1, "n": 2}, {"f": 1, "left": 3, "right": "é\n"}]
    assert len(list(read(raw))) == 3
    with gzip.open(raw, "rt") as closed:  # when closed, any gzip can read it
        assert [json.loads(line)["f"] for line in closed] == [1, 1, 1]


def test_records_within_records_are_written_as_asdict_has_them(tmp_path: Path) -> None:
    seen = Observation(Flow("a", "p", "u", "b", "q", "tcp", 80, 4), Outcome.OPEN, 0, True, 1.5, None, 2.5, 4000)
    single = Single(Pair(1, "x"))
    with ResultStore(tmp_path / "r") as store:
        store.append("things", [seen, single, {"path": Path("/x"), "pair": Pair(2, "y")}])
        got = list(read(store.directory / "things.jsonl.gz"))
    assert got[:2] == [{"f": 1} | asdict(seen), {"f": 1} | asdict(single)]
    assert got[2] == {"f": 1, "path": "/x", "pair": {"left": 2, "right": "y"}}


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_file_that_was_cut_short_gives_its_whole_records(tmp_path: Path, cut: int) -> None:
    """As after a power failure or on a full disk: the last bytes are missing, what came before is whole."""
    with ResultStore(tmp_path / "r") as store:
        store.append("things", ({"n": n} for n in range(100)))
        store.append("things", ({"n": n} for n in range(100, 200)))
    whole = (tmp_path / "r" / "things.jsonl.gz").read_bytes()
    short = tmp_path / "short.jsonl.gz"
    short.write_bytes(whole[:-cut])
    numbers = [r["n"] for r in read(short)]
    assert numbers == list(range(len(numbers))) and len(numbers) >= 100


def test_nothing_appended_is_an_empty_readable_file(tmp_path: Path) -> None:
    with ResultStore(tmp_path / "r") as store:
        store.append("things", [])
    assert list(read(tmp_path / "r" / "things.jsonl.gz")) == []


def test_a_document_is_replaced_whole(tmp_path: Path) -> None:
    with ResultStore(tmp_path / "r") as store:
        store.document("a.json", {"old": 1})
        path = store.document("a.json", {"new": Path("/x")})
        assert json.loads(path.read_text()) == {"new": "/x"}
        assert [p.name for p in store.directory.iterdir()] == ["a.json"]


def test_two_results_of_one_second_do_not_meet(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    names = [ResultStore.create(tmp_path, "s", now).directory.name for _ in range(3)]
    assert names == ["2026-01-02T030405Z", "2026-01-02T030405Z-2", "2026-01-02T030405Z-3"]
