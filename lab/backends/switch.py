"""Where switch ports are: the run's own namespaces, which no host sees. Commands and files of enforcement there.

The switch has a file system of its own for this (`DIRECTORY`), mounted when all hosts stand, so that they lack it.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.backends.base import Completed
from lab.isolation import mount, tool_env

DIRECTORY = Path("/run/switch")
CGROUP = "(switch).d"  # beside those of the hosts, whose names have no parentheses
NAME = "(switch)"  # what its daemons' use is reported under
PORT_VARIABLE = "LABCTL_PORT"  # tells a command which interface the port is
_NOSUID, _NODEV = 0x2, 0x4
_ENTER = 'echo 0 > "$0"/cgroup.procs; exec "$@"'


class Switch:
    """The switch side of every host's link. `cgroup`: of what runs there, None without cgroup v2."""

    def __init__(self, cgroup: Path | None) -> None:
        self.cgroup = cgroup
        DIRECTORY.mkdir(mode=0o700, exist_ok=True)

    def seclude(self) -> None:
        """Give the switch a file system that hosts which stand already do not see."""
        mount("tmpfs", str(DIRECTORY), "tmpfs", _NOSUID | _NODEV, "mode=700")

    def run(self, argv: Sequence[str], port: str, *, input: bytes = b"") -> Completed:
        """Run a command to its end; what it leaves running stays in the switch's cgroup."""
        wrapped = ["/bin/sh", "-c", _ENTER, str(self.cgroup), *argv] if self.cgroup else list(argv)
        env = {"PATH": tool_env()["PATH"], PORT_VARIABLE: port}
        done = subprocess.run(wrapped, input=input, capture_output=True, env=env, check=False)
        return Completed(done.returncode if done.returncode >= 0 else 128 - done.returncode, done.stdout, done.stderr)


def put(root: Path, files: Mapping[str, bytes]) -> None:
    """Place files (absolute paths under `root`, mode 0755) as root; each appears whole, as `labhost place` does it."""
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f"{target.name}.", dir=target.parent, delete=False) as file:
            beside = Path(file.name)
            try:
                file.write(content)
                file.close()
                beside.chmod(0o755)
                beside.replace(target)  # an executable that runs cannot be written over, but it can be replaced
            except BaseException:
                beside.unlink()
                raise

