"""Commands about saved results: results, compare."""

from __future__ import annotations

import typer

app = typer.Typer()
