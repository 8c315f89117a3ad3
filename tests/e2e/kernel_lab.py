"""Two hosts of namespaces and the eBPF agent's kernel side attached to them, without an agent: to test the programs.

Runs inside a run's private namespaces (tests.e2e.isolated) and uses the run's cgroup, which the run removes by its id.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import ipaddress
import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lab.bpf import build, clsact, syscall
from lab.bpf.libbpf import BpfObject
from lab.bpf.ring import Ring, split
from lab.isolation import RunIdentity

SOURCE = Path(__file__).parents[2] / "enforcers/agent/ebpf/kernel/agent.bpf.c"
ENDPOINT = Path(__file__).with_name("kernel_endpoint.py").read_text()
CGROUP = ("connect4", "connect6", "post_bind4", "post_bind6", "sock_create", "ingress", "egress")
TRACING = ("on_exec", "on_fork", "on_receive", "on_state")
TABLES = {"owners": (8, 2), "peers": (16, 4), "peer_prefixes": (20, 4), "services": (4, 4), "service_ranges": (8, 4),
          "verdicts": (8, 8)}
PROTOS = {"tcp": 6, "udp": 17}
OUT = 0x8000
UNKNOWN, KERNEL, OTHER = 0, 1, 2  # owner classes
RING_BYTES = 1 << 18
BIN = Path("/run/bin")
FLOW = struct.Struct("<HHBBBBQQQQII16s16sHHIIIIII4xQQ")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Flow:
    """One flow record, as far as tests ask."""

    proto: int
    dir: str
    verdict: str
    state: int
    sent: int
    received: int
    local: str
    remote: str
    local_port: int
    remote_port: int
    exe_id: int
    uid: int
    peer_exe_id: int
    rule: int

    @classmethod
    def of(cls, record: bytes) -> Flow:
        (_kind, _size, proto, direction, verdict, state, _opened, _closed, sent, received, _out, _in, local, remote,
         lport, rport, exe, uid, _tgid, peer, _peer_uid, rule, _cgroup, _netns) = FLOW.unpack_from(record)
        return cls(proto, ("in", "out")[direction], ("deny", "allow", "would-deny", "unjudged")[verdict], state, sent,
                   received, text_of(local), text_of(remote), lport, rport, exe, uid, peer, rule)


def packed(address: str) -> bytes:
    ip = ipaddress.ip_address(address)
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed


def text_of(address: bytes) -> str:
    ip = ipaddress.IPv6Address(address)
    return str(ip.ipv4_mapped or ip)


def exe_id(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") & 0x7FFFFFFF or 1


@dataclass(frozen=True)
class Rules:
    """A host's policy in the kernel's own terms: owner classes by executable and user, verdicts by peer and service."""

    owners: dict[tuple[str, int], int] = field(default_factory=dict)  # ("", uid): any executable; (name, ANY)
    peers: dict[str, tuple[int, int]] = field(default_factory=dict)  # address -> class, flags
    services: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)  # (proto, port) -> class, mode
    verdicts: dict[tuple[int, int, int, int], tuple[int, bool, int]] = field(default_factory=dict)
    mode: int = 2
    flags: int = 0
    on_silence: int = 0
    default: bool = False


ANY = 0xFFFFFFFF


class Host:
    """A network namespace with a cgroup; commands run there as a chosen executable and user."""

    def __init__(self, name: str, index: int, cgroup: Path) -> None:
        self.name, self.index, self.cgroup = name, index, cgroup / name
        self.cgroup.mkdir()
        self._holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo ready; exec cat"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout and self._holder.stdin
        self._holder.stdout.readline()
        self.pid = self._holder.pid
        self.netns = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.v4, self.v6 = f"10.7.0.{index + 1}", f"fd07::{index + 1}"
        self.sh("ip link set lo up; echo '0 65535' > /proc/sys/net/ipv4/ping_group_range; "
                "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; "
                "echo 3 > /proc/sys/net/ipv4/tcp_fastopen; echo 1 > /proc/sys/net/ipv4/tcp_syn_retries")

    def close(self) -> None:
        assert self._holder.stdin
        self._holder.stdin.close()
        self._holder.wait(90)
        os.close(self.netns)

    def sh(self, script: str) -> None:
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "sh", "-ec", script], check=True, timeout=90)

    def addresses(self, v6: bool) -> str:
        return self.v6 if v6 else self.v4

    def start(self, exe: str, code: str, uid: int = 0, argv: list[str] | None = None,
              keep: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """Python `code` with the endpoint's functions, as the executable BIN/exe and user `uid`."""
        command = argv or [str(BIN / exe), "-I", "-S", "-c", ENDPOINT, code]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                env={"PYTHONHOME": "/usr", "PATH": "/usr/bin:/bin"}, preexec_fn=self._enter(uid),  # noqa: PLW1509
                                pass_fds=keep)

    def say(self, exe: str, code: str, uid: int = 0, argv: list[str] | None = None) -> Any:
        """What that says last."""
        process = self.start(exe, code, uid, argv)
        out, _ = process.communicate(timeout=90)
        lines = out.decode().splitlines()
        if not lines:
            raise AssertionError(f"{self.name}/{exe}: said nothing: status {process.returncode}")
        return json.loads(lines[-1])

    @contextlib.contextmanager
    def running(self, exe: str, code: str, uid: int = 0, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
        """The same, left running once it has said something; ended by the end of its input."""
        process = self.start(exe, code, uid, **more)
        assert process.stdin and process.stdout
        try:
            line = process.stdout.readline()
            assert line, f"{self.name}/{exe}: did not start"
            yield process
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait(90)
            process.stdout.close()

    def _enter(self, uid: int) -> Callable[[], None]:
        def enter() -> None:
            (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
            if _libc.setns(self.netns, _CLONE_NEWNET):
                os._exit(97)
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)

        return enter

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread in the host's network."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        assert not _libc.setns(self.netns, _CLONE_NEWNET)
        try:
            yield
        finally:
            assert not _libc.setns(home, _CLONE_NEWNET)
            os.close(home)


class Kernel:
    """The programs, loaded and attached; maps by name; a policy per host."""

    def __init__(self, cgroup: Path, without: tuple[str, ...] = (), hooks: tuple[str, ...] = CGROUP + TRACING) -> None:
        defines = tuple(f"-DWITHOUT_{guard}" for guard in without)
        defines += ("-Wno-error",) if defines else ()  # without a guard something is unused
        self.object = BpfObject(build.compiled(SOURCE, flags=defines))
        self.object.load()
        self.maps = {name: syscall.Map(self.object.map(name)) for name in self.object.maps
                     if name not in ("socks", "tasks")}
        self.rings: dict[tuple[str, int], Ring] = {}
        self.inner: dict[tuple[str, int], syscall.Map] = {}
        self._cgroup = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        self.links: dict[str, int] = {}
        for name in hooks:
            self.attach(name)

    def close(self) -> None:
        for fd in self.links.values():
            os.close(fd)
        os.close(self._cgroup)
        self.object.close()

    def attach(self, name: str) -> None:
        if name not in self.object.programs:
            return  # built without it
        if name in TRACING:
            self.links[name] = self.object.attach(name)
        else:
            self.links[name] = syscall.link(self.object.program(name), self._cgroup, self.object.attach_type(name))

    def attach_interfaces(self, host: Host) -> None:
        with host.inside(), contextlib.closing(clsact.Interfaces()) as interfaces:
            for index in (1, 2):  # lo, eth0
                for way, where in (("in", clsact.INGRESS), ("out", clsact.EGRESS)):
                    interfaces.attach(index, where, self.object.program(f"interface_{way}"), f"labctl-{way}")

    def detach_interfaces(self, host: Host) -> None:
        with host.inside(), contextlib.closing(clsact.Interfaces()) as interfaces:
            for index in (1, 2):
                interfaces.clear(index)

    # --- identity ---

    def keys_of(self, paths: dict[str, Path]) -> dict[str, bytes]:
        """What the kernel knows these files by."""
        files = {os.open(path, os.O_RDONLY): name for name, path in paths.items()}
        data = self.iterate("exe_keys", pid=os.getpid())
        found = {}
        for at in range(0, len(data), 32):
            (fd,) = struct.unpack_from("<I", data, at)
            if fd in files:
                found[files[fd]] = data[at + 8 : at + 32]
        for fd in files:
            os.close(fd)
        return found

    def name_exes(self, *names: str) -> None:
        for name, key in self.keys_of({name: BIN / name for name in names}).items():
            self.maps["exes"].put(key, struct.pack("<I", exe_id(name)))

    # --- policy ---

    def cookie(self, host: Host) -> bytes:
        with host.inside():
            import socket

            with socket.socket() as s:
                return s.getsockopt(socket.SOL_SOCKET, 71, 8)  # SO_NETNS_COOKIE

    def install(self, host: Host, entries: int = 256) -> None:
        for name, (key, value) in TABLES.items():
            kind = syscall.LPM_TRIE if name in ("peer_prefixes", "service_ranges") else syscall.HASH
            for slot in (2 * host.index, 2 * host.index + 1):
                inner = syscall.Map(syscall.create_map(kind, key, value, entries, syscall.NO_PREALLOC))
                self.maps[name].put(struct.pack("<I", slot), struct.pack("<I", inner.fd))
                self.inner[name, slot] = inner
        for name in ("events", "records"):
            fd = syscall.create_map(syscall.RINGBUF, 0, 0, RING_BYTES)
            self.maps[name].put(struct.pack("<I", host.index), struct.pack("<I", fd))
            self.rings[name, host.index] = Ring(fd)

    def apply(self, host: Host, rules: Rules, slot: int = 0) -> int:
        """Put `rules` in force on a host at once; the new epoch."""
        at = 2 * host.index + slot
        fill: dict[str, list[tuple[bytes, bytes]]] = {
            "owners": [(struct.pack("<II", exe_id(name) if name else 0, uid), struct.pack("<H", c))
                       for (name, uid), c in rules.owners.items()],
            "peers": [(packed(address), struct.pack("<HH", *value)) for address, value in rules.peers.items()],
            "services": [(struct.pack("<HBx", port, PROTOS[proto]), struct.pack("<HBx", *value))
                         for (proto, port), value in rules.services.items()],
            "verdicts": [(struct.pack("<HHHH", *key), struct.pack("<IBBxx", rule, allow, flags))
                         for key, (rule, allow, flags) in rules.verdicts.items()],
        }
        for name, rows in fill.items():
            self.inner[name, at].replace(b"".join(k for k, _ in rows), b"".join(v for _, v in rows))
        epoch = time.monotonic_ns() & ~1023 | host.index
        self.maps["hosts"].put(self.cookie(host), struct.pack(
            "<QIIIBBBBHHHHHHHH", epoch, host.index, at, rules.flags, rules.mode, rules.on_silence, rules.default,
            rules.default, OTHER, 1, 1, 2, 3, 4, 5, 0))
        self.touch(epoch)
        return epoch

    def touch(self, epoch: int | None = None) -> None:
        self.maps["epoch"].put(struct.pack("<I", 0), struct.pack("<Q", epoch or time.monotonic_ns()))

    # --- telemetry ---

    def flows(self, host: Host) -> list[Flow]:
        """Records since the last call."""
        return [Flow.of(record) for record in split(self.rings["records", host.index].drain())]

    def events(self, host: Host) -> list[bytes]:
        return list(split(self.rings["events", host.index].drain()))

    def counters(self, host: Host) -> dict[str, int]:
        names = ("records_lost", "events_lost", "denied", "would_denied", "untagged", "unnamed", "out_of_memory",
                 "first_seen", "raw_refused", "packet_sockets", "revoked", "adopted")
        value = self.maps["counters"].get(struct.pack("<I", host.index))
        assert value
        return dict(zip(names, struct.unpack("<12Q", value), strict=True))

    def iterate(self, name: str, **how: Any) -> bytes:
        return syscall.iterate(self.object.program(name), **how)

    def revoke(self, host: Host) -> list[Flow]:
        with host.inside():
            return records_of(self.iterate("tcp_revoke"))

    def adopt(self) -> None:
        for name in ("adopt_tasks", "adopt_listeners", "adopt_sockets"):
            self.iterate(name)

    def datagrams(self) -> list[Flow]:
        return records_of(self.iterate("datagram_flows", map_fd=self.maps["datagrams"].fd))


def records_of(data: bytes) -> list[Flow]:
    return [Flow.of(data[at : at + FLOW.size]) for at in range(0, len(data), FLOW.size)]


@dataclass
class Bench:
    """Hosts a and b on one link, and the kernel side."""

    a: Host
    b: Host
    kernel: Kernel
    me: RunIdentity

    def rules(self, host: Host, **more: Any) -> Rules:
        """Peers by name as classes: 10 host a, 11 host b, 12 itself; asker is owner 20, server 21; service 80 is 30."""
        other = self.b if host is self.a else self.a
        peers = {other.v4: (11, 0), other.v6: (11, 0), host.v4: (12, 1), host.v6: (12, 1)}
        base = Rules(owners={("asker", ANY): 20, ("server", ANY): 21, ("other", ANY): 22}, peers=peers,
                     services={("tcp", 80): (30, 0), ("udp", 80): (31, 0)})
        return replace(base, **more)


@contextlib.contextmanager
def bench(me: RunIdentity, without: tuple[str, ...] = (), hooks: tuple[str, ...] = CGROUP + TRACING,
          **more: Any) -> Iterator[Bench]:
    """A fresh bench; `without`: guards that are compiled out."""
    assert me.cgroup
    place = me.cgroup / f"kernel-{time.monotonic_ns()}"
    place.mkdir()
    BIN.mkdir(exist_ok=True)
    for left in BIN.iterdir():
        left.unlink()  # a running one cannot be written over
    for name in ("asker", "server", "other"):
        shutil.copy("/usr/bin/python3", BIN / name)
    with contextlib.ExitStack() as stack:
        hosts = [Host(name, index, place) for index, name in enumerate("ab")]
        for host in hosts:
            stack.callback(host.close)
        _wire(*hosts)
        kernel = Kernel(place, without, hooks)
        stack.callback(kernel.close)
        kernel.name_exes("asker", "server", "other")
        for host in hosts:
            kernel.install(host, **more)
        yield Bench(hosts[0], hosts[1], kernel, me)


def _wire(a: Host, b: Host) -> None:
    subprocess.run(["ip", "link", "add", "eth0", "netns", str(a.pid), "type", "veth", "peer", "name", "eth0", "netns",
                    str(b.pid)], check=True)
    for host in (a, b):
        host.sh(f"ip addr add {host.v4}/24 dev eth0; ip addr add {host.v6}/64 dev eth0 nodad; ip link set eth0 up")
