"""A user namespace for who is not root: as root inside, an ordinary user outside.

With Debian's `uidmap` and a range in /etc/subuid and /etc/subgid, the lab has as many users as it declares. Without, it
has one, which stands for all of them: `one_user` says so in the topology.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from lab.model import Topology

_CLONE_NEWUSER = 0x10000000
_MAPPED = 65536  # the lab's users are below, nobody (65534) among them
_libc = ctypes.CDLL(None, use_errno=True)


def new_namespace() -> bool:
    """Put this process into a user namespace of its own, as root there. True if it has several users.

    Raises OSError where the kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    ranges = subordinate_ids(uid)
    tells, told = os.pipe()
    helper = os.fork()  # newuidmap works from outside only
    if helper == 0:
        os.close(told)
        go = os.read(tells, 1)
        os._exit(0 if go and ranges and _map_ranges(os.getppid(), uid, gid, ranges) else 1)
    os.close(tells)
    try:
        if _libc.unshare(_CLONE_NEWUSER):
            err = ctypes.get_errno()
            raise OSError(err, os.strerror(err))
        os.write(told, b"1")
    finally:
        os.close(told)
        mapped = os.waitpid(helper, 0)[1] == 0
    if not mapped:
        _map_one(uid, gid)
    return mapped


def one_user(topology: Topology) -> Topology:
    """The topology with every user's id 0: names stay, since policies speak of them; the kernel sees one user."""
    processes = {name: replace(process, uid=0) for name, process in topology.processes.items()}
    return replace(topology, processes=processes, users=dict.fromkeys((*topology.users, "nobody"), 0))


def subordinate_ids(uid: int) -> tuple[int, int] | None:
    """The first user id and group id of ranges of at least 65,536 that belong to `uid`; None if it has none."""
    if not all(shutil.which(tool, path="/usr/bin:/bin:/usr/sbin:/sbin") for tool in ("newuidmap", "newgidmap")):
        return None
    found = [_first_range(Path(file), uid) for file in ("/etc/subuid", "/etc/subgid")]
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def _first_range(file: Path, uid: int) -> int | None:
    try:
        names = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        names = {str(uid)}
    lines = file.read_text().splitlines() if file.exists() else []
    for who, first, count in (line.split(":") for line in lines if line.count(":") == 2):
        if who in names and int(count) >= _MAPPED - 1:
            return int(first)
    return None


def _map_ranges(pid: int, uid: int, gid: int, ranges: tuple[int, int]) -> bool:
    for tool, own, first in (("newuidmap", uid, ranges[0]), ("newgidmap", gid, ranges[1])):
        argv = [tool, str(pid), "0", str(own), "1", "1", str(first), str(_MAPPED - 1)]
        if subprocess.run(argv, capture_output=True, check=False).returncode:
            return False
    return True


def _map_one(uid: int, gid: int) -> None:
    for kind, own in (("uid", uid), ("gid", gid)):
        if not Path(f"/proc/self/{kind}_map").read_text():
            if kind == "gid":
                Path("/proc/self/setgroups").write_text("deny")
            Path(f"/proc/self/{kind}_map").write_text(f"0 {own} 1")
