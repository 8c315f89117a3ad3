"""The kernel's side of the agent: its programs, its maps, and the switch of a host's policy. Layouts: kernel/abi.h."""

from __future__ import annotations

import ctypes
import os
import struct
import time

from lab.bpf import libbpf, syscall
from lab.bpf.ring import Ring, split
from lab.bpf.syscall import Map

from . import scripts
from .lean import suppress
from .place import ADOPTING, AgentError, Place, read, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

CGROUP = ("connect4", "connect6", "post_bind4", "post_bind6", "sock_create", "ingress", "egress")
TRACING = ("on_exec", "on_fork", "on_receive", "on_state")
INNER = ("owners", "peers", "peer_prefixes", "services", "service_ranges", "verdicts")
MODES = {"off": 0, "monitor": 1, "enforce": 2}
SILENCES = {"ignored": 0, "opens": 1, "closes": 2}
SENDS_CLAIM = 16
BEAT_S, PATIENCE_S = 1.0, 5.0  # how often the agent says that it lives, and how long the kernel waits for it
_CONFIG = struct.Struct("<QIIIBBBBHHHHHHHH")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_EXE = struct.Struct("<QQII")
_STORAGES = ("socks", "tasks")  # read and written by the kernel alone
_RING_BYTES = {"events": 1 << 19, "records": 4 << 20}  # mapped here: nearly half of what the agent takes
_COUNTERS = ("records_lost", "events_lost", "denied", "would_denied", "untagged", "unnamed", "out_of_memory",
             "first_seen", "raw_refused", "packet_sockets", "revoked", "adopted")
_OWN_SLOTS = 2  # of an agent that serves one host: its tables and the idle ones
_LEAST_ROOM, _NEIGHBOURS, MAX_HOSTS = 64, 16, 1024
_PROVISIONAL = 1 << 31  # abi.h: a number that the kernel gave an executable that nobody had looked at
_CLONE_NEWNET, _CLONE_NEWPID = 0x40000000, 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)


class Tables:
    """One host's tables as they were placed: for each map its keys and its values, in one row."""

    def __init__(self, about: dict[str, Any], blob: bytes) -> None:
        self.about = about
        self.rows: dict[str, tuple[int, int, int, bytes, bytes]] = {}  # entries, sizes of key and value, keys, values
        for name, (offset, count, key, value) in about["maps"].items():
            middle, end = offset + count * key, offset + count * (key + value)
            if end > len(blob):
                raise AgentError("tables.bin: cut short; deploy it again")
            self.rows[name] = (count, key, value, blob[offset:middle], blob[middle:end])


    @classmethod
    def of(cls, rows: dict[str, tuple[int, int, int, bytes, bytes]]) -> Tables:
        """Tables that were read back."""
        made = cls({"maps": {}}, b"")
        made.rows = rows
        return made


class Kernel:
    """The programs, attached once. `fresh`: they were attached by us, not taken over from an agent that died."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._empty: set[tuple[int, str]] = set()
        self._rooms: dict[tuple[int, str], tuple[Map, int]] = {}  # by slot and map: the inner map, and its room
        os.makedirs(place.bpf, mode=0o700, exist_ok=True)
        self.fresh = not os.path.exists(f"{place.bpf}/link_connect4")
        elf = read(f"{place.directory}/agent.bpf.o")
        self._object = libbpf.BpfObject(elf)
        self._load()
        self._maps = {name: Map(self._object.map(name)) for name in self._object.maps if name not in _STORAGES}
        self._ring_fds = {name: self._ring(name) for name in _RING_BYTES}
        self._rings = {name: Ring(fd) for name, fd in self._ring_fds.items()}
        if not self.fresh:
            self._know_rooms()
        for name, ring in self._ring_fds.items():
            indices = b"".join(_U32.pack(index) for index in range(MAX_HOSTS))
            self._map(name).put_many(indices, _U32.pack(ring) * MAX_HOSTS)
        self._attach()

    @classmethod
    def open(cls, place: Place) -> Kernel:
        """Raises AgentError in one line where the kernel does not take the programs."""
        try:
            return cls(place)
        except libbpf.BpfLoadError as err:
            raise AgentError(f"the kernel does not take the programs: {err}") from err

    def close(self) -> None:
        os.close(self._home)
        self._object.close()

    # --- set-up ---

    def _load(self) -> None:
        """Load with the maps of an agent that died, where there are any; what enforces goes on meanwhile."""
        for name in self._object.maps:
            path = f"{self._place.bpf}/{name}"
            if os.path.exists(path):
                fd = syscall.pinned(path)
                self._object.reuse(name, fd)
                os.close(fd)
        self._object.load()
        for name in self._object.maps:
            if not os.path.exists(f"{self._place.bpf}/{name}"):
                syscall.pin(self._object.map(name), f"{self._place.bpf}/{name}")
        for name in self._object.programs:
            self._pin(f"prog_{name}", self._object.program(name))
        for name in ADOPTING:
            self._keep(f"iter_{name}", syscall.iterator(self._object.program(name)))

    def _pin(self, name: str, fd: int) -> None:
        """Under its name, in place of what bears it already, without a moment between."""
        fresh = f"{self._place.bpf}/new_{name}"
        remove(fresh)
        syscall.pin(fd, fresh)
        os.rename(fresh, f"{self._place.bpf}/{name}")

    def _ring(self, name: str) -> int:
        """One ring of a kind for all hosts: a record says whose it is. A dead agent's is read on."""
        path = f"{self._place.bpf}/ring_{name}"
        if os.path.exists(path):
            return syscall.pinned(path)
        ring = syscall.create_map(syscall.RINGBUF, 0, 0, _RING_BYTES[name], 0, f"ring_{name}")
        syscall.pin(ring, path)
        return ring

    def _attach(self) -> None:
        """The new links before the old ones go: no packet meets none of them."""
        for name in CGROUP:
            self._attach_to_cgroup(name)
        for name in TRACING:
            self._keep(f"link_{name}", self._object.attach(name))

    def _attach_to_cgroup(self, name: str) -> None:
        target = os.open(self._place.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._keep(f"link_{name}",
                       syscall.link(self._program(name), target, self._object.attach_type(name)))
        finally:
            os.close(target)

    def _keep(self, name: str, link: int) -> None:
        try:
            self._pin(name, link)
        finally:
            os.close(link)

    def _program(self, name: str) -> int:
        return self._object.program(name)

    def _map(self, name: str) -> Map:
        return self._maps[name]

    # --- a host's policy ---

    def fill(self, slot: int, tables: Tables) -> None:
        """Put tables in a slot that is not in force."""
        for name in INNER:
            count, _, _, keys, values = tables.rows.get(name, (0, 0, 0, b"", b""))
            if (slot, name) not in self._rooms and not count:
                continue
            if (slot, name) not in self._rooms:
                self._make_room(name, slot, count)
            inner, room = self._rooms[slot, name]
            if count > room:
                inner = self._install(name, [slot], count)[0]
            if (slot, name) in self._empty:
                inner.put_many(keys, values)
            else:
                inner.replace(keys, values)
            if count:
                self._empty.discard((slot, name))

    def clear(self, slot: int) -> None:
        """Empty tables that are not in force, so that the next policy is only written: that halves its time."""
        for name in INNER:
            if (slot, name) in self._rooms and (slot, name) not in self._empty:
                self._rooms[slot, name][0].replace(b"", b"")
                self._empty.add((slot, name))

    def _make_room(self, name: str, slot: int, count: int) -> None:
        """Inner maps for this host and its neighbours at once: the kernel waits for readers each time (15 ms).

        For 16 hosts at first, then for as many again as there are.
        """
        index = slot // 2
        first = 1 << index.bit_length() - 1 if index >= _NEIGHBOURS else 0
        hosts = range(first, min(max(2 * first, _NEIGHBOURS), MAX_HOSTS))
        slots = [one for host in hosts for one in (2 * host, 2 * host + 1) if (one, name) not in self._rooms]
        self._install(name, slots, count)

    def _install(self, name: str, slots: list[int], count: int) -> list[Map]:
        """New inner maps with room for twice as many entries."""
        room = max(_LEAST_ROOM, 1 << (2 * count - 1).bit_length())
        kind = syscall.LPM_TRIE if name in ("peer_prefixes", "service_ranges") else syscall.HASH
        made = [Map(syscall.create_map(kind, *_SIZES[name], room, syscall.NO_PREALLOC, name)) for _ in slots]
        self._map(name).put_many(b"".join(map(_U32.pack, slots)), b"".join(_U32.pack(one.fd) for one in made))
        for slot, inner in zip(slots, made, strict=True):
            if (slot, name) in self._rooms:
                self._rooms[slot, name][0].close()
            self._rooms[slot, name] = (inner, room)
            if not self._place.in_lab and slot < _OWN_SLOTS:
                self._pin(f"room_{slot}_{name}", inner.fd)
            self._empty.add((slot, name))
        return made

    def _know_rooms(self) -> None:
        """The inner maps that a dead agent made, some of them in force."""
        for name in INNER:
            for key, number in self._map(name).items():
                slot = _U32.unpack(key)[0]
                try:
                    inner = Map(syscall.map_by_id(*_U32.unpack(number)))
                except PermissionError:  # that takes SYS_ADMIN, and an agent of a container may have no more than BPF
                    if slot >= _OWN_SLOTS:
                        continue  # room for neighbours that it has not
                    inner = Map(syscall.pinned(f"{self._place.bpf}/room_{slot}_{name}"))
                self._rooms[slot, name] = (inner, inner.entries)

    def empty(self, index: int) -> None:
        """Forget the entries of a host that is no longer served; its room stays for the next."""
        self.clear(2 * index)
        self.clear(2 * index + 1)

    def switch(self, cookie: int, index: int, slot: int, policy: dict[str, Any], epoch: int) -> None:
        """Put a host's tables, mode and defaults in force by one write. `epoch`: of `new_epoch`."""
        about = policy["tables"]
        flags = about["flags"]
        if flags & SENDS_CLAIM:
            self._attach_claims()
        config = _CONFIG.pack(
            epoch, index, slot, flags, MODES[policy["mode"]], SILENCES[policy["on_silence"]], about["default"],
            about["default"], about["owner_other"], about["peer_other"], about["tcp_other"], about["udp_other"],
            about["icmp_service"], about["other_service"], about["other_service"], 0)
        self.expect(index)
        self._map("hosts").put(_U64.pack(cookie), config)
        self.touch(index)

    def forget(self, cookie: int, index: int) -> None:
        """A host without an agent: all passes."""
        self._map("hosts").delete(_U64.pack(cookie))
        self.touch(index)
        self.empty(index)

    def touch(self, index: int) -> None:
        """Have every flow judged again at its next packet."""
        self._map("epoch").put(_U32.pack(0), _U64.pack(new_epoch(index)))

    def expect(self, index: int) -> None:
        """The agent lives, and will say so again."""
        deadline = time.monotonic_ns() + int(PATIENCE_S * 1e9)
        self._map("beats").put(_U32.pack(index), _U64.pack(deadline))

    def config(self, cookie: int) -> dict[str, Any] | None:
        """What the kernel holds for a host now."""
        found = self._map("hosts").get(_U64.pack(cookie))
        if found is None:
            return None
        names = ("epoch", "index", "slot", "flags", "mode", "on_silence", "default_in", "default_out", "owner_other",
                 "peer_other", "tcp_other", "udp_other", "icmp_service", "other_service", "raw_service", "unused")
        return dict(zip(names, _CONFIG.unpack(found), strict=True))

    def _attach_claims(self) -> None:
        if not os.path.exists(f"{self._place.bpf}/link_claims"):
            self._attach_to_cgroup("claims")

    # --- what is in force ---

    def tables(self, slot: int) -> dict[str, list[tuple[bytes, bytes]]]:
        """Every table of a slot, read back."""
        return {name: self._rooms[slot, name][0].items() if (slot, name) in self._rooms else [] for name in INNER}

    def programs(self) -> list[str]:
        """What is attached, by the names of the links that hold it there."""
        return sorted(name.removeprefix("link_") for name in os.listdir(self._place.bpf) if name.startswith("link_"))

    # --- executables ---

    def name(self, exe: tuple[int, int, int, int], number: int, provisional: int = 0) -> None:
        """Say what an executable is called; `provisional`: what the kernel called it meanwhile.

        One that was executed before its host had a policy has such a number too, of which nobody was told.
        """
        exes, made = self._map("exes"), {provisional} - {0}
        was = exes.get(_EXE.pack(*exe))
        if was is not None and _U32.unpack(was)[0] & _PROVISIONAL:
            made.add(_U32.unpack(was)[0])
        for one in made:
            self._map("named").put(_U32.pack(one), _U32.pack(number))
        exes.put(_EXE.pack(*exe), _U32.pack(number))

    def know_script(self, interpreter: int, script: int, path: str) -> None:
        """Who executes `interpreter` with `path` as its first argument is `script`."""
        self._map("scripts").put(scripts.key(interpreter, path), _U32.pack(script))
        self._map("interpreters").put(_U32.pack(interpreter), _U32.pack(1))

    def keys_of(self, handles: list[int]) -> dict[int, tuple[int, int, int, int]]:
        """What the kernel knows these open files by."""
        found = {}
        data = syscall.iterate(self._program("exe_keys"), pid=os.getpid())
        for at in range(0, len(data) - 31, 32):
            handle, _, *key = struct.unpack_from("<IIQQII", data, at)
            if handle in handles:
                found[handle] = (key[0], key[1], key[2], key[3])
        return found

    # --- telemetry ---

    @property
    def events_fds(self) -> list[int]:
        return [ring.fileno() for ring in self._rings.values()]

    def drain(self, name: str, keep: Callable[[list[bytes]], object]) -> None:
        """Give the records that wait in a ring to `keep`; they leave the ring when it has returned."""
        self._rings[name].drain(lambda content: keep(list(split(content))))

    def counters(self, index: int) -> dict[str, int]:
        found = self._map("counters").get(_U32.pack(index)) or bytes(8 * len(_COUNTERS))
        return dict(zip(_COUNTERS, struct.unpack(f"<{len(_COUNTERS)}Q", found), strict=True))

    def datagrams(self) -> bytes:
        """Every flow of datagrams, of all hosts."""
        return syscall.iterate(self._program("datagram_flows"), map_fd=self._map("datagrams").fd)

    def walk(self, program: str, netns: int) -> bytes:
        """What an iterator prints that walks a host's network. In our own one it takes no right to enter others."""
        if os.fstat(netns).st_ino == os.fstat(self._home).st_ino:
            return syscall.iterate(self._program(program))
        _setns(netns)
        try:
            return syscall.iterate(self._program(program))
        finally:
            _setns(self._home)

    def adopt_listeners(self, proc: int) -> None:
        """Look again who holds the listeners of the host whose /proc is `proc`.

        The kernel walks the tasks that the caller can see, so it is done by a grandchild among them.
        """
        among = os.open("1/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            if os.fstat(among).st_ino == os.stat("/proc/self/ns/pid").st_ino:
                syscall.iterate(self._program("adopt_listeners"))
                return
            child = os.fork()
            if child == 0:
                _walk_among(among, self._program("adopt_listeners"))
            os.waitpid(child, 0)
        finally:
            os.close(among)


_SIZES = {"owners": (8, 2), "peers": (16, 4), "peer_prefixes": (20, 4), "services": (4, 4), "service_ranges": (8, 4),
          "verdicts": (8, 8)}


def unpin(directory: str) -> None:
    """Let go of all that is pinned; what nobody holds any more, the kernel takes down."""
    with suppress(FileNotFoundError):
        names = sorted(os.listdir(directory), key=lambda name: not name.startswith("link_"))  # enforcement first
        for name in names:
            remove(f"{directory}/{name}")
        os.rmdir(directory)


def _walk_among(among: int, program: int) -> NoReturn:
    """In a child: run an iterator in a PID namespace, by a child that is born into it."""
    status = 1
    try:
        if _libc.setns(among, _CLONE_NEWPID) == 0:
            born = os.fork()
            if born == 0:
                syscall.iterate(program)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(born, 0)[1])
    finally:
        os._exit(status)


def new_epoch(index: int) -> int:
    return time.monotonic_ns() & ~1023 | index


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        err = ctypes.get_errno()
        raise OSError(err, f"setns: {os.strerror(err)}")
