"""``transllm report``: write a run's report anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from transllm.cli.console import out, run_folder


def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")]) -> None:
    """Write report.html: plots, the before/after table, sample conversations, cost. One page, nothing loaded from elsewhere."""
    run_folder(folder)
    from transllm.report import build_report

    out().print(f"Wrote {build_report(folder)}", markup=False)
