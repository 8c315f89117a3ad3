"""Pods: hosts whose processes have a container each, in one network, as those of a pod of Kubernetes have. Pure.

The host's own container is the first of the pod, which holds the network and, as where the process namespace is shared,
the processes: an agent there sees all of them, as one on a host does. What a member has for itself is its file system.
"""

from __future__ import annotations

from collections.abc import Mapping

from lab.backends.docker_specs import SERVE, ContainerSpec
from lab.model import Topology


def member_of(host: str, process: str) -> str:
    """What the container of a pod's process is called."""
    return f"{host}.{process}"


def members(topology: Topology) -> Mapping[str, Mapping[str, str]]:
    """By pod and by the path of an executable, the container that has it."""
    return {host.name: {topology.processes[name].path: member_of(host.name, name) for name in host.runs}
            for host in topology.hosts.values() if host.pod}


def specs(topology: Topology, run_id: str) -> list[ContainerSpec]:
    """A container for every process of every pod, of the process's image; it may serve and nothing more."""
    return [ContainerSpec(member_of(host.name, name), f"{run_id}-{member_of(host.name, name)}", {}, SERVE, {}, "",
                          topology.processes[name].image, beside=f"{run_id}-{host.name}")
            for host in topology.hosts.values() if host.pod for name in host.runs]


def images(topology: Topology) -> dict[str, str]:
    """Every foreign image, with a host that is of it or has a process of it."""
    found: dict[str, str] = {}
    for host in topology.hosts.values():
        of_members = [topology.processes[name].image for name in host.runs] if host.pod else []
        for image in (host.image, *of_members):
            if image:
                found.setdefault(image, host.name)
    return found
