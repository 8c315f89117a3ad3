"""Every pitfall of a host agent in eBPF: it comes out as it has to, and does not without its guard."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from lab.features import probe
from tests.e2e import isolated
from tests.e2e.kernel_pitfalls import PITFALLS

_NEEDED = ("bpf", "btf", "cgroup-bpf", "tc-bpf")
_LACKS = next((f"{name}: {lack.problem}" for name in _NEEDED if (lack := probe(name))), "")
pytestmark = [
    pytest.mark.e2e, isolated.needs_root, isolated.needs_isolation,
    pytest.mark.skipif(bool(_LACKS), reason=_LACKS),
    pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed"),
]
MODULE = "tests.e2e.kernel_pitfalls"


@pytest.fixture(scope="module")
def guarded() -> dict[str, Any]:
    return dict(isolated.call(MODULE, "try_all", list(PITFALLS)))


@pytest.fixture(scope="module")
def unguarded() -> dict[str, Any]:
    return dict(isolated.call(MODULE, "try_unguarded", list(PITFALLS), timeout_s=600))


def _as_json(what: Any) -> Any:
    return json.loads(json.dumps(what))


@pytest.mark.parametrize("name", PITFALLS)
def test_it_is_guarded(name: str, guarded: dict[str, Any]) -> None:
    if guarded[name] == "no io_uring here":
        pytest.skip("the kernel has no io_uring, or forbids it")
    assert guarded[name] == _as_json(PITFALLS[name].wanted)


@pytest.mark.parametrize("name", PITFALLS)
def test_the_guard_is_what_does_it(name: str, unguarded: dict[str, Any]) -> None:
    assert PITFALLS[name].without or PITFALLS[name].hooks_off
    if unguarded[name] == "no io_uring here":
        pytest.skip("the kernel has no io_uring, or forbids it")
    assert unguarded[name] != _as_json(PITFALLS[name].wanted)
