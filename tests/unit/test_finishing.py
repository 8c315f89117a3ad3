"""An interrupt while the summary is written costs nothing that was measured."""

from __future__ import annotations

import os
import signal

import pytest

from lab.isolation import finishing


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_the_block_has_ended(signum: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signum)
    with finishing():
        os.kill(os.getpid(), signum)
        reached = True
    assert reached and "the summary is being written" in capfd.readouterr().err
    assert signal.getsignal(signum) is before
