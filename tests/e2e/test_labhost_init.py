"""A host's PID 1: its namespaces, the commands it runs, and that nothing of it outlives what it should."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.isolated import call, needs_root

pytestmark = [needs_root, pytest.mark.e2e]
HERE = "tests.e2e.test_labhost_init"


def _until(true: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.005)
    return True


def _state(pid: int) -> str:
    """The state letter of a process, "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def commands(_me: Any, _argument: Any) -> dict[str, Any]:
    """What a command gets and how its end is told."""
    from lab.hosts import init_client
    from lab.hosts.init_client import SpawnError
    from tests.e2e.labhost_net import net

    with net(1) as n:
        socket = n.socket("h1")

        def run(*argv: str, **options: Any) -> list[Any]:
            done = init_client.run(socket, list(argv), **options)
            return [done.status, done.stdout.decode(), done.stderr.decode()]

        def fails(*argv: str, **options: Any) -> Any:
            try:
                return init_client.run(socket, list(argv), **options).status
            except SpawnError as err:
                return [err.errno, err.strerror]

        found: dict[str, Any] = {
            "echo": run("cat", input=b"x" * 1_000_000)[1] == "x" * 1_000_000,
            "not read": run("true", input=b"x" * 1_000_000)[0],
            "both": run("sh", "-c", "echo out; echo err >&2; exit 7"),
            "killed": run("sh", "-c", "kill -TERM $$")[0],
            "environment": run("env"),
            "variables": run("sh", "-c", "echo $A$B", env={"A": "1=2", "B": " 3"})[1],
            "directory": run("pwd", cwd="/opt")[1],
            "user": run("sh", "-c", "id -u; id -g; id -G", uid=20001)[1].split(),
            "user and group": run("sh", "-c", "id -u; id -g; id -G", uid=20001, gid=20002)[1].split(),
            "arguments": run("printf", "%s|", "a b", "", "ü\n")[1],
            "session": run("sh", "-c", "ps -o sid= -p $$; echo $$")[1].split(),
            "descriptors": run("ls", "/proc/self/fd")[1].split(),
            "signals": run("grep", "-E", "SigBlk|SigIgn", "/proc/self/status")[1].split(),
            "missing": fails("/no/such/thing"),
            "not on PATH": fails("nosuchthing"),
            "directory missing": fails("true", cwd="/no/such"),
            "cgroup missing": fails("true", cgroup="/no/such"),
            "private PATH": fails("env", env={"PATH": "/nowhere"}),
        }
        began = time.monotonic()
        found["leaves a daemon"] = run("sh", "-c", "sleep 60 & echo started")[:2]
        found["leaves_s"] = time.monotonic() - began
        try:
            init_client.run(socket, ["sleep", "60"], timeout_s=0.2)
        except TimeoutError as err:
            found["too long"] = str(err)
        return found


def test_commands_get_what_they_were_given() -> None:
    found = call(HERE, "commands")
    assert found["echo"] is True
    assert found["not read"] == 0
    assert found["both"] == [7, "out\n", "err\n"]
    assert found["killed"] == 128 + signal.SIGTERM
    assert found["environment"] == [0, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n", ""]
    assert found["variables"] == "1=2 3\n"
    assert found["directory"] == "/opt\n"
    assert found["user"] == ["20001"] * 3
    assert found["user and group"] == ["20001", "20002", "20002"]
    assert found["arguments"] == "a b||ü\n|"
    assert found["session"][0] == found["session"][1]
    assert found["descriptors"] == ["0", "1", "2", "3"]  # the last is of ls itself
    assert found["signals"] == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]
    assert found["missing"][0] == errno.ENOENT
    assert "/no/such/thing" in found["missing"][1]
    assert found["not on PATH"][0] == errno.ENOENT
    assert "cwd" in found["directory missing"][1]
    assert found["cgroup missing"][0] == errno.ENOENT
    assert found["private PATH"][0] == errno.ENOENT
    assert found["leaves a daemon"] == [0, "started\n"]
    assert found["leaves_s"] < 60
    assert found["too long"] == "sleep: still running after 0.2 s"


def lifetimes(me: Any, _argument: Any) -> dict[str, Any]:
    """Kill on close, detach, cgroups, orphans."""
    from lab.hosts import init_client
    from tests.e2e.labhost_net import net

    with net(1) as n:
        socket = n.socket("h1")
        found: dict[str, Any] = {}

        def alive(pid: int) -> bool:
            return init_client.run(socket, ["test", "-d", f"/proc/{pid}"]).status == 0

        two = "sleep 1000 & echo $!; exec sleep 1000"
        for detach in (False, True):
            reader, writer = os.pipe()
            handle = init_client.spawn(socket, ["sh", "-c", two], stdout=writer, detach=detach)
            os.close(writer)
            with os.fdopen(reader) as stream:
                pids = [handle.pid, int(stream.readline())]
                before = [alive(pid) for pid in pids]
                handle.kill()
                gone = _until(lambda pids=pids: not any(map(alive, pids)), 60.0 if not detach else 0.3)
                found["detached" if detach else "closed"] = [before, gone]

        init_client.run(socket, ["sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.05 & ) ; done"])
        zombies = ["sh", "-c", "ps -eo stat= | grep -c ^Z"]
        found["orphans reaped"] = _until(lambda: init_client.run(socket, zombies).stdout == b"0\n")
        handles = [init_client.spawn(socket, ["sh", "-c", f"exit {i}"]) for i in range(100)]
        found["statuses"] = [handle.wait(60) for handle in handles] == list(range(100))
        if me.cgroup:
            (me.cgroup / "h1").mkdir()
            with init_client.spawn(socket, ["sleep", "1000"], cgroup=me.cgroup / "h1"):
                found["in cgroup"] = len((me.cgroup / "h1/cgroup.procs").read_text().split())
        return found


def test_nothing_outlives_its_connection_unless_asked() -> None:
    found = call(HERE, "lifetimes")
    assert found["closed"] == [[True, True], True]
    assert found["detached"] == [[True, True], False]
    assert found["orphans reaped"]
    assert found["statuses"]
    assert found.get("in cgroup", 1) == 1


def worlds(_me: Any, _argument: Any) -> dict[str, Any]:
    """What a host sees, and what it shares with nobody."""
    import socket as sockets

    from lab.hosts import init_client
    from tests.e2e.labhost_net import net

    with net(2) as n:
        run = {name: (lambda *argv, name=name: n.ok(name, *argv).decode()) for name in n.names}
        for path in ("/opt", "/srv", "/run/host"):
            run["h1"]("touch", f"{path}/mine")
        found: dict[str, Any] = {
            "hostname": run["h1"]("uname", "-n"),
            "shared": run["h2"]("ls", "/opt", "/srv", "/run/host"),
            "pid 1": run["h1"]("cat", "/proc/1/comm"),
            "processes": len([p for p in run["h1"]("ls", "/proc").split() if p.isdigit()]),
            "devices": sorted(run["h1"]("sh", "-c", "sed -n 's/^ *\\(.*\\):.*/\\1/p' /proc/net/dev").split()),
            "loopback": run["h1"]("ip", "-o", "link", "show", "lo", "up")[:5],
            "mode": oct(os.stat(n.socket("h1")).st_mode & 0o777),
            "as told": Path(f"/proc/{n.pids['h1']}/comm").read_text(),
            "leaked mounts": "/run/host" in Path("/proc/self/mounts").read_text(),
        }
        pid = os.fork()
        if pid == 0:  # another user, who gets as far as the socket only because we let it
            os.chmod("/run/labctl", 0o755)
            os.chmod(n.socket("h1"), 0o777)
            os.setresuid(20001, 20001, 20001)
            with sockets.socket(sockets.AF_UNIX) as mine:
                mine.connect(n.socket("h1"))
                os._exit(0 if mine.recv(1) == b"" else 1)
        found["another user"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found["still there"] = init_client.run(n.socket("h1"), ["true"]).status
        return found


def test_a_host_is_a_world_of_its_own() -> None:
    found = call(HERE, "worlds")
    assert found["hostname"] == "h1\n"
    assert found["shared"].split() == ["/opt:", "/run/host:", "/srv:"]
    assert found["pid 1"] == found["as told"]
    assert found["pid 1"].startswith("labhost")
    assert found["processes"] == 2
    assert found["devices"] == ["eth0", "lo"]
    assert found["loopback"] == "1: lo"
    assert found["mode"] == "0o600"
    assert not found["leaked mounts"]
    assert found["another user"] == 0
    assert found["still there"] == 0


def deaths(_me: Any, _argument: Any) -> dict[str, Any]:
    """However one part ends, the others do."""
    from lab.hosts import init_client
    from tests.e2e.labhost_net import net

    found: dict[str, Any] = {}
    with net(3) as n:
        n.up(*(n.serve(name, "svc") for name in n.names))
        for name in n.names:
            init_client.spawn(n.socket(name), ["sleep", "1000"], detach=True)
        lab = {name: int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
               for name, pid in n.pids.items()}

        def gone(name: str) -> bool:
            return _until(lambda: _state(n.pids[name]) in ("", "Z") and _state(lab[name]) in ("", "Z"))

        n.inits["h1"].kill()
        found["holder killed"] = gone("h1")
        os.kill(n.pids["h2"], signal.SIGKILL)
        found["pid 1 killed"] = [gone("h2"), n.inits["h2"].wait(60)]
        found["services left"] = _until(lambda: {actor.host for actor in n.fleet.actors} == {"h3"})
        handle = init_client.spawn(n.socket("h3"), ["sleep", "1000"])
        n.inits["h3"].send_signal(signal.SIGINT)
        found["after Ctrl-C"] = init_client.run(n.socket("h3"), ["true"]).status
        n.inits["h3"].terminate()
        with contextlib.suppress(ConnectionError):
            handle.wait(60)
            found["told of the end"] = False
        found.setdefault("told of the end", True)
        found["terminated"] = gone("h3")
    return found


def test_every_part_ends_with_the_others() -> None:
    found = call(HERE, "deaths")
    assert found == {"holder killed": True, "pid 1 killed": [True, 137], "services left": True, "after Ctrl-C": 0,
                     "told of the end": True, "terminated": True}
