"""At the switch: private Open vSwitch daemons, and the switch's ports moved to a bridge of theirs and back.

`point.py (up|update|ready|down) HOST DATAPATH`, for the port `$LABCTL_PORT`; Python 3.11's standard library alone. Each
Linux bridge has a bridge beside it, which takes its ports over; the first call at any port moves them all, the last
`down` moves them back and ends the daemons. Calls wait for each other: ports come and go beside each other.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUN, STATE = HERE / "run", HERE / "state.json"
_DB = f"unix:{RUN}/db.sock"
_ENV = {**os.environ, "OVS_RUNDIR": str(RUN), "OVS_LOGDIR": str(RUN), "OVS_DBDIR": str(RUN)}
_QUIET = ("-vconsole:off", "-vsyslog:off", "-vfile:off")
_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
_END_S = 10.0


def call(*argv: str, input: str | None = None) -> str:
    done = subprocess.run(argv, env=_ENV, input=input, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{argv[0]}: {(done.stderr or done.stdout).strip()[:300]}")
    return done.stdout


def vsctl(*argv: str) -> str:
    return call("ovs-vsctl", f"--db={_DB}", "--timeout=20", *argv)


def alive(daemon: str) -> bool:
    """Whether it runs: one that was killed may not be reaped yet."""
    try:
        pid = (RUN / f"{daemon}.pid").read_text().strip()
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def members() -> dict[str, list[str]]:
    """The Linux bridges here, each with its ports."""
    links = json.loads(call("ip", "-json", "-details", "link", "show"))
    found: dict[str, list[str]] = {one["ifname"]: [] for one in links
                                   if one.get("linkinfo", {}).get("info_kind") == "bridge"}
    for one in links:
        if one.get("master") in found:
            found[one["master"]].append(one["ifname"])
    return found


class Switch:
    """What stands, as the state file has it: bridges by name with their ports, and the hosts that are guarded."""

    def __init__(self, datapath: str) -> None:
        self.datapath = datapath
        kept = json.loads(STATE.read_text()) if STATE.exists() else {}
        self.bridges: dict[str, list[str]] = kept.get("bridges", {})
        self.hosts: dict[str, str] = kept.get("hosts", {})

    def keep(self) -> None:
        STATE.write_text(json.dumps({"bridges": self.bridges, "hosts": self.hosts}))

    def start(self) -> None:
        """Both daemons; of one that was killed, again."""
        RUN.mkdir(exist_ok=True)
        database = RUN / "conf.db"
        if not database.exists():
            call("ovsdb-tool", "create", str(database), _SCHEMA)
        if not alive("ovsdb-server"):
            call("ovsdb-server", str(database), f"--remote=p{_DB}", f"--pidfile={RUN}/ovsdb-server.pid",
                 f"--unixctl={RUN}/db.ctl", "--detach", "--no-chdir", *_QUIET)
            vsctl("--no-wait", "init")
        if not alive("ovs-vswitchd"):
            # Checksums that a sender left to hardware are such to it only with this, which is read once, at its start.
            vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")
            call("ovs-vswitchd", _DB, f"--pidfile={RUN}/ovs-vswitchd.pid", f"--unixctl={RUN}/switch.ctl", "--detach",
                 "--no-chdir", *_QUIET)
            pid = (RUN / "ovs-vswitchd.pid").read_text().strip()
            vsctl("set", "Open_vSwitch", ".", f"external_ids:started={pid}")  # returns when it has what it is told
            for bridge in self.bridges:  # flows live in the daemon: none are left of before
                self.load(bridge)
            for host, port in tuple(self.hosts.items()):
                self.guard(host, port)

    def take(self) -> None:
        """Every port of the Linux bridges to the bridges beside them, with the policy there first."""
        for number, (bridge, ports) in enumerate(members().items()):
            name = f"o-{bridge}"
            if name not in self.bridges:
                vsctl("add-br", name, "--", "set", "Bridge", name, f"datapath_type={self.datapath}",
                      "fail_mode=secure", f"external_ids:zone={number + 1}")
                self.bridges[name] = []
                self.keep()
                self.load(name)
            for port in ports:
                self.bridges[name].append(port)
                self.keep()
                call("ip", "link", "set", "dev", port, "nomaster")
                vsctl("add-port", name, port)

    def load(self, bridge: str) -> None:
        """The policy, in one transaction."""
        zone = vsctl("get", "Bridge", bridge, "external_ids:zone").strip().strip('"')
        text = (HERE / "policy.flows").read_text().replace("$zone", zone)
        call("ovs-ofctl", "-OOpenFlow14", "--bundle", "add-flows", bridge, "-", input=text)

    def guard(self, host: str, port: str) -> None:
        bridge = next(name for name, ports in self.bridges.items() if port in ports)
        number = vsctl("get", "Interface", port, "ofport").strip()
        text = (HERE / f"{host}.flows").read_text().replace("$port", number)
        call("ovs-ofctl", "-OOpenFlow14", "--bundle", "add-flows", bridge, "-", input=text)
        self.hosts[host] = port
        self.keep()

    def release(self, host: str) -> None:
        """Nothing guards the host's port from now on; where its interface went with it, the number is free again."""
        port = self.hosts.pop(host)
        self.keep()
        if not self.hosts:
            self.end()
            return
        bridge = next(name for name, ports in self.bridges.items() if port in ports)
        own = (HERE / f"{host}.flows").read_text().partition("\n")[0].split(" ")[1]
        call("ovs-ofctl", "-OOpenFlow14", "del-flows", bridge, own)
        if port not in {name for _, name in socket.if_nameindex()}:
            vsctl("--if-exists", "del-port", bridge, port)
            self.bridges[bridge].remove(port)
            self.keep()

    def end(self) -> None:
        """All ports back where they were, daemons ended, their files gone."""
        for daemon, control in (("ovs-vswitchd", "switch.ctl"), ("ovsdb-server", "db.ctl")):
            if alive(daemon):
                pid = int((RUN / f"{daemon}.pid").read_text())
                cleanup = ("--cleanup",) if daemon == "ovs-vswitchd" else ()
                call("ovs-appctl", "-t", str(RUN / control), "exit", *cleanup)
                gone(pid)
        here = {name for _, name in socket.if_nameindex()}
        for bridge, ports in self.bridges.items():
            for port in here.intersection(ports):
                call("ip", "link", "set", "dev", port, "master", bridge.removeprefix("o-"))
                call("ip", "link", "set", "dev", port, "promisc", "off")
        for file in RUN.glob("*"):
            file.unlink()
        RUN.rmdir()
        STATE.unlink()


def gone(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    if not select.select([handle], [], [], _END_S)[0]:
        sys.exit(f"process {pid} did not end within {_END_S:g} s")


def main(verb: str, host: str, datapath: str) -> None:
    port = os.environ["LABCTL_PORT"]
    with (HERE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        switch = Switch(datapath)
        if verb == "up":
            switch.start()
            switch.take()
            switch.guard(host, port)
        elif verb == "update":
            for bridge in switch.bridges:
                switch.load(bridge)
            switch.guard(host, port)
        elif verb == "ready":
            if switch.hosts.get(host) != port or not alive("ovs-vswitchd"):
                sys.exit(f"{port} is not guarded")
        elif host in switch.hosts:
            switch.release(host)


if __name__ == "__main__":
    main(*sys.argv[1:])
