"""What this machine can do, tried, not assumed. Each probe runs inside the run's private namespaces.

A feature is a record: what it is for, how to try it, and the one command that mends it where one does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab import bpf_probe
from lab.backends import docker_engine
from lab.isolation import cgroup2_root, tool_env
from lab.model import Feature
from lab.packages import apt_line
from lab.runs import mark_cgroup, new_id, remove_cgroup

_NETLINK_SOCK_DIAG, _NETLINK_NETFILTER, _NETLINK_GENERIC = 4, 12, 16
_OTHER_UID = 20000
_BTF, _BTF_MAGIC = Path("/sys/kernel/btf/vmlinux"), b"\x9f\xeb"
AS_ROOT = "run labctl as root"


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a feature is not here, and the one command that mends it; or, in `remedy`, why none does."""

    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Check:
    """One feature: what it is for, and a probe that tells what it lacks. `outside`: tried before the run's namespaces.

    A probe leaves nothing behind and takes well under a second.
    """

    name: str
    purpose: str
    probe: Callable[[], Lack | None]
    outside: bool = False


def missing(features: tuple[Feature, ...]) -> str | None:
    """Why an arm with these needs cannot run here and what to do, in one line, or None if it can."""
    reasons = [f"{feature.name}: {lack.problem} ({feature.why}); {lack.remedy}" for feature in features
               if (lack := probe(feature.name))]
    return "; ".join(reasons) or None


def probe(name: str) -> Lack | None:
    """What the named feature lacks here, or None if it is here."""
    check = CHECKS.get(name)
    return check.probe() if check else UNKNOWN


def probe_all(*, outside: bool) -> dict[str, Lack | None]:
    """Every feature that is tried in (or `outside` of) the run's namespaces: what it lacks, None if it is here."""
    return {check.name: check.probe() for check in CHECKS.values() if check.outside is outside}


# --- probes -------------------------------------------------------------------------------------


def _tool(argv: list[str], package: str, what: str, input: str = "", cannot: str = "") -> Lack | None:
    """Whether a tool does as it is told. `cannot`: what mends it where the tool is here and refuses."""
    try:
        done = subprocess.run(argv, input=input.encode(), capture_output=True, env=tool_env(), timeout=10, check=False)
    except FileNotFoundError:
        return Lack(f"{argv[0]} is not installed", apt_line([package]))
    except subprocess.TimeoutExpired:
        return Lack(f"{argv[0]} did not answer within 10 s", f"see what hangs: {' '.join(argv)}")
    said = done.stderr.decode(errors="replace").split("\n", maxsplit=1)[0].rpartition("Error: ")[2].strip()[:120]
    return None if done.returncode == 0 else Lack(
        f"{argv[0]} was refused {what}: {said}", cannot or _no_kernel(what, forbidden="not permitted" in said))


def _nft(what: str, *statements: str) -> Lack | None:
    rules = ["add table inet labctl_probe", *statements, "delete table inet labctl_probe", ""]
    return _tool(["nft", "-f", "-"], "nftables", what, "\n".join(rules))


def _nft_rule(what: str, expression: str) -> Lack | None:
    return _nft(what, "add chain inet labctl_probe c", f"add rule inet labctl_probe c {expression}")


def _netlink(protocol: int, groups: int, what: str) -> Lack | None:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as s:
            s.bind((0, groups))
    except OSError as err:
        return Lack(f"netlink refuses {what} ({os.strerror(err.errno or 0)})", _no_kernel(what, _forbidden(err)))
    return None


def _nftables() -> Lack | None:
    return _nft("tables")


def _conntrack() -> Lack | None:
    return (_nft_rule("connection tracking", "ct state established accept")
            or _netlink(_NETLINK_NETFILTER, 0b101, "connection events"))


def _nflog() -> Lack | None:
    return _nft_rule("logging", "log group 7") or _netlink(_NETLINK_NETFILTER, 0, "logged packets")


def _flowtable() -> Lack | None:
    table = "add flowtable inet labctl_probe f { hook ingress priority 0; devices = { lo }; }"
    return _nft("flow tables", table)


def _netdev() -> Lack | None:
    chain = "add chain netdev labctl_probe c { type filter hook ingress device lo priority 0; }"
    return _tool(["nft", "-f", "-"], "nftables", "chains at an interface",
                 f"add table netdev labctl_probe\n{chain}\ndelete table netdev labctl_probe\n")


def _sock_diag() -> Lack | None:
    return _netlink(_NETLINK_SOCK_DIAG, 0, "socket diagnosis")


def _python3() -> Lack | None:
    here = os.access("/usr/bin/python3", os.X_OK)
    return None if here else Lack("/usr/bin/python3 is missing", apt_line(["python3"]))


def _iperf3() -> Lack | None:
    here = shutil.which("iperf3", path=tool_env()["PATH"])
    return None if here else Lack("iperf3 is not installed", apt_line(["iperf3"]))


def _clang() -> Lack | None:
    here = shutil.which("clang", path=tool_env()["PATH"])
    return None if here else Lack("clang is not installed", apt_line(["clang", "linux-libc-dev"]))


def _libbpf() -> Lack | None:
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return Lack("libbpf.so.1 is not installed", apt_line(["libbpf1"]))
    return None


def _cgroup2() -> Lack | None:
    if cgroup2_root():
        return None
    mounted = " cgroup2 " in Path("/proc/self/mountinfo").read_text()
    return Lack("no writable cgroup v2 is mounted",
                AS_ROOT if mounted or not _is_root() else "mount -t cgroup2 none /sys/fs/cgroup")


def _several_users() -> Lack | None:
    """Whether a child can become another user than labctl's."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(_OTHER_UID, _OTHER_UID, _OTHER_UID)
            os.setresuid(_OTHER_UID, _OTHER_UID, _OTHER_UID)
            os._exit(0)
        except OSError:
            os._exit(1)
    if os.waitpid(pid, 0)[1] == 0:
        return None
    return Lack("only one user can be told from others here", f"{apt_line(['uidmap'])}, or {AS_ROOT}")


def _bpf() -> Lack | None:
    return _bpf_refused(lambda: _entered(bpf_probe.SCHED_CLS))


def _entered(kind: int) -> None:
    with bpf_probe.program(kind):
        pass


def _cgroup_bpf() -> Lack | None:
    root = cgroup2_root()
    if root is None:
        return _cgroup2()
    cgroup = root / new_id()  # named and marked like a run's, so that a sweep finds it if we are killed here
    cgroup.mkdir()
    try:
        mark_cgroup(cgroup)
        return _bpf_refused(lambda: bpf_probe.attach_to_cgroup(cgroup))
    finally:
        remove_cgroup(cgroup)


def _bpf_refused(attempt: Callable[[], None]) -> Lack | None:
    try:
        attempt()
    except OSError as err:
        return Lack(f"bpf(2) is refused ({err.strerror})", _no_kernel("BPF", _forbidden(err)))
    return None


def _btf() -> Lack | None:
    try:
        with _BTF.open("rb") as file:
            if file.read(2) in (_BTF_MAGIC, _BTF_MAGIC[::-1]):
                return None
    except OSError:
        pass
    return Lack(f"{_BTF} is not there", "boot a kernel with CONFIG_DEBUG_INFO_BTF, as Debian's are")


def _tc_bpf() -> Lack | None:
    problem = _tool(["tc", "qdisc", "add", "dev", "lo", "clsact"], "iproute2", "clsact", cannot=_module("sch_ingress"))
    if problem is None:
        _tool(["tc", "qdisc", "del", "dev", "lo", "clsact"], "iproute2", "clsact")
    return problem or _bpf()


def _netem() -> Lack | None:
    add = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    problem = _tool(add, "iproute2", "netem", cannot=_module("sch_netem"))
    if problem is None:
        _tool(["tc", "qdisc", "del", "dev", "lo", "root"], "iproute2", "netem")
    return problem


def _ovs_kernel() -> Lack | None:
    """Ask generic netlink for the family: that also loads the module where the kernel may."""
    family = b"ovs_datapath\0"
    attribute = struct.pack("<HH", 4 + len(family), 2) + family  # CTRL_ATTR_FAMILY_NAME
    attribute += b"\0" * (-len(attribute) % 4)
    body = struct.pack("<BBH", 3, 1, 0) + attribute  # CTRL_CMD_GETFAMILY
    message = struct.pack("<IHHII", 16 + len(body), 16, 1, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as s:
            s.settimeout(2)
            s.sendto(message, (0, 0))
            answer = s.recv(4096)
    except OSError as err:
        return Lack(f"generic netlink does not answer ({err})", _no_kernel("Open vSwitch", _forbidden(err)))
    refused = struct.unpack_from("<H", answer, 4)[0] == 2  # NLMSG_ERROR
    return Lack("the kernel has no Open vSwitch datapath", _module("openvswitch")) if refused else None


def _ovs() -> Lack | None:
    """Its tools; and /dev/net/tun, of which a bridge's own interface in the userspace datapath is made."""
    for tool in ("ovs-vswitchd", "ovsdb-server", "ovs-vsctl", "ovs-ofctl"):
        if shutil.which(tool, path=tool_env()["PATH"]) is None:
            return Lack(f"{tool} is not installed", apt_line(["openvswitch-switch"]))
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        return Lack(f"/dev/net/tun cannot be opened ({os.strerror(err.errno or 0)})",
                    AS_ROOT if _forbidden(err) and not _is_root() else "modprobe tun")
    return None


def _br_netfilter() -> Lack | None:
    here = Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
    return None if here else Lack("bridged packets cannot be shown to netfilter", _module("br_netfilter"))


def _isolated_ports() -> Lack | None:
    """Ports of a bridge that hear only those that are not isolated: tried on a bridge of our own."""
    if _tool(["bridge", "-V"], "iproute2", "its version"):
        return Lack("bridge is not installed", apt_line(["iproute2"]))
    bridge, port = (f"labctl-{what}" for what in ("b", "p"))
    try:
        for argv in (["ip", "link", "add", bridge, "type", "bridge"],
                     ["ip", "link", "add", port, "master", bridge, "type", "veth", "peer", "labctl-q"],
                     ["bridge", "link", "set", "dev", port, "isolated", "on"]):
            if problem := _tool(argv, "iproute2", "an isolated bridge port"):
                return problem
    finally:
        for device in (port, bridge):
            _tool(["ip", "link", "del", device], "iproute2", "an isolated bridge port")
    return None


def _softflowd() -> Lack | None:
    here = shutil.which("softflowd", path=tool_env()["PATH"])
    return None if here else Lack("softflowd is not installed", apt_line(["softflowd"]))


def _mirror() -> Lack | None:
    chain = "add chain netdev labctl_probe c { type filter hook ingress device lo priority 0; }"
    rule = 'add rule netdev labctl_probe c meta mark 1 dup to "lo"'
    return _tool(["nft", "-f", "-"], "nftables", "copies of packets to an interface",
                 f"add table netdev labctl_probe\n{chain}\n{rule}\ndelete table netdev labctl_probe\n")


def _docker() -> Lack | None:
    try:
        why = docker_engine.lack(docker_engine.socket_path())
    except docker_engine.EngineError as err:
        return Lack(*str(err).split("; ", 1))
    return Lack(*why) if why else None


# --- remedies -----------------------------------------------------------------------------------


def _is_root() -> bool:
    """Whether this is the machine's own root, not that of a user namespace."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _forbidden(err: OSError) -> bool:
    return err.errno in (errno.EPERM, errno.EACCES)


def _no_kernel(what: str, forbidden: bool) -> str:
    """What mends a refusal: more rights, where they were the reason; else nothing does."""
    if not forbidden:
        return f"nothing but another kernel: this one has no {what}"
    return "nothing from in here: the container or a security module forbids it" if _is_root() else AS_ROOT


def _module(name: str) -> str:
    """How to get a kernel module: load it, if the kernel has it."""
    release = Path("/lib/modules", os.uname().release)
    listed = release / "modules.dep"
    has = listed.exists() and f"/{name}.ko" in listed.read_text()
    return f"modprobe {name}" if has else f"nothing but another kernel: this one has no module {name}"


def _named(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


CHECKS: Mapping[str, Check] = _named((
    Check("nftables", "packet filters on hosts and routers", _nftables),
    Check("conntrack-events", "flow records from connection tracking", _conntrack),
    Check("nflog", "records of denied packets", _nflog),
    Check("sock-diag", "which process owns a socket", _sock_diag),
    Check("python3", "agents that are Python programs", _python3),
    Check("iperf3", "bulk throughput", _iperf3),
    Check("clang", "kernel programs, compiled here", _clang),
    Check("libbpf", "loading kernel programs", _libbpf),
    Check("cgroup2", "CPU and memory of hosts and agents", _cgroup2),
    Check("several-users", "processes of different users", _several_users),
    Check("bpf", "programs in the kernel", _bpf),
    Check("btf", "kernel programs that fit any kernel", _btf),
    Check("cgroup-bpf", "kernel programs on a host's sockets and packets", _cgroup_bpf),
    Check("tc-bpf", "kernel programs on a switch port (clsact)", _tc_bpf),
    Check("host-tc-bpf", "kernel programs on a host's own interfaces (clsact)", _tc_bpf),
    Check("netem", "links with delay and loss", _netem),
    Check("nft-netdev", "packet filters at an interface", _netdev),
    Check("nft-flowtable", "established traffic past the firewall", _flowtable),
    Check("br-netfilter", "firewall on a bridge, by netfilter", _br_netfilter),
    Check("isolated-ports", "switch ports that may reach the router alone", _isolated_ports),
    Check("ovs-kernel", "Open vSwitch in the kernel", _ovs_kernel),
    Check("ovs", "Open vSwitch's own daemons", _ovs),
    Check("softflowd", "NetFlow and IPFIX of what a mirror port hears", _softflowd),
    Check("mirror", "a copy of all frames of a segment", _mirror),
    Check("docker", "hosts that are containers", _docker, outside=True),
))
UNKNOWN = Lack("labctl does not know how to look for it", f"features have to be of: {', '.join(CHECKS)}")
