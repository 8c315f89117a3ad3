"""The reference manuals in docs/, made of the commands and of the schema themselves; `make docs` writes them.

    python -m bench.commands.reference          writes docs/cli.md, docs/scenario.md and docs/scenario.schema.json
    python -m bench.commands.reference cli.md   prints one of them
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from bench.commands.common import CODES
from lab.schema_json import fields, schema_text

DOCS = Path(__file__).resolve().parents[2] / "docs"
MADE = "<!-- Made by `make docs`; what is changed here by hand is lost. -->"
SCENARIO_INTRO = """\
# Scenario files

A scenario is one YAML file, version 1. `labctl new NAME` writes one to start from, `labctl validate FILE` shows every
mistake at once, `labctl show FILE` says what it means. `docs/scenario.schema.json` is its JSON Schema: with
`# yaml-language-server: $schema=…/scenario.schema.json` as the first line an editor completes and checks;
`labctl schema scenario` prints it with the names of the arms installed. A schema knows the shape alone: what refers to
what, only `validate` sees.

`*` has to be there; `<name>` stands for a name you choose, `[]` for each of a list. `deny` is written as `allow` is.
"""


def commands(app: typer.Typer) -> Iterator[tuple[str, Any]]:
    """Every command and group of the tree as (words, command), the whole first, in the order of the help."""
    yield from _below("labctl", typer.main.get_command(app))


def _below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield words, command
    for name, one in getattr(command, "commands", {}).items():
        yield from _below(f"{words} {name}", one)


def cli_markdown(app: typer.Typer) -> str:
    """docs/cli.md: like a manual page, a section a command."""
    parts = [MADE, "# labctl", "", "Every command says the same with `--help`. `NO_COLOR=1` turns colour off; what is "
             "not a terminal gets none. `labctl --install-completion` sets completion up for bash, zsh or fish.", ""]
    for words, command in commands(app):
        parts += [f"## {words}", "", _text(command.help), "", "```text", _usage(words, command), "```", ""]
        parts += _options(command) + _group(words, command) + _end(str(command.epilog or ""))
    codes = [f"| {code} | {meaning} |" for code, meaning in CODES.items()]
    return "\n".join([*parts, "## Exit codes", "", "| code | meaning |", "|---|---|", *codes]) + "\n"


def _usage(words: str, command: Any) -> str:
    context = command.make_context(words, [], resilient_parsing=True)
    return " ".join([words, *command.collect_usage_pieces(context)])


def _options(command: Any) -> list[str]:
    context = command.make_context("labctl", [], resilient_parsing=True)
    rows = []
    for one in command.params:
        if getattr(one, "hidden", False) or one.name in ("help", "install_completion", "show_completion"):
            continue
        default = "" if one.default in (None, "", (), False) else f" Default: `{one.default}`."
        rows.append(f"| `{_shown(one, context)}` | {_text(one.help)}{default} |")
    return ["| argument or option | meaning |", "|---|---|", *rows, ""] if rows else []


def _shown(one: Any, context: Any) -> str:
    """A parameter as the usage line has it; an option with what it takes."""
    if one.param_type_name == "argument":
        return " ".join(one.get_usage_pieces(context)).strip("[]")
    return " ".join(str(one.get_help_record(context)[0]).split())


def _group(words: str, command: Any) -> list[str]:
    below = getattr(command, "commands", {})
    rows = [f"- [{words} {name}](#{words.replace(' ', '-')}-{name}): {_text(one.help).partition('. ')[0].rstrip('.')}"
            for name, one in below.items()]
    return [*rows, ""] if rows else []


def _end(epilog: str) -> list[str]:
    """The examples and the exit codes of an epilog as Markdown."""
    examples = re.findall(r"\[bold\](.*?)\[/\]", epilog)
    codes = epilog.partition("Exit codes: ")[2]
    found = ["Examples:", "", "```sh", *examples, "```", ""] if examples else []
    return found + ([f"Exit codes: {codes}", ""] if codes else [])


def _text(text: str | None) -> str:
    """A help text in one line that Markdown takes as it is meant."""
    plain = re.sub(r"\[/?(bold|dim|italic)?\]", "", text or "")
    return " ".join(plain.split()).replace("|", "\\|").replace("<", "&lt;")


def scenario_markdown() -> str:
    """docs/scenario.md: every field of a scenario file."""
    rows = [f"| `{f.place}`{' *' if f.required else ''} | {_cell(f.means)} | {_cell(f.write)} | "
            f"{f'`{f.default}`' if f.default else ''} |" for f in fields()]
    head = "| field | means | write | if left out |\n|---|---|---|---|"
    return "\n".join([MADE, SCENARIO_INTRO, head, *rows]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def made(app: typer.Typer) -> dict[str, str]:
    """Every file of docs/ that is made, by its name."""
    return {"cli.md": cli_markdown(app), "scenario.md": scenario_markdown(), "scenario.schema.json": schema_text()}


def main(argv: list[str]) -> int:
    """Write them all, or print the one that is named."""
    from bench.cli import app

    files = made(app)
    if argv:
        print(files[argv[0]], end="")
        return 0
    DOCS.mkdir(exist_ok=True)
    for name, text in files.items():
        (DOCS / name).write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
