"""labctl agent: what the agents of a standing lab have loaded, in which mode, what they decided and why."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bench import control
from bench.commands.common import EXIT_DONE, EXIT_USAGE, epilog, fail
from bench.commands.inside import FlowWords, Json, Lab, hosts_of_labs
from bench.control import ControlError

app = typer.Typer(no_args_is_help=True, epilog=epilog("labctl agent status", codes=(EXIT_DONE, EXIT_USAGE)),
                  help="Ask the agents of a standing lab: labctl up SCENARIO --arm agent-ebpf.")
At = Annotated[str | None, typer.Option("--host", help="This host's agent alone.", autocompletion=hosts_of_labs)]
_CODES = (EXIT_DONE, EXIT_USAGE)


@app.command(epilog=epilog("labctl agent status", "labctl agent status --host db --json", codes=_CODES))
def status(host: At = None, lab: Lab = None, as_json: Json = False) -> None:
    """What is loaded and in which mode: a line a host, then the agent that serves them."""
    from bench.report.agents import show_status

    found = _ask(lab, what="status", host=host)
    _print(found, as_json, show_status)


@app.command(epilog=epilog("labctl agent policy --host db", codes=_CODES))
def policy(host: At = None, lab: Lab = None, as_json: Json = False) -> None:
    """The policy in force, read back from the kernel: owners, peers and services by class, then each verdict."""
    from bench.report.agents import show_policy

    _print(_ask(lab, what="policy", host=host), as_json, show_policy)


@app.command(epilog=epilog("labctl agent flows --host web-1", codes=_CODES))
def flows(host: At = None, lab: Lab = None, as_json: Json = False) -> None:
    """The flows that are open now, and those that were denied last: who, whom, by which rule."""
    from bench.report.agents import show_flows

    _print(_ask(lab, what="flows", host=host), as_json, show_flows)


@app.command(epilog=epilog("labctl agent explain web-1/frontend api-1 8080/tcp", codes=_CODES))
def explain(flow: FlowWords, host: At = None, lab: Lab = None, as_json: Json = False) -> None:
    """What the agents at both ends decide about a flow, and why, by the tables in force. Nothing is sent."""
    from bench.report.agents import show_explained

    _print(_ask(lab, what="explain", host=host, flow=" ".join(flow)), as_json, show_explained)


@app.command(epilog=epilog("labctl agent mode monitor", "labctl agent mode monitor 6379/tcp --host db", codes=_CODES))
def mode(
    to: Annotated[str, typer.Argument(metavar="MODE", help="off, monitor or enforce.",
                                      autocompletion=lambda: ["off", "monitor", "enforce"])],
    services: Annotated[list[str] | None, typer.Argument(help="Enforced in any mode, such as 6379/tcp.")] = None,
    host: At = None, lab: Lab = None, as_json: Json = False,
) -> None:
    """Put the agents in another mode, one write a host; monitor records what it would deny, and lets it pass.

    What `labctl explain` expects stays what the arm promises, so a lab in another mode will show differences.
    """
    from bench.report.agents import show_status

    _print(_ask(lab, what="mode", host=host, words=[to, *(services or ())]), as_json, show_status)


def _ask(lab: str | None, **request: Any) -> dict[str, Any]:
    from bench.commands.standing import progress

    try:
        with progress() as say:
            return control.ask(control.standing(lab), "agent", say, **request)
    except ControlError as err:
        raise fail(str(err), EXIT_USAGE) from None


def _print(found: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        print(json.dumps(found))
    else:
        show(found)
