"""Commands that look into a standing lab: shell, exec, probe, explain, capture."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import control, registry
from bench.commands.common import EXIT_DEFECT, EXIT_DONE, EXIT_MACHINE, EXIT_USAGE, epilog, fail, find_scenario
from bench.commands.common import load_scenario as load
from bench.contract import EnforcerError
from bench.control import ControlError
from lab import flow_text, runs
from lab.flow_text import FORM


def lab_ids() -> list[str]:
    """For the shell's completion."""
    return [entry.id for entry in runs.alive() if entry.kind == "standing"]


def hosts_of_labs() -> list[str]:
    """For the shell's completion: hosts of every standing lab."""
    names: list[str] = []
    for entry in runs.alive():
        with contextlib.suppress(OSError, ValueError, KeyError):
            names += json.loads((entry.directory / "lab.json").read_text())["names"]
    return names


app = typer.Typer()
Lab = Annotated[str | None, typer.Option("--lab", help="The id of the lab, if several stand.", autocompletion=lab_ids)]
Host = Annotated[str, typer.Argument(help="A host of the lab, or its router.", autocompletion=hosts_of_labs)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
_FORM = FORM.replace("[", "\\[")  # help is rich markup
FlowWords = Annotated[list[str], typer.Argument(help=f"The flow: {_FORM}; or as labctl prints it, in quotes.")]


def _status(lab: str | None) -> tuple[runs.Entry, dict[str, Any]]:
    try:
        entry = control.standing(lab)
        return entry, control.ask(entry, "status")
    except ControlError as err:
        raise fail(str(err), EXIT_USAGE) from None


@app.command(epilog=epilog("labctl shell", "echo 'web-1 ip addr' | labctl shell",
                           codes=(EXIT_DONE, EXIT_USAGE, EXIT_MACHINE)))
def shell(lab: Lab = None) -> None:
    """Mininet's own prompt inside a standing lab: 'web-1 ip addr', 'pingall', 'net', 'help'; leave with 'exit'."""
    from lab.enter import in_run

    entry, about = _status(lab)
    if about["backend"] != "mininet":
        raise fail(f"labctl: {entry.id} stands on {about['backend']}, and the prompt is Mininet's; a shell on a host: "
                   "labctl exec HOST -- sh", EXIT_USAGE)
    scenario = load(about["path"])

    def inside() -> int:
        from lab.backends.attached import prompt

        return prompt(scenario.topology, about["pids"])

    raise typer.Exit(in_run(entry, inside))


@app.command("exec", epilog=epilog("labctl exec web-1 -- ss -tlnp", "labctl exec web-1 --user shop -- bash",
                                   codes=(EXIT_DONE, EXIT_USAGE, EXIT_MACHINE)) + " Else those of the command.",
             context_settings={"ignore_unknown_options": True})
def execute(
    host: Host,
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")],
    user: Annotated[str | None, typer.Option(help="As this user of the scenario, instead of root.")] = None,
    lab: Lab = None,
) -> None:
    """Run a command on a host of a standing lab, in this terminal."""
    entry, about = _status(lab)
    users = {"root": 0, **about["users"]}
    if user is not None and user not in users:
        raise fail(f"labctl: there is no user '{user}'; there are: {', '.join(users)}", EXIT_USAGE)
    raise typer.Exit(_execute(entry, about, host, command, uid=users[user] if user else None, accounted=True))


def _execute(entry: runs.Entry, about: dict[str, Any], host: str, argv: list[str], *, uid: int | None = None,
             stdout: int | None = None, accounted: bool = False) -> int:
    """The status of a command on a host of either backend; `accounted`: its CPU counts as the host's."""
    from lab.enter import by_first_process, on_host

    pid = _pid(about, host)
    if about["backend"] == "mininet":
        return on_host(entry, pid, argv, cgroup=_cgroup(about, host) if accounted else None, uid=uid, stdout=stdout)
    inside = Path(about["inside_cgroup"], host) if about["inside_cgroup"] and accounted else None
    return by_first_process(entry.directory / "hosts" / host / "init.sock", argv, cgroup=inside, uid=uid, stdout=stdout)


@app.command(epilog=epilog("labctl capture db -o db.pcap", "labctl capture db -o - -- port 6379 | wireshark -k -i -",
                           codes=(EXIT_DONE, EXIT_USAGE, EXIT_MACHINE)))
def capture(
    host: Host,
    expression: Annotated[list[str] | None, typer.Argument(help="What to capture, in tcpdump's words.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The pcap file; '-' is standard output.")] = "",
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many packets.")] = None,
    seconds: Annotated[int | None, typer.Option(min=1, help="Stop after so many seconds.")] = None,
    lab: Lab = None,
) -> None:
    """Write what every interface of a host sees, loopback too, to a pcap file, until Ctrl-C or the limit."""
    from lab.isolation import tool_env

    if shutil.which("tcpdump", path=tool_env()["PATH"]) is None:
        raise fail("labctl: tcpdump is not installed; apt-get install -y tcpdump", EXIT_MACHINE)
    entry, about = _status(lab)
    _pid(about, host)
    file = output or f"{host}.pcap"
    try:
        target = 1 if file == "-" else os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as err:
        raise fail(f"{file}: {err.strerror}", EXIT_USAGE) from None
    if file == "-" and sys.stdout.isatty():
        raise fail("labctl: a capture is not for a terminal; redirect it, or name a file with -o", EXIT_USAGE)
    argv = capturing(entry.init, expression or [], count)
    argv = ["timeout", "--signal=INT", "--preserve-status", str(seconds), *argv] if seconds else argv
    status = _execute(entry, about, host, argv, stdout=target)
    if status not in (0, 130):
        raise typer.Exit(EXIT_USAGE if status == 1 else EXIT_MACHINE)
    if file != "-":
        print(f"wrote {file}: {Path(file).stat().st_size} bytes", file=sys.stderr)


def capturing(init: int, expression: list[str], count: int | None) -> list[str]:
    """The command that captures in the run whose first process is `init`: tcpdump, or sniff.py where that cannot."""
    from lab.hosts import sniff
    from lab.isolation import tool_env

    if Path(f"/proc/{init}/setgroups").read_text().strip() != "deny":
        return ["tcpdump", "-i", "any", "-U", "-n", "-w", "-", "-Z", "root", *(["-c", str(count)] if count else []),
                *expression]
    compiled = ""
    if expression:
        done = subprocess.run(["tcpdump", "-y", "EN10MB", "-ddd", *expression], capture_output=True, text=True,
                              env=tool_env(), check=False)
        if done.returncode:
            raise fail(f"labctl: {(done.stderr.strip().splitlines() or ['tcpdump cannot read the expression'])[-1]}",
                       EXIT_USAGE)
        compiled = done.stdout
    return ["/usr/bin/python3", "-I", "-S", "-c", Path(str(sniff.__file__)).read_text(), compiled, str(count or 0)]


@app.command(epilog=epilog("labctl probe web-1/frontend api-1 8080/tcp", "labctl probe user-1 db icmp v6 --expect deny",
                           codes=(EXIT_DONE, EXIT_DEFECT, EXIT_USAGE)))
def probe(
    flow: FlowWords,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Try it so many times.")] = 1,
    expect: Annotated[str, typer.Option(help="'allow' or 'deny': exit 1 if any attempt says otherwise.")] = "",
    lab: Lab = None,
    as_json: Json = False,
) -> None:
    """Try one flow with real packets, as its process and user, and say what happened."""
    from bench.report.explained import probed

    if expect not in ("", "allow", "deny"):
        raise fail(f"--expect: '{expect}' is neither 'allow' nor 'deny'", EXIT_USAGE)
    found = _ask(lab, "probe", flow=" ".join(flow), count=count)
    print(json.dumps(found) if as_json else probed(found))
    through = [one["outcome"] == "OPEN" or (expect == "deny" and one["arrived"]) for one in found["observations"]]
    if expect and any(opened is not (expect == "allow") for opened in through):
        raise typer.Exit(EXIT_DEFECT)


@app.command(epilog=epilog("labctl explain web-1/frontend db 6379/tcp", "labctl explain cam db 554/tcp --every",
                           "labctl explain user-1 db icmp --scenario three-tier", codes=(EXIT_DONE, EXIT_USAGE)))
def explain(
    flow: FlowWords,
    every: Annotated[bool, typer.Option("--every", help="Try it under every arm, each put in place in turn.")] = False,
    scenario: Annotated[str, typer.Option(help="Without a lab: what this scenario's arms would do.")] = "",
    lab: Lab = None,
    as_json: Json = False,
) -> None:
    """What the policy means for a flow, what each arm will do, what was observed, and the rule behind each."""
    from bench.report.explained import show

    text = " ".join(flow)
    found = _planned(text, scenario) if scenario else _ask(lab, "explain", flow=text, every=every)
    if as_json:
        print(json.dumps(found))
    else:
        show(found)


def _planned(text: str, name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from bench.explain import explain as explained

    scenario = load(str(find_scenario(name)))
    try:
        flow = flow_text.parse(text, scenario.topology)
    except flow_text.FlowTextError as err:
        raise fail(str(err), EXIT_USAGE) from None
    try:
        enforcers = {arm: registry.load(arm) for arm in dict.fromkeys(("none", *scenario.arms))}
        natives = {arm: one.compile(scenario.policy, scenario.topology) for arm, one in enforcers.items()}
        found = explained(flow, scenario, enforcers, natives, {})
    except (LookupError, EnforcerError) as err:
        raise fail(f"labctl: {err}", EXIT_USAGE) from None
    return {**asdict(found), "flow": str(flow), "standing": None}


def _ask(lab: str | None, verb: str, **request: Any) -> dict[str, Any]:
    from bench.commands.standing import progress

    try:
        with progress() as say:
            return control.ask(control.standing(lab), verb, say, **request)
    except ControlError as err:
        raise fail(str(err), EXIT_USAGE) from None


def _pid(about: dict[str, Any], host: str) -> int:
    pids: dict[str, int] = about["pids"]
    if host not in pids:
        shown = ", ".join(list(pids)[:12]) + (", …" if len(pids) > 12 else "")
        raise fail(f"labctl: there is no host '{host}'; there are: {shown}", EXIT_USAGE)
    return pids[host]


def _cgroup(about: dict[str, Any], host: str) -> Path | None:
    return Path(about["cgroup"]) / host if about["cgroup"] else None
