"""An interrupt while the summary is written costs nothing that was measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lab import isolation
from lab.isolation import finishing, heed_interrupt
from tests.e2e.isolated import ROOT, needs_isolation


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


FLOODED = """
import os, signal, sys
from lab import isolation

sys.setrecursionlimit(8000)  # in such a flood handlers may nest a thousand deep
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until we listen: the first may come before
me, sender = os.getpid(), os.fork()
if sender == 0:
    while os.getppid() == me:
        os.kill(me, signal.SIGTERM)
    os._exit(0)
came = 0
for _ in range(500):
    try:
        signal.signal(signal.SIGTERM, isolation._interrupt)
        while True:
            isolation.heed_interrupt()
    except KeyboardInterrupt:
        came += 1
    isolation._interrupted.clear()
os.kill(sender, signal.SIGKILL)
print(came)
"""


def test_an_interrupt_within_an_interrupt_does_not_wait_for_it() -> None:
    """A terminal's Ctrl-C reaches a run twice: from the terminal, and from the process that waits for it."""
    done = subprocess.run([sys.executable, "-c", FLOODED], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          check=False)
    assert done.stdout == "500\n", done.stderr[-2000:]


PRINTS = {
    "a table": "from bench.report.console import console; console().print('x' * 10**6); done()",
    "json in a run": "from lab.isolation import run_isolated; "
                     "sys.exit(run_isolated(lambda me: print('x' * 10**6) or 0))",
    "a table in a run": "from lab.isolation import run_isolated; from bench.report.console import console; "
                        "sys.exit(run_isolated(lambda me: console().print('x' * 10**6) or 7))",
}


@pytest.mark.parametrize(("what", "status"), [
    ("a table", 7), pytest.param("json in a run", 128 + signal.SIGPIPE, marks=needs_isolation),
    pytest.param("a table in a run", 7, marks=needs_isolation)])
def test_a_reader_that_has_seen_enough_is_no_error(what: str, status: int) -> None:
    """As in `labctl run … | head`: no traceback, and the table's status is that of the run."""
    program = f"import sys\ndone = lambda: sys.exit(7)\n{PRINTS[what]}"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (said, process.returncode) == ("", status)
