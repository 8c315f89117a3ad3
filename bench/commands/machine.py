"""Commands about this machine and what is installed: doctor, arms."""

from __future__ import annotations

import typer

app = typer.Typer()
