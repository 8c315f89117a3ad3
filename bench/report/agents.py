"""`labctl agent` on a terminal: from what the agents answered to text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Found = Mapping[str, Any]


def show_status(found: Found) -> None:
    """A row a host; then, once for each agent, whom it serves and what it has attached."""
    rows = []
    for name, one in found["hosts"].items():
        counted = one["counters"]
        lost = counted["records_lost"] + counted["events_lost"]
        mode = " + ".join((one["mode"], *one["enforced"]))
        rows.append((name, mode, one["default"], one["rules"], one["entries"], counted["denied"],
                     counted["would_denied"], lost, f"{one['update_ms']:.1f} ms"))
    _table(("host", "mode", "default", "rules", "entries", "denied", "would deny", "lost", "last update"), rows)
    told = set()
    for one in found["hosts"].values():
        agent = one["agent"]
        served = tuple(agent["hosts"])
        if served not in told:
            told.add(served)
            print(f"\none agent for {len(served)} host{'s' * (len(served) > 1)}: up {agent['up_s']:.0f} s, "
                  f"{agent['cpu_s']:.2f} s of CPU, {agent['executables']} executables named"
                  f"{', taken over from one that died' if agent['took_over'] else ''}\n"
                  f"attached: {' '.join(agent['programs'])}; on interfaces, at {one['host']}: "
                  f"{', '.join(one['interfaces']) or 'not known'}")


def show_policy(found: Found) -> None:
    """A host's classes, then its verdicts, in the words of the policy."""
    for name, one in found["hosts"].items():
        print(f"{name}: {one['mode']}, default {one['default']}")
        owners = {0: "anyone", 1: "the kernel"} | {
            row["class"]: f"{row['process'] or 'any'}{' as ' + row['user'] if row['user'] else ''}"
            for row in one["owners"]}
        peers: dict[int, list[str]] = {}
        for row in one["peers"]:
            peers.setdefault(row["class"], []).append(row["address"] + (" (own)" if row["own"] else ""))
        services: dict[int, list[str]] = {}
        for row in one["services"]:
            services.setdefault(row["class"], []).append(f"{row['port']}/{row['proto']}")
        _table(("", "owner", "peer", "its owner", "service", "verdict", "rule"), (
            (row["direction"], owners.get(row["owner"], "others"), _few(peers.get(row["peer"], ["others"])),
             owners.get(row["peer_owner"], "others"), _few(services.get(row["service"], ["others"])), row["verdict"],
             row["rule"]) for row in one["verdicts"]))
        print()


def show_flows(found: Found) -> None:
    """Open flows, then denied ones, a row each."""
    rows = [(name, kind, flow["process"] or "?", flow["user"] or "?", f"{flow['source']}:{flow['sport']}",
             f"{flow['target']}:{flow['dport']}/{flow['proto']}", flow["verdict"] or "not judged", flow["rule"],
             f"{flow['bytes']:,}")
            for name, one in found["hosts"].items() for kind in ("open", "denied") for flow in one[kind]]
    _table(("host", "", "process", "user", "from", "to", "verdict", "rule", "bytes"), rows)


def show_explained(found: Found) -> None:
    """The verdict, and what each end decides."""
    enforced = "" if found["enforced"] else ", but only recorded: not in mode enforce"
    print(f"{found['flow']}: {found['verdict']}, by {_rule(found['because'])}{enforced}")
    for end in found["ends"]:
        way = "sending" if end["direction"] == "out" else "receiving"
        print(f"  {end['host']} ({way}, {end['mode']}): {end['verdict']}, by {_rule(end['rule'])}; owner class "
              f"{end['owner']}, peer {end['peer']} with owner class {end['peer_owner']}, service {end['service']}")
        for flow in end["denied"]:
            print(f"    at {flow['time']:.3f} s: {flow['verdict']}: {flow['process'] or '?'} ({flow['user'] or '?'}) "
                  f"{flow['source']} > {flow['target']}:{flow['dport']}, by {_rule(flow['rule'])}")


def _rule(name: str) -> str:
    return "the default" if name == "default" else f"rule '{name}'"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160).print(table)
