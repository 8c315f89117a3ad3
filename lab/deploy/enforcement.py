"""Carrying out a Deployment: ansible-runner places it once, timed; later blocks replay its `up` and `down`."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lab.backends import neighbours
from lab.backends.base import Completed, Installed
from lab.model import Deployment, Host, Native, Point, PointPlan, Topology

if TYPE_CHECKING:
    from lab.backends.served import ServedTestbed

_HERE = Path(__file__).parent / "ansible"
_FORKS = 8
READY_TIMEOUT_S = 10.0
Plans = Callable[[PointPlan], Sequence[Sequence[str]]]  # which commands of a plan to run


class DeployError(RuntimeError):
    """An enforcement point did not take what was placed on it; the message names the point and what it said."""


class AnsibleEnforcement:
    """One arm's Deployment on a live testbed."""

    def __init__(self, testbed: ServedTestbed, arm: str) -> None:
        self._testbed = testbed
        self.arm = arm
        self._deployment: Deployment = {}
        self._asked = False

    def install(self, native: Native, deployment: Deployment) -> Installed:
        """Place files and run `up` at every point through ansible-runner; returns when every point says ready."""
        self._deployment, self._asked = deployment, native.neighbours == "asked"
        if not deployment:
            return Installed(0.0, 0.0, 0)
        begin = time.monotonic()
        _play(self._testbed, deployment)
        self._neighbours(neighbours.forgotten)
        self._await_ready()
        size = sum(len(content) for plan in deployment.values() for content in plan.files.values())
        return Installed(time.monotonic() - begin, size / len(deployment), len(deployment))

    def up(self) -> float:
        """Replay `up` at every point at once; returns the seconds until every point says ready.

        The files are placed anew: two arms may keep theirs under the same names, and the other one was here since.
        """
        for point, plan in self._deployment.items():
            self._testbed.put_at(point, plan.files)
        begin = time.monotonic()
        self._each(lambda plan: plan.up)
        self._neighbours(neighbours.forgotten)
        self._await_ready()
        return time.monotonic() - begin

    def down(self) -> None:
        try:
            self._each(lambda plan: plan.down)
        finally:
            self._neighbours(neighbours.known)

    def collect(self) -> Mapping[Point, list[bytes]]:
        """What each point's telemetry printed since the last call, as lines."""
        got = self._all(lambda plan: [plan.collect] if plan.collect else [])
        return {point: done.stdout.splitlines() for point, done in got.items()}

    def _neighbours(self, lines: Callable[[Host, Topology], Iterator[str]]) -> None:
        """What hosts know of each other, where the arm has a say in it. `-force`: what is done already is done."""
        topology = self._testbed.topology
        if self._asked:
            with ThreadPoolExecutor(_FORKS) as pool:
                for _ in pool.map(lambda host: self._testbed.run(
                        host.name, ["ip", "-force", "-batch", "-"],
                        input="".join(f"{line}\n" for line in lines(host, topology)).encode()),
                        topology.hosts.values()):
                    pass

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = dict(self._deployment)
        while waiting:
            got = self._all(lambda plan: [plan.ready], waiting)
            waiting = {point: plan for point, plan in waiting.items() if got[point].status != 0}
            if waiting and time.monotonic() > deadline:
                point = next(iter(waiting))
                said = (got[point].stdout + got[point].stderr).decode(errors="replace").strip()[:300]
                raise DeployError(f"{self.arm}: {point.host} is not ready after {READY_TIMEOUT_S:g} s: {said}")

    def _each(self, commands: Plans) -> None:
        for point, done in self._all(commands).items():
            if done.status != 0:
                said = (done.stdout + done.stderr).decode(errors="replace").strip()[:300]
                raise DeployError(f"{self.arm}: a command failed on {point.host} (status {done.status}): {said}")

    def _all(self, commands: Plans, points: Deployment | None = None) -> dict[Point, Completed]:
        """Run each point's commands in order, points beside each other; the last or first failed result of each."""
        plans = self._deployment if points is None else points

        def one(item: tuple[Point, PointPlan]) -> Completed:
            done = Completed(0, b"", b"")
            for argv in commands(item[1]):
                done = self._testbed.run_at(item[0], argv)
                if done.status:
                    break
            return done

        with ThreadPoolExecutor(_FORKS) as pool:
            return dict(zip(plans, pool.map(one, plans.items()), strict=True))


# --- ansible ---------------------------------------------------------------------------------------


def archive(plan: PointPlan) -> bytes:
    """The plan's files as a tar stream, reproducible byte for byte."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in sorted(plan.files.items()):
            info = tarfile.TarInfo(path.lstrip("/"))
            info.size, info.mode = len(content), 0o700
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def command(plan: PointPlan) -> str:
    """The one command that unpacks the archive from standard input and runs `up`. Every word is quoted.

    Directories are made first: ports share some, and of two GNU tars that make one at once, one gives up.
    """
    directories = sorted({str(PurePosixPath(path).parent) for path in plan.files})
    made = [shlex.join(["mkdir", "-p", *directories])] if directories else []
    return " && ".join([*made, "tar -xpf - -C / --no-same-owner", *(shlex.join(argv) for argv in plan.up)])


def _play(testbed: ServedTestbed, deployment: Deployment) -> None:
    import ansible_runner  # heavy; only a run that deploys pays for it

    private = Path(tempfile.mkdtemp(prefix="ansible-", dir=testbed.socket("x").parent.parent))
    try:
        hosts = {}
        for index, (point, plan) in enumerate(deployment.items()):
            tar = private / f"{index}.tar"
            tar.write_bytes(archive(plan))
            hosts[_inventory_name(point)] = {**testbed.way_to(point), "lab_archive": str(tar),
                                             "lab_command": command(plan)}
        inventory = {"all": {"hosts": hosts, "vars": {"ansible_connection": "labns"}}}
        runner = ansible_runner.run(
            private_data_dir=str(private), playbook=str(_HERE / "deploy.yml"), inventory=inventory, quiet=True,
            envvars=_environment(private), forks=_FORKS,
            cancel_callback=lambda: False)  # without one it takes SIGINT and SIGTERM for itself, for good
        if runner.status != "successful":
            raise DeployError(f"ansible: {_first_failure(runner)}")
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _inventory_name(point: Point) -> str:
    return {"port": f"port of {point.host}", "node": f"{point.host} from its machine"}.get(point.kind, point.host)


def _environment(private: Path) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {
        "ANSIBLE_CONNECTION_PLUGINS": str(_HERE / "connection_plugins"),
        "ANSIBLE_ACTION_PLUGINS": str(_HERE / "action_plugins"),
        "ANSIBLE_LOCAL_TEMP": str(private / "tmp"), "ANSIBLE_HOME": str(private / "home"),
        "ANSIBLE_HOST_KEY_CHECKING": "False", "ANSIBLE_GATHERING": "explicit", "ANSIBLE_RETRY_FILES_ENABLED": "False",
        "ANSIBLE_DEPRECATION_WARNINGS": "False", "PYTHONPATH": root, "LC_ALL": "C.UTF-8", "HOME": str(private),
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}",
    }


def _first_failure(runner: object) -> str:
    for event in getattr(runner, "events", ()):
        if event.get("event") in ("runner_on_failed", "runner_on_unreachable"):
            data = event["event_data"]
            said = data.get("res", {}).get("msg", json.dumps(data.get("res", {})))
            return f"{data.get('host')}: {str(said)[:400]}"
    stdout = getattr(runner, "stdout", None)
    said = stdout.read()[-400:] if stdout else ""
    return f"the playbook ended as {getattr(runner, 'status', '?')}: {said.strip()}"
