"""The daemon's parts that need no privileges: what it reads from the kernel, from /proc and from its own files."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import struct
import subprocess
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcers.agent.agent_nft import AgentNft
from enforcers.agent.bundle import agent_plan, agent_zipapp
from enforcers.agent.daemon import cli, conntrack, netlink, nflog, settings
from enforcers.agent.daemon.conntrack import Entry, Tuple
from enforcers.agent.daemon.files import AgentError, Directory
from enforcers.agent.daemon.owners import OpenSockets, Owners
from lab.model import Point, Sighting

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
v4 = st.binary(min_size=4, max_size=4)
v6 = st.binary(min_size=16, max_size=16)
pairs = st.one_of(st.tuples(v4, v4), st.tuples(v6, v6))
ports = st.integers(0, 65535)
counts = st.integers(0, 2**40)


# --- conntrack --------------------------------------------------------------------------------


def nested(kind: int, *parts: bytes) -> bytes:
    return netlink.attribute(0x8000 | kind, b"".join(parts))


def u64(kind: int, value: int) -> bytes:
    return netlink.attribute(kind, struct.pack("!Q", value))


def event(flow: Tuple, *more: bytes, shuffled: bool = False) -> memoryview:
    """A message as the kernel writes it; `shuffled` in another order, which only the general way can read."""
    first, second = (1, 2) if len(flow.source) == 4 else (3, 4)
    addresses = nested(1, netlink.attribute(first, flow.source), netlink.attribute(second, flow.target))
    number = netlink.attribute(1, bytes([flow.proto]))
    if flow.proto in (ICMP, ICMPV6):
        base = 4 if flow.proto == ICMP else 7
        rest = [netlink.attribute(base, struct.pack("!H", flow.sport)), netlink.attribute(base + 1, b"\x08"),
                netlink.attribute(base + 2, b"\0")]
    else:
        rest = [netlink.attribute(kind, struct.pack("!H", port)) for kind, port in ((2, flow.sport), (3, flow.dport))]
    proto = nested(2, number, *rest)
    parts = [proto, addresses] if shuffled else [addresses, proto]
    family = socket.AF_INET if len(flow.source) == 4 else socket.AF_INET6
    return memoryview(netlink.NFGEN.pack(family, 0, 0) + nested(1, *parts) + b"".join(more))


@given(pairs, st.sampled_from([TCP, UDP, ICMP, ICMPV6, 132]), ports, ports, st.booleans())
def test_conntrack_tuples_are_read_both_ways(ends: tuple[bytes, bytes], proto: int, sport: int, dport: int,
                                             shuffled: bool) -> None:
    flow = Tuple(proto, ends[0], sport, ends[1], 0 if proto in (ICMP, ICMPV6) else dport)
    entry = conntrack.parse(event(flow, netlink.attribute(12, b"\0\0\1\0"), shuffled=shuffled))
    assert entry == Entry(256, flow, 0, 0, 0, 0, 0)


@given(counts, counts, counts, counts, counts, counts, st.integers(0, 2**32 - 1))
def test_conntrack_counters_times_and_mark(p1: int, b1: int, p2: int, b2: int, start: int, stop: int,
                                           mark: int) -> None:
    flow = Tuple(TCP, b"\n\0\0\1", 1, b"\n\0\0\2", 2)
    more = [netlink.attribute(8, struct.pack("!I", mark)), nested(9, u64(1, p1), u64(2, b1)),
            nested(10, u64(1, p2), u64(2, b2)), nested(20, u64(1, start), u64(2, stop))]
    assert conntrack.parse(event(flow, *more)) == Entry(0, flow, p1 + p2, b1 + b2, start, stop, mark)
    begun = conntrack.parse(event(flow, nested(20, u64(1, start))))
    assert begun and (begun.start, begun.stop) == (start, 0)


@given(st.binary(max_size=120))
def test_no_bytes_from_the_kernel_make_netlink_fail(data: bytes) -> None:
    netlink.attributes(memoryview(data))
    list(netlink.messages(data))


def test_a_message_without_a_tuple_is_none() -> None:
    assert conntrack.parse(memoryview(netlink.NFGEN.pack(2, 0, 0))) is None


def test_messages_are_framed() -> None:
    data = netlink.message(0x100, 0x600, b"abcd") + netlink.message(0x102, 0, b"")
    assert [(kind, bytes(body)) for kind, _, body in netlink.messages(data)] == [(0x100, b"abcd"), (0x102, b"")]


class Flooded:
    """A socket whose buffer overflowed once between two datagrams."""

    def __init__(self) -> None:
        self._answers: list[bytes | OSError] = [b"one", OSError(errno.ENOBUFS, ""), b"two", BlockingIOError()]

    def recv(self, _size: int) -> bytes:
        answer = self._answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer


def test_losses_that_the_kernel_reports_are_counted() -> None:
    assert netlink.drain(Flooded(), 10) == ([b"one", b"two"], 1)  # type: ignore[arg-type]
    assert netlink.drain(Flooded(), 1) == ([b"one"], 0)  # type: ignore[arg-type]


# --- denied packets -----------------------------------------------------------------------------


def packet(flow: Tuple, extension: bytes = b"") -> bytes:
    icmp = flow.proto in (ICMP, ICMPV6)
    transport = struct.pack("!BBHHH", 8, 0, 0, flow.sport, 1) if icmp else struct.pack("!HH", flow.sport, flow.dport)
    if len(flow.source) == 4:
        head = struct.pack("!BBHIBBH4s4s", 0x45, 0, 20 + len(transport), 0, 64, flow.proto, 0, flow.source, flow.target)
    else:
        chained = 0 if extension else flow.proto
        size = len(extension) + len(transport)
        head = struct.pack("!IHBB16s16s", 6 << 28, size, chained, 64, flow.source, flow.target) + extension
    return head + transport


@given(pairs, st.sampled_from([TCP, UDP, ICMP, ICMPV6]), ports, ports, st.one_of(st.none(), st.integers(0, 70000)))
def test_denied_packets_are_read(ends: tuple[bytes, bytes], proto: int, sport: int, dport: int,
                                 uid: int | None) -> None:
    flow = Tuple(proto, ends[0], sport, ends[1], 0 if proto in (ICMP, ICMPV6) else dport)
    data = packet(flow)
    attributes = [netlink.attribute(10, b"deny out\0"), netlink.attribute(9, data),
                  netlink.attribute(12, struct.pack("!I", 7))]
    if uid is not None:
        attributes.append(netlink.attribute(11, struct.pack("!I", uid)))
    found = nflog.parse(memoryview(netlink.NFGEN.pack(0, 0, 7) + b"".join(attributes)))
    assert found == nflog.Denied("deny out", flow, uid, len(data), 7)


def test_extension_headers_are_skipped() -> None:
    flow = Tuple(UDP, b"\1" * 16, 5, b"\2" * 16, 53)
    assert nflog.packet_tuple(memoryview(packet(flow, bytes([UDP, 0]) + bytes(6)))) == flow


@given(st.binary(max_size=100))
def test_no_packet_makes_the_reader_fail(data: bytes) -> None:
    nflog.packet_tuple(memoryview(data))


# --- owners -------------------------------------------------------------------------------------


def test_open_sockets_finds_this_process_and_notices_reused_descriptors() -> None:
    finder, me = OpenSockets(), str(os.getpid())
    for _ in range(3):  # the same descriptor number each time, another inode
        with socket.socket() as sock:
            assert finder.holder(os.fstat(sock.fileno()).st_ino, os.getuid()) == me
    assert finder.holder(1, os.getuid()) is None


def test_a_socket_that_was_found_is_found_again_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    finder, me = OpenSockets(), str(os.getpid())
    searches: list[int] = []
    search = OpenSockets._search

    def counted(self: OpenSockets, pids: list[str], inode: int, now: float, full: bool) -> tuple[str, str] | None:
        searches.append(inode)
        return search(self, pids, inode, now, full)

    monkeypatch.setattr(OpenSockets, "_search", counted)
    with ExitStack() as stack:
        inodes = [os.fstat(stack.enter_context(socket.socket()).fileno()).st_ino for _ in range(100)]
        for _ in range(3):
            assert {finder.holder(inode, os.getuid()) for inode in inodes} == {me}
        assert len(searches) == 100
        stack.close()
        assert {finder.holder(inode, os.getuid()) for inode in inodes} == {None}, "what is closed is not guessed"


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_owners_of_a_local_exchange(family: socket.AddressFamily, address: str, kind: socket.SocketKind) -> None:
    owners, this = Owners(), str(Path("/proc/self/exe").resolve())
    try:
        with socket.socket(family, kind) as server, socket.socket(family, kind) as client:
            server.bind((address, 0))
            if kind == socket.SOCK_STREAM:
                server.listen()
            client.connect(server.getsockname())
            packed = socket.inet_pton(family, address)
            flow = Tuple(TCP if kind == socket.SOCK_STREAM else UDP, packed, client.getsockname()[1], packed,
                         server.getsockname()[1])
            source, target = owners.source(flow), owners.target(flow)
            assert (source.path, source.uid, source.by) == (this, os.getuid(), "socket")
            assert target.path == this
        gone = owners.source(flow)
        assert gone.path is None and gone.why == "no socket"
        assert owners.missed["no socket"] == 1
    except PermissionError:
        pytest.skip("sock_diag is not allowed here")
    finally:
        owners.close()


# --- the bundle and its commands ----------------------------------------------------------------


def test_the_zipapp_is_the_same_each_time_and_holds_only_the_daemon() -> None:
    first = agent_zipapp()
    agent_zipapp.cache_clear()
    assert agent_zipapp() == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        names = archive.namelist()
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert names == sorted(names) and "__main__.py" in names
    beside = {"__main__.py", "enforcers/__init__.py", "enforcers/agent/__init__.py", "enforcers/agent/background.py"}
    assert {name for name in names if not name.startswith("daemon/")} == beside


def test_the_zipapp_needs_only_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(agent_zipapp())
    everything = "import sys; sys.path.insert(0, 'agent.pyz'); import daemon.service, daemon.cli; print(1)"
    argv = [sys.executable, "-I", "-S", "-c", everything]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=False)
    assert done.stdout == b"1\n", done.stderr


def test_a_command_leaves_out_what_makes_starting_slow(tmp_path: Path) -> None:
    """`ready`, `collect` and `stop` run on every host of a lab; with these modules they took 2.5 times the CPU."""
    (tmp_path / "agent.pyz").write_bytes(agent_zipapp())
    heavy = {"pathlib", "subprocess", "typing", "dataclasses", "json", "re", "shutil"}
    script = "import sys; sys.path.insert(0, 'agent.pyz'); import daemon.cli; print(*sys.modules)"
    done = subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", script], cwd=tmp_path, capture_output=True, text=True,
                          check=True)
    assert "daemon.cli" in done.stdout and not heavy & set(done.stdout.split())


def test_settings_that_were_cut_short_are_not_put_back() -> None:
    text = settings.render({"nf_conntrack_acct": 1, "nf_conntrack_timestamp": 0})
    assert settings.parse(text) == {"nf_conntrack_acct": 1, "nf_conntrack_timestamp": 0}
    for cut in range(len(text)):
        with pytest.raises(ValueError, match="cut short"):
            settings.parse(text[:cut])


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "agent.pyz"
    file.write_bytes(agent_zipapp())
    return subprocess.run([sys.executable, "-I", "-S", str(file), *arguments], capture_output=True, text=True,
                          check=False)


def test_wrong_calls_say_how_to_call(tmp_path: Path) -> None:
    for arguments in ([], ["start"], ["jump", "--dir", "x"], ["start", "--dir"], ["start", "--dir", "x", "--mode", "y"],
                      ["start", "--dir", "x", "--more", "y"]):
        done = run(tmp_path, *arguments)
        assert (done.returncode, done.stderr.strip()) == (2, cli.USAGE)


@pytest.mark.parametrize("command", ["ready", "update", "collect"])
def test_without_a_daemon_a_command_says_so_in_one_line(tmp_path: Path, command: str) -> None:
    done = run(tmp_path, command, "--dir", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "no daemon answers" in done.stderr


def test_stop_where_nothing_is_does_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "stop", "--dir", str(tmp_path / "absent")).returncode == 0


def test_a_policy_file_of_another_version_is_refused(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    with pytest.raises(AgentError, match="deploy it again"):
        directory.read_policy()
    Path(directory.policy).write_text('{"version": 2}')
    with pytest.raises(AgentError, match="this agent reads version 1"):
        directory.read_policy()


def test_only_one_daemon_holds_the_lock(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    handle = directory.take_lock()
    assert handle is not None
    assert directory.take_lock() is None
    os.close(handle)


def test_the_plan_says_where_everything_goes() -> None:
    plan = agent_plan("router", "rules", b"policy")
    assert plan.files["/run/host/agent/rules.nft"] == b"rules"
    assert plan.up[0][-2:] == ("--mode", "router")


# --- sightings ----------------------------------------------------------------------------------

LINES = [
    {"t": "header", "version": 1},
    {"t": "flow", "id": 1, "time": 5.0, "end": 6.0, "proto": "tcp", "source": "10.0.0.1", "sport": 1, "target": "::1",
     "dport": 80, "process": "/opt/a", "user": "u", "target_process": None, "bytes": 10, "packets": 2},
    {"t": "deny", "time": 7.0, "proto": "icmp", "source": "10.0.0.1", "sport": 9, "target": "10.0.0.2", "dport": 0,
     "process": None, "user": None, "target_process": None, "bytes": 84, "packets": 1, "verdict": "would-deny"},
]


def test_sightings_are_read_from_lines() -> None:
    lines = [json.dumps(line).encode() for line in LINES]
    flow, deny = AgentNft().sightings(Point("host", "h"), [lines[0], b"", *lines[1:]])
    assert flow == Sighting("h", 5.0, "tcp", "10.0.0.1", 1, "::1", 80, "/opt/a", "u", None, 10, 2, "allow", None)
    assert deny == Sighting("h", 7.0, "icmp", "10.0.0.1", 9, "10.0.0.2", 0, None, None, None, 84, 1, "would-deny", None)


@pytest.mark.parametrize("line", [b"Traceback", b"{}", b"[]", b'{"t":"flow"}', json.dumps(LINES[1]).encode()[:-9]])
def test_a_line_that_is_not_the_agents_is_an_error_that_names_the_host(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"^web-1: not a telemetry line"):
        list(AgentNft().sightings(Point("host", "web-1"), [line]))
