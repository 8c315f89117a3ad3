"""What can go wrong with an enforcement point, done to a lab that stands: to what labctl itself started, by its id.

An arm's processes are those in the control groups in which labctl runs its commands; each is taken by a pidfd and only
ended if it is still in that group then. Links are the ones that the backend made and names.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lab.backends.mininet_lab import MininetTestbed
from lab.isolation import tool_env
from lab.model import Point

_END_TIMEOUT_S = 5.0


class FaultError(RuntimeError):
    """A fault cannot be done here, or was not; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process of an arm, as labctl counts it, and the control group that it was found in."""

    pid: int
    cgroup: Path
    command: str


def daemons(testbed: MininetTestbed, points: Collection[Point]) -> tuple[Daemon, ...]:
    """What an arm has running at these points. Raises FaultError without a control group to tell it by."""
    if testbed.cgroup is None:
        raise FaultError("no cgroup v2 that this user may write to: what an arm has running cannot be told apart; "
                         "run it as root")
    found = {}
    for group in dict.fromkeys(_cgroup(testbed, point) for point in points):
        for word in (group / "cgroup.procs").read_text().split():
            pid = int(word)
            if pid > 0:  # 0: of a PID namespace that we cannot see
                found[pid] = Daemon(pid, group, _command(pid))
    return tuple(found.values())


def _cgroup(testbed: MininetTestbed, point: Point) -> Path:
    group = testbed.port_cgroup() if point.kind == "port" else testbed.cgroup_of(point.host, True)
    assert group is not None
    return group


def kill(victims: Collection[Daemon]) -> None:
    """SIGKILL to each, and wait until it has ended. Raises FaultError naming one that has not."""
    handles = {}
    try:
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                handles[os.pidfd_open(victim.pid)] = victim
        for handle, victim in handles.items():
            if str(victim.pid) in (victim.cgroup / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
        deadline = time.monotonic() + _END_TIMEOUT_S
        for handle, victim in handles.items():
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise FaultError(f"process {victim.pid} ({victim.command}) did not end")
    finally:
        for handle in handles:
            os.close(handle)


def links(testbed: MininetTestbed, points: Collection[Point]) -> tuple[str, ...]:
    """The switch side of every link of these points; nothing for points on hosts, which have no place of their own."""
    found: list[str] = []
    for point in points:
        if point.kind == "port":
            found.append(testbed.port_of(point))
        elif point.kind == "router":
            found += [f"r{index}" for index in range(len(testbed.topology.segments))]
    return tuple(dict.fromkeys(found))


def set_links(names: Collection[str], *, up: bool) -> None:
    """Plug or unplug them all. The other ends keep their addresses: they only lose the carrier."""
    if not names:
        return
    text = "".join(f"link set dev {name} {'up' if up else 'down'}\n" for name in names)
    done = subprocess.run(["ip", "-batch", "-"], input=text.encode(), capture_output=True, check=False, env=tool_env())
    if done.returncode:
        raise FaultError(f"the links cannot be set: {done.stderr.decode(errors='replace').strip()[:200]}")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    except OSError:
        return "?"
