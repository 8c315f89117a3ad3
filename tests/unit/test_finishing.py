"""An interrupt while the summary is written costs nothing that was measured."""

from __future__ import annotations

import os
import signal

import pytest

from lab import isolation
from lab.isolation import finishing, heed_interrupt


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_the_block_has_ended(signum: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signum)
    with finishing():
        os.kill(os.getpid(), signum)
        reached = True
    assert reached and "the summary is being written" in capfd.readouterr().err
    assert signal.getsignal(signum) is before


def test_a_swallowed_interrupt_is_heeded_at_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Swallows:
        def __del__(self) -> None:
            isolation._interrupt(signal.SIGTERM, None)  # as when the signal comes while a destructor runs

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    heed_interrupt()
    try:
        del [Swallows()][0]
        with pytest.raises(KeyboardInterrupt):
            heed_interrupt()
    finally:
        isolation._interrupted.clear()
