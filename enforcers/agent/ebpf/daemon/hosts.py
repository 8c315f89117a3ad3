"""The hosts that this agent serves: their policies, their executables, their telemetry."""

from __future__ import annotations

import os
import time
from itertools import chain

from . import scripts, selective, telemetry
from .executables import Executables, number_of, open_on, processes, running
from .host import Host, by_names, by_process, noted, path_of, placed, wanted
from .kernel import MODES, Kernel, Tables, new_epoch
from .lean import loads, suppress
from .place import AgentError, Place, remove, write
from .spool import Spool
from .telemetry import EXEC, FIRST_SEEN, HANDED_ON, PROVISIONAL, Exec, Teller
from .watches import Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_VERSION = 1
_LOOK_AGAIN_S = 1.0
_LEFT_ALONE_S = 1.0  # no program looks things up for that long: what it read of tables left behind has been used


class Hosts:
    """Every host by name. What a dead agent served is taken over from what it wrote down."""

    def __init__(self, place: Place, kernel: Kernel) -> None:
        self._place, self._kernel = place, kernel
        self.executables = Executables()
        self._hosts: dict[str, Host] = {}
        self._by_cookie: dict[int, Host] = {}
        self._met: dict[str, tuple[str, int, tuple[int, ...]]] = {}
        self.watches = Watches()
        self._spool = Spool(f"{place.shared}/spool")
        self._names = place.names
        self._know_names()
        for name in sorted(os.listdir(place.members)):
            if not name.endswith((".new", ".next")):
                self._take_over(place.member(name))

    def any(self) -> bool:
        return bool(self._hosts)

    def names(self) -> list[str]:
        return sorted(self._hosts)

    def number_of(self, path: str) -> int:
        """The number of an executable that was looked at, by its path; 0 where none was."""
        return next((number for number, known in self.executables.paths.items() if known == path), 0)

    def get(self, name: str) -> Host:
        if name not in self._hosts:
            raise AgentError(f"{name}: has no policy in force here; start it first")
        return self._hosts[name]

    def met(self, name: str, directory: str, cookie: int, *handles: int) -> None:
        """A host speaks: where its files, processes and network are."""
        if name in self._hosts and self._hosts[name].cookie == cookie:
            self._hosts[name].meet(handles)
            return
        for handle in self._met.pop(name, ("", 0, ()))[2]:
            os.close(handle)
        self._met[name] = (directory, cookie, handles)

    # --- policies ---

    def prepare(self, name: str) -> list[bytes]:
        """First half of joining: a host's executables have names, so that its tasks and sockets can be tagged.

        Returns the tags of threads that run scripts, for whoever is among the host's processes to set.
        """
        known = self._hosts.get(name)
        if known is not None and name not in self._met:
            known.policy = self._read(known)[0]
            self._name_all(known)
            return self._know_scripts(known)
        if known is not None:  # the same name, but another network: that host is gone
            self.leave(name)
        directory, cookie, handles = self._met.pop(name)
        used = {host.index for host in self._hosts.values()}
        host = Host(name, directory, cookie, next(index for index in range(len(used) + 1) if index not in used))
        host.meet(handles)
        self._hosts[name] = self._by_cookie[cookie] = host
        host.policy = self._read(host)[0]
        host.teller = self._teller(host.policy)
        self._name_all(host)
        return self._know_scripts(host)

    def join(self, name: str, interfaces: list[str]) -> None:
        """Put a host's policy in force; what is established and forbidden is cut."""
        host = self.get(name)
        host.interfaces = interfaces
        self._apply(host)

    def update(self, name: str) -> None:
        """Change over to newly placed tables: one write, then what they forbid is cut."""
        host = self.get(name)
        self._apply(host)

    def mode(self, name: str, words: list[str]) -> None:
        """Another mode, and the services that are enforced whatever it is, in one write; the policy stays."""
        host = self.get(name)
        if not words or words[0] not in MODES:
            raise AgentError(f"mode: say one of {', '.join(MODES)}")
        assert host.policy is not None
        mode, services = words[0], words[1:]
        policy = {**host.policy, "mode": mode, "enforced": services}
        text, begun = noted(self._place.member(name), self._kernel.config)[1], time.monotonic()
        if services == host.policy.get("enforced", []):
            self._switch(host, policy, text, host.slot, begun)
            return
        try:
            rows = selective.rows(self._kernel.tables(host.slot), policy["tables"], services)
        except ValueError as err:
            raise AgentError(f"mode: {err}") from err
        self._kernel.fill(host.slot ^ 1, Tables.of(rows))
        self._switch(host, policy, text, host.slot ^ 1, begun)

    def leave(self, name: str) -> None:
        host = self._hosts.pop(name, None)
        if host is None:
            self._forget_notes(name)
            return
        self._by_cookie.pop(host.cookie, None)
        self._kernel.forget(host.cookie, host.index)
        self.watches.forget(name)
        host.meet(())
        self._forget_notes(name)
        self._spool.drop(name)

    def _forget_notes(self, name: str) -> None:
        for suffix in ("", ".next"):
            remove(self._place.member(name) + suffix)

    def check(self, name: str) -> None:
        """Raises AgentError where a host's policy is not what the kernel has in force."""
        host = self.get(name)
        config = self._kernel.config(host.cookie)
        if host.policy is None or config is None:
            raise AgentError(f"{name}: not in force: the kernel holds nothing for it")
        if (config["epoch"], config["slot"]) != (host.epoch, host.slot):
            raise AgentError(f"{name}: not in force: the kernel holds another policy for it")

    def _apply(self, host: Host) -> None:
        policy, text = self._read(host)
        tables = Tables(policy["tables"], self._placed(host, "tables.bin"))
        begun = time.monotonic()
        slot = host.slot ^ 1 if host.epoch else host.slot
        self._kernel.fill(slot, tables)
        self._switch(host, policy, text, slot, begun)

    def _switch(self, host: Host, policy: dict[str, Any], text: bytes, slot: int, begun: float) -> None:
        """In force from here on for whatever is new; then, and told apart, the end of what it forbids.

        Noted before it is done: whoever is killed in between leaves two notes, of which the kernel says which holds.
        """
        epoch, note = new_epoch(host.index), self._place.member(host.name)
        write(f"{note}.next", host.note(slot, epoch, policy, text))
        self._kernel.switch(host.cookie, host.index, slot, policy, epoch)
        os.rename(f"{note}.next", note)
        host.update_ms = round((time.monotonic() - begun) * 1000, 3)
        host.left = time.monotonic() if slot != host.slot else host.left
        host.epoch, host.slot, host.policy, host.teller = epoch, slot, policy, self._teller(policy)
        begun = time.monotonic()
        self._keep(telemetry.split(self._kernel.walk("tcp_revoke", host.net)))
        host.revoke_ms = round((time.monotonic() - begun) * 1000, 3)

    def _take_over(self, path: str) -> None:
        kept, text = noted(path, self._kernel.config)
        host = Host(kept["name"], kept["directory"], kept["cookie"], kept["index"])
        host.slot, host.epoch, host.policy = kept["slot"], kept["epoch"], {
            **loads(text), "mode": kept["mode"], "enforced": kept["enforced"]}
        host.left = time.monotonic()
        host.teller = self._teller(host.policy) if host.policy else None
        host.counters = self._spool.remembered(host.name)
        if host.policy:
            self.executables.expect((path, sha256) for _, path, sha256 in host.policy["executables"])
        self._hosts[host.name] = self._by_cookie[host.cookie] = host

    def _placed(self, host: Host, name: str) -> bytes:
        return placed(host, name, here=bool(self._place.container))

    def _read(self, host: Host) -> tuple[dict[str, Any], bytes]:
        """The policy that was placed on a host, and its text."""
        text = self._placed(host, "policy.json")
        try:
            policy: dict[str, Any] = loads(text)
        except ValueError as err:
            raise AgentError(f"{host.directory}/policy.json: {err}; deploy it again") from err
        if policy.get("version") != _VERSION:
            raise AgentError(f"{host.directory}/policy.json: version {policy.get('version')!r}; "
                             f"this agent reads version {_VERSION}")
        return policy, text

    def _teller(self, policy: dict[str, Any]) -> Teller:
        users = {int(uid): user for uid, user in policy["users"].items()}
        return Teller(self.executables.paths.get, users, policy["rules"], policy["addresses"])

    # --- executables ---

    def _name_all(self, host: Host) -> None:
        """Name what rules ask for and what runs, before anything of it connects."""
        assert host.policy is not None
        self.executables.expect((path, sha256) for _, path, sha256 in host.policy["executables"])
        found: dict[int, str] = {}
        self._watch(host, {os.path.dirname(path) for path in wanted(host)})
        for path in sorted(wanted(host)):
            with suppress(OSError):  # not installed on this host
                found[open_on(host.root, path)] = path
        for pid in processes(host.proc):
            with suppress(OSError):  # gone meanwhile, or of the kernel
                handle, path = running(host.proc, pid)
                found[handle] = path
        try:
            self._name(found)
        finally:
            for handle in found:
                os.close(handle)

    def _know_scripts(self, host: Host) -> list[bytes]:
        """Tell the kernel which arguments of which interpreters are scripts; the tags of threads that run one now."""
        assert host.policy is not None
        by_words = scripts.known(host.root, host.policy["scripts"])
        for interpreter in sorted({interpreter for interpreter, _ in by_words}):
            with suppress(OSError):
                handle = open_on(host.root, interpreter)
                try:
                    self._name({handle: interpreter})
                finally:
                    os.close(handle)
        for script in by_words.values():
            self._kernel.know_script(number_of(script.interpreter), script.id, script.path)
            self._call(script.id, script.path)
        return [scripts.tag(thread, script.id, number_of(script.interpreter), key)
                for thread, handle, script in scripts.running_scripts(host.proc, by_words)
                if (key := self._kernel.keys_of([handle]).get(handle))]

    def _watch(self, host: Host, directories: set[str]) -> None:
        self.watches.forget(host.name)
        for directory in sorted(directories):
            with suppress(OSError):  # not there on this host
                handle = open_on(host.root, directory)
                self.watches.watch(host.name, directory, handle)
                os.close(handle)

    def look_again(self) -> None:
        """Name what was written or moved to where rules look."""
        for name, path in self.watches.due():
            host = self._hosts.get(name)
            if host is not None and host.handles and path in wanted(host):
                with suppress(OSError):  # gone again
                    handle = open_on(host.root, path)
                    try:
                        self._name({handle: path})
                    finally:
                        os.close(handle)

    def _name(self, found: dict[int, str], provisional: int = 0) -> None:
        keys = self._kernel.keys_of(list(found))
        for handle, path in found.items():
            if handle in keys:
                named = self.executables.look(handle, path)[1]
                self._kernel.name(keys[handle], named.id, provisional)
                self._call(named.id, path)
                if provisional:
                    self._call(provisional, path)

    def _call(self, number: int, path: str) -> None:
        """Tell this number by this path from now on, also the next agent."""
        if number not in self._written:
            self._written.add(number)
            self.executables.paths[number] = path
            with open(self._names, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{number} {path}\n")

    def _know_names(self) -> None:
        self._written: set[int] = set()
        with suppress(FileNotFoundError), open(self._names, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                number, _, path = line.rstrip("\n").partition(" ")
                if path:
                    self.executables.paths[int(number)] = path
                    self._written.add(int(number))

    def _executed(self, event: Exec) -> None:
        """Somebody executes what nobody has looked at: name it, by its process while that lives, else by its path."""
        host = self._by_cookie.get(event.netns)
        if host is None or not host.handles or not event.id & PROVISIONAL:  # an interpreter by its own name needs none
            return
        for find in (by_process, by_names):
            with suppress(OSError):
                handle, path = find(host, event)
                try:
                    if self._kernel.keys_of([handle]).get(handle) != event.exe:
                        continue  # another one by now: the process went on, or the file was replaced
                    self._name({handle: path}, event.id)
                    self._kernel.touch(host.index)
                    return
                finally:
                    os.close(handle)
        host.seen["executables gone"] += 1
        known = path_of(host, event)
        if known:
            self._call(event.id, known)

    # --- telemetry ---

    def pump(self) -> None:
        """Take in what the kernel has to say."""
        self._kernel.drain("events", self._hear)
        self._kernel.drain("records", self._keep)

    def _hear(self, events: list[bytes]) -> None:
        for event in events:
            kind = telemetry.kind_of(event)
            if kind == EXEC:
                self._executed(Exec(event))
            elif kind == FIRST_SEEN:
                self._count(telemetry.netns_of(event), "first seen")
            elif kind == HANDED_ON:
                cookie = telemetry.netns_of_handed_on(event)
                self._count(cookie, "handed on")
                self._look_at_listeners(self._by_cookie.get(cookie))

    def _look_at_listeners(self, host: Host | None) -> None:
        """Somebody else than who bound a listener accepts, or may be about to: have the kernel see who holds it."""
        if host is not None and host.handles and time.monotonic() - host.looked > _LOOK_AGAIN_S:
            host.looked = time.monotonic()
            with suppress(OSError):  # the host is ending
                self._kernel.adopt_listeners(host.proc)

    def tick(self) -> None:
        """Say for every host that its agent lives, and make ready for its next policy."""
        for host in self._hosts.values():
            self._kernel.expect(host.index)
            if host.left is not None and time.monotonic() - host.left > _LEFT_ALONE_S:
                host.left = None
                self._kernel.clear(host.slot ^ 1)

    def _count(self, cookie: int, what: str) -> None:
        host = self._by_cookie.get(cookie)
        if host is not None:
            host.seen[what] += 1

    def _keep(self, records: Iterable[bytes]) -> None:
        """Write them down, by host."""
        found: dict[str, list[bytes]] = {}
        for record in records:
            host = self._by_cookie.get(telemetry.netns_of(record))
            if host is not None:
                found.setdefault(host.name, []).append(record)
                if telemetry.is_denied(record):
                    host.recent.append(record)
                    if telemetry.came_in(record):
                        self._look_at_listeners(host)
        for name, some in found.items():
            self._hosts[name].lost["records"] += self._spool.append(name, some)

    def collect(self, name: str) -> Iterator[bytes]:
        """What happened on a host since the last call, and every flow that is open now with its counters so far."""
        host = self.get(name)
        self.pump()
        done = list(telemetry.split(self._spool.take(name)))
        live = self.live(host)
        assert host.teller is not None
        teller, header = host.teller, self._header(host, done, live)
        return telemetry.lines(chain([header], (teller.flow(record) for record in chain(done, live))))

    def delivered(self, name: str) -> None:
        """What `collect` gave has arrived."""
        host = self.get(name)
        self._spool.delivered(name)
        self._spool.remember(name, host.counters)

    def live(self, host: Host) -> list[bytes]:
        """Every flow of a host that is open now."""
        tcp = list(telemetry.split(self._kernel.walk("tcp_flows", host.net)))
        datagrams = [record for record in telemetry.split(self._kernel.datagrams())
                     if telemetry.netns_of(record) == host.cookie]
        return tcp + datagrams

    def _header(self, host: Host, done: list[bytes], live: list[bytes]) -> dict[str, Any]:
        since, host.since = host.since, time.monotonic()
        counters = self._kernel.counters(host.index)
        new = {name: value - host.counters.get(name, 0) for name, value in counters.items()}
        host.counters = counters
        lost = {"records": host.lost["records"] + new["records_lost"], "events": new["events_lost"],
                "memory": new["out_of_memory"]}
        header = {
            "t": "header", "version": 1, "mode": host.policy["mode"] if host.policy else None,
            "since": round(since, 6), "until": round(host.since, 6), "closed": len(done), "open": len(live),
            "lost": {what: count for what, count in lost.items() if count > 0},
            "seen": dict(host.seen), "counters": new,
            "cpu_s": round(time.process_time(), 4), "hosts": len(self._hosts),
            "update_ms": host.update_ms, "revoke_ms": host.revoke_ms,
        }
        host.lost.clear()
        host.seen.clear()
        return header
