"""Commands about standing labs: up, ls, down, clean, shell, exec, probe, explain, capture."""

from __future__ import annotations

import typer

app = typer.Typer()
