"""``transllm status``: how far a run has come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from transllm.cli.console import count, duration, listing, out, run_folder

_STYLES = {"done": "green", "unfinished": "yellow", "stale": "magenta", "waiting": "dim"}


def status(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Show the state, time and tokens of each stage of a run."""
    run_folder(folder)
    from transllm.pipeline import status as stages_of

    table = listing("Stage", "State", "Time", "Tokens", "Note", title=str(folder), numbers=("Time", "Tokens"))
    stages = stages_of(folder)
    for stage in stages:
        table.add_row(stage.name, f"[{_STYLES[stage.state]}]{stage.state}[/]", duration(stage.seconds) if stage.seconds else "",
                      count(stage.tokens) if stage.tokens else "", escape(stage.note or ""))
    console = out()
    console.print(table)
    if any(stage.state != "done" for stage in stages):
        console.print(f"Go on: transllm run {folder / 'recipe.yaml'} --runs {folder.parent}", markup=False)
    else:
        console.print(f"Chat: transllm chat {folder}    Report: {folder / 'report.html'}", markup=False)
