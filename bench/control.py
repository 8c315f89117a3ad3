"""Asking a standing lab: which one is meant, and one request with its answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from lab import runs
from lab.runs import Entry

Say = Callable[[str], None]


class ControlError(RuntimeError):
    """There is no such lab, or it did not answer; the message says what there is and what to do."""


def standing(lab: str | None = None) -> Entry:
    """The standing lab that is meant: the one with that id, or the only one. Raises ControlError."""
    labs = [entry for entry in runs.alive() if entry.kind == "standing"]
    if lab is not None:
        for entry in labs:
            if entry.id in (lab, f"labctl-{lab}"):
                return entry
    if not labs:
        raise ControlError("labctl: no lab is standing; start one with: labctl up SCENARIO")
    if lab is None and len(labs) == 1:
        return labs[0]
    there = ", ".join(f"{entry.id} ({entry.scenario})" for entry in labs)
    raise ControlError(f"labctl: {'there is no lab ' + lab if lab else 'several labs stand'}; say --lab ID: {there}")


def ask(entry: Entry, verb: str, say: Say | None = None, *, timeout_s: float | None = None,
        **request: Any) -> dict[str, Any]:
    """Give one request and return what the lab answers; it answers one after the other.

    Raises ControlError with what it says is wrong, and TimeoutError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(entry.control))
        except OSError as err:
            raise ControlError(f"labctl: {entry.id} takes no orders yet ({os.strerror(err.errno or 0)}); "
                               "see: labctl ls") from None
        with connection.makefile("rwb") as stream:
            stream.write(json.dumps({"verb": verb, **request}).encode() + b"\n")
            stream.flush()
            for line in stream:
                answer: dict[str, Any] = json.loads(line)
                if "ok" in answer:
                    return dict(answer["ok"])
                if "error" in answer:
                    raise ControlError(answer["error"])
                if say:
                    say(answer["progress"])
    raise ControlError(f"labctl: {entry.id} ended before it answered; see: labctl ls")


def take_down(entry: Entry, timeout_s: float = 30.0) -> None:
    """End a run or a standing lab: asked to, then told to by SIGTERM, and killed if it does neither in time.

    Returns when nothing of it is left. Its pid is that of a living process, which holds the entry's lock.
    """
    pidfd = os.pidfd_open(entry.pid)
    try:
        if entry.kind == "standing":
            try:
                ask(entry, "down", timeout_s=2.0)
            except (ControlError, OSError, ValueError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        else:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not _gone(entry, timeout_s):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not _gone(entry, 10.0):
                raise ControlError(f"labctl: {entry.id} did not end; see: labctl clean")
    finally:
        os.close(pidfd)


def _gone(entry: Entry, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while entry.directory.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)  # a directory's end gives no event that is worth a watch
    return True
