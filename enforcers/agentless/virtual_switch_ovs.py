"""The switch firewall as Open vSwitch has it: OpenFlow tables with connection tracking, at every switch port.

`virtual-switch-ovs` runs them in the kernel datapath, as products do. `virtual-switch-ovs-userspace` has the same flows
and the same program at the switch, in the userspace datapath over packet sockets: a lower bound, not how products
run it.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

from enforcers.agentless.ovs import flows
from enforcers.agentless.ports import comes_by, guarded
from enforcers.base import Resolver, effective
from lab.model import Deployment, Feature, Flow, Native, Point, PointPlan, Policy, Sighting, Topology

DIRECTORY = "/run/switch/ovs"
_WHOLE = f"delete cookie={flows.POLICY_COOKIE}/"
_TOOLS = (
    Feature("ovs", "its own database and switch daemon run at the switch"),
    Feature("python3", "the program at the switch that keeps them is Python 3.11 without dependencies"),
)


class VirtualSwitchOvs:
    """Open vSwitch at every switch port: OpenFlow, stateful, anti-spoofing; the kernel's datapath. No telemetry."""

    name = "virtual-switch-ovs"
    stops_spoofing = True  # at the port: MAC, ARP, neighbour discovery, source address
    datapath = "system"

    def needs(self) -> tuple[Feature, ...]:
        return (Feature("ovs-kernel", "flows are carried out in the kernel's datapath"), *_TOOLS)

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """One set of flows for every bridge, told with the first port; what each host may say, with its own."""
        reduced, approximations = effective(policy)
        whole = flows.policy(Resolver(reduced, topology), topology)
        rules = {Point("port", host.name): flows.guard(host) for host in guarded(topology)}
        count = len(whole) + sum(map(len, rules.values()))
        text = {point: "\n".join([*lines, ""]) for point, lines in rules.items()}
        if text:
            text[next(iter(text))] += "\n".join([*whole, ""])
        return Native(text, reduced, approximations, count)

    def render(self, native: Native, topology: Topology) -> Deployment:
        """The program that keeps the daemons, and each port's flows; with the first, those of all bridges."""
        return {point: self._plan(point.host, *text.partition(_WHOLE)) for point, text in native.rules.items()}

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """The flow leaves its host, and one of its ends is at a port of ours: hosts outside of the site are not."""
        return comes_by(flow, topology)

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        """None: the flows that it tracks are not exported."""
        return ()

    def _plan(self, host: str, guard: str, mark: str, whole: str) -> PointPlan:
        def command(verb: str) -> tuple[str, ...]:
            return ("/usr/bin/python3", "-I", "-S", f"{DIRECTORY}/point.py", verb, host, self.datapath)

        placed = {f"{DIRECTORY}/{host}.flows": guard.encode()}
        if mark:
            placed[f"{DIRECTORY}/policy.flows"] = (mark + whole).encode()
            placed[f"{DIRECTORY}/point.py"] = files("enforcers.agentless.ovs").joinpath("point.py").read_bytes()
        return PointPlan(files=placed, up=(command("up"),), ready=command("ready"), update=(command("update"),),
                         collect=(), down=(command("down"),))


class VirtualSwitchOvsUserspace(VirtualSwitchOvs):
    """Open vSwitch at every switch port, userspace datapath: a lower bound, not how products run it. No telemetry."""

    name = "virtual-switch-ovs-userspace"
    caveat = "Open vSwitch's userspace datapath over packet sockets: a lower bound, not how products run it"
    datapath = "netdev"

    def needs(self) -> tuple[Feature, ...]:
        return _TOOLS
