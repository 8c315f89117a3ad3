"""Ways around a host agent that have to do with who asks and who receives, tried on packets."""

from __future__ import annotations

import json
import os
import shutil
import struct
from typing import Any

from tests.e2e.kernel_lab import ANY, BIN, ENDPOINT, Bench, exe_id
from tests.e2e.kernel_policies import A_ASKS, B_SERVES, usual

# --- going around connect() ---------------------------------------------------------------------


def v4_mapped(w: Bench) -> Any:
    """A v6 socket to ::ffff:ADDRESS is IPv4, and runs connect6 alone."""
    usual(w)
    with w.b.running("server", "serve(80)"):
        code = f"say(outcome(tcp, '::ffff:{w.b.v4}', 80, socket.AF_INET6))"
        return [w.a.say(exe, code) for exe in ("asker", "other")]


def asking_variants(w: Bench) -> Any:
    """Non-blocking, fast open, bound before, MPTCP, io_uring: every one is told at once."""
    usual(w)
    code = f"""
to = ({w.b.v4!r}, 80)
def nonblocking():
    s = socket.socket(); s.setblocking(False); s.connect(to)
def fast_open():
    s = socket.socket(); s.settimeout(WAIT_S); s.sendto(b"hello", 0x20000000, to)
def bound_before():
    s = socket.socket(); s.settimeout(WAIT_S); s.bind(("0.0.0.0", 0)); s.connect(to)
def mptcp():
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); s.settimeout(WAIT_S); s.connect(to)
said = [outcome(attempt) for attempt in (nonblocking, fast_open, bound_before, mptcp)]
say([what for what in said if what != "EPROTONOSUPPORT"])
"""
    with w.b.running("server", "serve(80)"):
        return sorted(set(w.a.say("other", code)))


IO_URING = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
SETUP, ENTER, CONNECT, ASYNC, SQ_POLL = 425, 426, 16, 16, 2
def asked_of_the_ring(to, flags=0, setup=0):
    # the kernel connects, in the caller or in a worker; offsets: struct io_uring_params
    about = bytearray(struct.pack("<IIIII", 0, 0, setup, 0, 1000) + bytes(100))
    shared = (ctypes.c_char * 120).from_buffer(about)
    ring = libc.syscall(SETUP, 4, shared)
    if ring < 0:
        return "no io_uring here"
    sq = struct.unpack_from("<8I", about, 40); cq = struct.unpack_from("<6I", about, 80)
    submit = mmap.mmap(ring, sq[6] + 16, offset=0)
    done = mmap.mmap(ring, cq[5] + 64, offset=0x8000000)
    entries = mmap.mmap(ring, 256, offset=0x10000000)
    s = socket.socket()
    address = struct.pack("<H", 2) + struct.pack("!H", to[1]) + socket.inet_aton(to[0]) + bytes(8)
    address = ctypes.create_string_buffer(address, 16)
    entries[:40] = struct.pack("<BBHiQQIIQ", CONNECT, flags, 0, s.fileno(), 16, ctypes.addressof(address), 0, 0, 7)
    submit[sq[6]:sq[6] + 4] = struct.pack("<I", 0)
    submit[sq[1]:sq[1] + 4] = struct.pack("<I", 1)
    libc.syscall(ENTER, ring, 1, 1, 1 | SQ_POLL, 0, 0)
    _, result = struct.unpack_from("<Qi", done, cq[5])
    return errno.errorcode.get(-result, "OPEN")
"""


def io_uring(w: Bench) -> Any:
    """The kernel connects for its caller, also in a worker of its own: it is the caller who asks."""
    usual(w)
    code = f"{IO_URING}\nsay([asked_of_the_ring(({w.b.v4!r}, 80), *how) for how in ((), (ASYNC,), (0, SQ_POLL))])"
    with w.b.running("server", "serve(80)"):
        said = [w.a.say(exe, code) for exe in ("asker", "other")]
    return "no io_uring here" if said[0][0] == "no io_uring here" else said


def multipath(w: Bench) -> Any:
    """An MPTCP connection that is allowed passes: its subflows are the kernel's, made for what was judged."""
    usual(w)
    code = f"""
def attempt():
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); s.settimeout(WAIT_S); s.connect(({w.b.v4!r}, 80))
    exchange(s)
say(outcome(attempt))
"""
    with w.b.running("server", "serve(80)"):
        return [w.a.say(exe, code) for exe in ("asker", "other")]


def untagged(w: Bench) -> Any:
    """A socket that came around connect() sends no SYN."""
    usual(w)
    with w.b.running("server", "serve(80)"):
        return w.a.say("other", f"say(outcome(tcp, '::ffff:{w.b.v4}', 80, socket.AF_INET6))") != "OPEN"


def other_cgroup(w: Bench) -> Any:
    """A socket stays with the control group that it was made in, wherever its process goes."""
    usual(w)
    away = w.b.cgroup / "cgroup.procs"
    code = f"""
s = socket.socket(); s.settimeout(WAIT_S)
open({str(w.me.cgroup / "cgroup.procs") if w.me.cgroup else ""!r}, "w").write("0")
say(outcome(s.connect, ({w.b.v4!r}, 80)))
"""
    assert away.exists()
    with w.b.running("server", "serve(80)"):
        return w.a.say("other", code)


# --- who it is ----------------------------------------------------------------------------------


def short_lived(w: Bench) -> Any:
    """300 processes that live a millisecond or two: all are told by name after they are gone."""
    shutil.copy("/bin/bash", BIN / "brief")
    w.kernel.name_exes("brief")
    w.kernel.apply(w.a, w.rules(w.a, owners={("brief", ANY): 20}, verdicts=A_ASKS))
    w.kernel.apply(w.b, w.rules(w.b, verdicts=B_SERVES))
    one = f"{BIN}/brief -c 'exec 3<>/dev/tcp/{w.b.v4}/80'"
    with w.b.running("server", "serve(80)"):
        loop = f"i=0; while [ $i -lt 300 ]; do {one}; i=$((i+1)); done"
        process = w.a.start("brief", "", argv=["/bin/sh", "-c", loop])
        try:
            process.wait(timeout=90)
        finally:
            process.kill()
            process.wait()
    return sum(flow.exe_id == exe_id("brief") and flow.verdict == "allow" for flow in w.kernel.flows(w.a))


def rewritten(w: Bench) -> Any:
    """A binary that is written over is another, under the same name and inode."""
    usual(w)
    with (BIN / "asker").open("ab") as file:
        file.write(b"\0")
    with w.b.running("server", "serve(80)"):
        return w.a.say("asker", f"say(outcome(tcp, {w.b.v4!r}, 80))")


def hard_link(w: Bench) -> Any:
    """One inode under two paths: the path counts, though all else about the file is the same."""
    os.link(BIN / "other", BIN / "alias")
    w.kernel.name_exes("other", "asker")  # as the agent does when the link changed the file's ctime
    key = w.kernel.keys_of({"alias": BIN / "alias"})["alias"]
    w.kernel.maps["exes"].put(key, struct.pack("<I", exe_id("asker")))
    usual(w)
    with w.b.running("server", "serve(80)"):
        code = f"say(outcome(tcp, {w.b.v4!r}, 80))"
        return [w.a.say(exe, code) for exe in ("alias", "other")]


def replaced(w: Bench) -> Any:
    """Who runs goes on being who was executed, when its file is replaced by a newer one; its children too."""
    usual(w)
    code = f"""
say("ready"); sys.stdin.readline()
child = os.fork()
if not child:
    say(outcome(tcp, {w.b.v4!r}, 80)); os._exit(0)
os.waitpid(child, 0)
"""
    with w.b.running("server", "serve(80)"), w.a.running("asker", "import os\n" + code) as process:
        shutil.copy("/usr/bin/python3", BIN / "newer")
        (BIN / "newer").rename(BIN / "asker")
        assert process.stdin and process.stdout
        process.stdin.write(b"go\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


def script(w: Bench) -> Any:
    """What an interpreter runs has a name of its own; the interpreter, or the name as a mere word, has not."""
    tool = BIN / "tool.py"
    tool.write_text(ENDPOINT.replace("exec(sys.argv[1])", f"say(outcome(tcp, {w.b.v4!r}, 80))"))
    arguments = f"{tool}\0".encode()
    digest = 0xCBF29CE484222325
    for byte in arguments:
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    w.kernel.maps["interpreters"].put(struct.pack("<I", exe_id("other")), struct.pack("<I", 1))
    w.kernel.maps["scripts"].put(struct.pack("<IIQ", exe_id("other"), 1, digest), struct.pack("<I", exe_id("asker")))
    usual(w)
    code = ENDPOINT.replace("exec(sys.argv[1])", f"say(outcome(tcp, {w.b.v4!r}, 80))")
    with w.b.running("server", "serve(80)"):
        return [w.a.say("other", "", argv=[str(BIN / "other"), str(tool)]),
                w.a.say("other", "", argv=[str(BIN / "other"), "-c", code, str(tool)])]


def by_user(w: Bench) -> Any:
    """One executable, two users."""
    w.kernel.apply(w.a, w.rules(w.a, owners={("asker", 20001): 20}, verdicts=A_ASKS))
    w.kernel.apply(w.b, w.rules(w.b, verdicts=B_SERVES))
    with w.b.running("server", "serve(80)"):
        return [w.a.say("asker", f"say(outcome(tcp, {w.b.v4!r}, 80))", uid=uid) for uid in (20001, 20002)]


# --- who listens, who receives ------------------------------------------------------------------


def forked_acceptor(w: Bench) -> Any:
    """A child that accepts is the server that it was forked from."""
    usual(w)
    code = "import os\ns = listen(80)\nif os.fork(): say('ready'); sys.stdin.read(); os._exit(0)\nanswer(s)"
    with w.b.running("server", code):
        return w.a.say("asker", f"say(outcome(tcp, {w.b.v4!r}, 80))")


def activated(w: Bench) -> Any:
    """Somebody else bound the socket, and executed the server with it."""
    usual(w)
    then = ENDPOINT.replace("exec(sys.argv[1])", "s = socket.socket(fileno=3); say('ready'); answer(s)")
    code = f"""import os
s = listen(80); os.dup2(s.fileno(), 3) if s.fileno() != 3 else None; os.set_inheritable(3, True)
os.execv({str(BIN / "server")!r}, ["server", "-I", "-S", "-c", {then!r}])
"""
    with w.b.running("other", code):
        return w.a.say("asker", f"say(outcome(tcp, {w.b.v4!r}, 80))")


def passed_on(w: Bench) -> Any:
    """The server hands what it accepted to a program that the policy does not name: the connection is cut."""
    usual(w)
    then = ENDPOINT.replace("exec(sys.argv[1])", "s = socket.socket(fileno=3); answer(s)")
    code = f"""import os
l = listen(80); say('ready'); s, _ = l.accept(); os.dup2(s.fileno(), 3) if s.fileno() != 3 else None
os.set_inheritable(3, True)
os.execv({str(BIN / "other")!r}, ["other", "-I", "-S", "-c", {then!r}])
"""
    ask = f"s = connected({w.b.v4!r}, 80)\nfirst = outcome(exchange, s)\nsay(outcome(exchange, s))"
    with w.b.running("server", code):
        return w.a.say("asker", ask)


def gave_up_root(w: Bench) -> Any:
    """A UDP server that binds as root and goes on as a user answers all the same."""
    usual(w)
    code = "import os\ns = bound(80)\nos.setresuid(20001, 20001, 20001)\nsay('ready'); answer(s)"
    with w.b.running("server", code):
        return [w.a.say("asker", f"say(outcome(udp, {w.b.v4!r}, 80, bind=('0.0.0.0', 5558)))") for _ in range(2)]


def scm_rights(w: Bench) -> Any:
    """A connection belongs to who made it, whoever holds it later; the record says so."""
    usual(w)
    tell = "s = socket.socket(fileno=3); s.settimeout(1); say(outcome(exchange, s))"
    then = ENDPOINT.replace("exec(sys.argv[1])", tell)
    code = f"""import os
s = connected({w.b.v4!r}, 80); os.dup2(s.fileno(), 3) if s.fileno() != 3 else None; os.set_inheritable(3, True)
os.execv({str(BIN / "other")!r}, ["other", "-I", "-S", "-c", {then!r}])
"""
    with w.b.running("server", "serve(80)"):
        said = w.a.say("asker", code)
    return [said, [flow.exe_id == exe_id("asker") for flow in w.kernel.flows(w.a) if flow.proto == 6]]
