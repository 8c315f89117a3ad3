"""What carries kernel programs to the kernel: builds that follow includes, rings read in bulk, one-line errors."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from lab.bpf import build
from lab.bpf.ring import joined, split

needs_clang = pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
KERNEL = Path(__file__).parents[2] / "enforcers/agent/ebpf/kernel"
PROGRAM = """
#include <linux/bpf.h>
#include "number.h"
__attribute__((section("tc"), used)) int number(void *ctx) { (void)ctx; return NUMBER; }
"""


def _objects(path: Path) -> int:
    return len(list((path / "out").glob("*.o")))


@needs_clang
def test_a_changed_header_or_flag_is_another_object(tmp_path: Path) -> None:
    source, header, out = tmp_path / "number.bpf.c", tmp_path / "number.h", tmp_path / "out"
    source.write_text(PROGRAM)
    header.write_text("#define NUMBER 1\n")
    first = build.compiled(source, out)
    assert build.compiled(source, out) == first and _objects(tmp_path) == 1
    header.write_text("#define NUMBER 2\n")
    second = build.compiled(source, out)
    assert second != first and _objects(tmp_path) == 2
    build.compiled(source, out, flags=("-DUNUSED",))
    assert _objects(tmp_path) == 3


@needs_clang
def test_the_agents_programs_compile_without_a_warning() -> None:
    assert build.compiled(KERNEL / "agent.bpf.c").startswith(b"\x7fELF")


@pytest.mark.parametrize("path", sorted(KERNEL.glob("*.[ch]")), ids=lambda path: path.name)
def test_the_kernel_side_is_in_files_that_can_be_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 400


def test_a_rings_content_is_split_and_what_was_discarded_left_out() -> None:
    def entry(text: bytes, flags: int = 0) -> bytes:
        return struct.pack("<II", len(text) | flags, 0) + text + bytes(-len(text) % 8)

    content = entry(b"one") + entry(b"gone", 1 << 30) + entry(b"eleven bytes")
    assert list(split(content)) == [b"one", b"eleven bytes"]
    assert joined([b"8 bytes."]) == entry(b"8 bytes.") and list(split(joined([b"8 bytes.", b"16 bytes: again."]))) == [
        b"8 bytes.", b"16 bytes: again."]
