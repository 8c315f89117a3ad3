"""Mininet's own prompt in a lab that stands: its object model over hosts that are there, a shell for whom one asks.

Runs inside the run's namespaces, in a process of its own.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import subprocess
import termios
from collections.abc import Mapping
from typing import Any

import mininet.cli
import mininet.log
import mininet.net
import mininet.node
import mininet.topo

from lab.backends.mininet_net import PlannedLink, bridge_of, port_of, router_mac
from lab.isolation import tool_env
from lab.model import Topology


class _Asked:
    """A node that starts its shell when it is first given a command."""

    name: str
    shell: subprocess.Popen[bytes] | None
    params: dict[str, Any]
    pid: int | None

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: N802 (Mininet's name)
        self.pid = self.params.get("held")
        self.waiting, self.lastCmd, self.lastPid, self.execed = False, None, None, False
        if mnopts == "asked":
            super().startShell("")  # type: ignore[misc]
            self.pid = self.params.get("held") or self.pid

    def config(self, **_params: Any) -> dict[str, Any]:
        """Nothing: it is configured."""
        return {}

    def cmd(self, *args: Any, **kwargs: Any) -> str:
        if self.shell is None:
            self.startShell("asked")
        return str(super().cmd(*args, **kwargs))  # type: ignore[misc]

    def sendCmd(self, *args: Any, **kwargs: Any) -> None:  # noqa: N802
        if self.shell is None:
            self.startShell("asked")
        super().sendCmd(*args, **kwargs)  # type: ignore[misc]

    def _popen(self, cmd: list[str], **params: Any) -> subprocess.Popen[bytes]:
        if cmd[0] != "mnexec" or "bash" not in cmd:
            return subprocess.Popen(cmd, **params)
        # not -a: that would also enter the cgroup namespace, which a host shares with the machine and a user may not
        into = ["nsenter", "-t", str(self.params["held"]), "-m", "-u", "-i", "-n", "-p", "--"] if (
            "held" in self.params) else []
        return subprocess.Popen([*into, *cmd[cmd.index("env"):]], start_new_session=True,
                                preexec_fn=_own_terminal, **params)  # noqa: PLW1509 (the prompt has one thread)

    def terminate(self) -> None:
        """End our shell; the host itself is not ours."""
        if self.shell is not None:
            self.shell.kill()
            self.shell.wait()


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that an interrupt at the prompt reaches the command


class AttachedHost(_Asked, mininet.node.Host):  # type: ignore[misc]
    """A host of the lab; `params`: held, the pid of its first process."""


class AttachedSwitch(_Asked, mininet.node.Switch):  # type: ignore[misc]
    """A bridge in the run's own namespace."""

    def start(self, controllers: object) -> None:
        """Nothing: it is up."""

    def stop(self, deleteIntfs: bool = True) -> None:  # noqa: N803
        self.terminate()


class AttachedIntf(mininet.link.Intf):  # type: ignore[misc]
    """An interface that is there; its address is the planned one."""

    def config(self, **_params: Any) -> dict[str, Any]:
        return {}

    def updateIP(self) -> str | None:  # noqa: N802
        return self.ip  # type: ignore[no-any-return]

    def updateMAC(self) -> str | None:  # noqa: N802
        return self.mac  # type: ignore[no-any-return]

    def isUp(self, setUp: bool = False) -> bool:  # noqa: N802
        return True


class AttachedNet(mininet.net.Mininet):  # type: ignore[misc]
    """Mininet's network over nodes that are there."""

    def configHosts(self) -> None:  # noqa: N802
        """Nothing: they are configured."""


class AttachedTopo(mininet.topo.Topo):  # type: ignore[misc]
    """The scenario's graph; `pids` are the hosts' first processes as the run counts."""

    def build(self, topology: Topology, pids: Mapping[str, int]) -> None:
        for name in topology.segments:
            self.addSwitch(bridge_of(topology, name), cls=AttachedSwitch, inNamespace=False)
        self.addHost(topology.router, cls=AttachedHost, held=pids[topology.router], ip=None)
        for name, host in topology.hosts.items():
            self.addHost(name, cls=AttachedHost, held=pids[name], ip=None)
            self.addLink(name, bridge_of(topology, host.segment), intfName1="eth0",
                         intfName2=port_of(topology, name), addr1=host.mac)
        for index, name in enumerate(topology.segments):
            self.addLink(topology.router, bridge_of(topology, name), intfName1=f"eth{index}", intfName2=f"r{index}",
                         addr1=router_mac(topology, name))


def attach(topology: Topology, pids: Mapping[str, int]) -> AttachedNet:
    """The network as Mininet's objects, each host and the router with its addresses."""
    os.environ.update(tool_env())  # Mininet seeks its tools on the PATH, where an ordinary user has none, and would end
    mininet.net.Mininet.inited = True  # its initialisation would set sysctls in the lab
    mininet.log.setLogLevel("output")
    net = AttachedNet(topo=AttachedTopo(topology=topology, pids=pids), host=AttachedHost, switch=AttachedSwitch,
                      link=PlannedLink, intf=AttachedIntf, controller=None, build=True)
    for name, host in topology.hosts.items():
        _address(net[name].intf("eth0"), host.v4, topology.segments[host.segment].v4)
    for index, segment in enumerate(topology.segments.values()):
        _address(net[topology.router].intf(f"eth{index}"), segment.gateway4, segment.v4)
    return net


def _address(intf: Any, address: str, network: str) -> None:
    intf.ip, intf.prefixLen = address, ipaddress.ip_network(network).prefixlen


class Prompt(mininet.cli.CLI):  # type: ignore[misc]
    """Mininet's prompt; our hosts may have a dash in their names."""

    identchars = mininet.cli.CLI.identchars + "-."

    def waitForNode(self, node: Any) -> None:  # noqa: N802
        """Print what the command prints; from a terminal, what is typed meanwhile goes to the command."""
        if self.isatty():
            super().waitForNode(node)
        else:  # piped input holds the next commands, not this one's
            mininet.log.output(node.waitOutput())


def prompt(topology: Topology, pids: Mapping[str, int]) -> int:
    """Mininet's prompt until the user leaves it. Exit status 0."""
    net = attach(topology, pids)
    os.chdir("/")
    try:
        Prompt(net)
    finally:
        for node in (*net.hosts, *net.switches):
            node.terminate()
    return 0
