"""Where the command line prints: results on the standard output, everything else on the standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from transllm.errors import RunError


def out() -> Console:
    """The console of results. Made at each call, because tests and pipes exchange the stream. Off a terminal, no line is cut."""
    terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not terminal, width=None if terminal else 120)


def err() -> Console:
    """The console of progress and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str, *, prefix: str = "error: ") -> None:
    """Print an error message as it is: markup in it is the user's text, not ours."""
    err().print(Text(prefix, style="bold red").append(Text(message, style="default")) if prefix else Text(message))


def run_folder(folder: Path, *, need: str = "recipe.yaml") -> Path:
    """The folder, if it is a run's.

    Raises:
        RunError: there is no such folder, or ``need`` is not in it.
    """
    if not folder.is_dir():
        beside = folder.parent if folder.parent.is_dir() else Path("runs")
        runs = sorted(path.parent.name for path in beside.glob("*/recipe.yaml"))
        known = f"There are: {', '.join(runs)}." if runs else "Make one with: transllm run RECIPE"
        raise RunError(f"There is no run folder '{folder}'. {known}")
    if not (folder / need).exists():
        raise RunError(f"'{folder}' is not a run folder: it has no {need}. Name a folder under runs/, or make one with: "
                       "transllm run RECIPE")
    return folder


def listing(*columns: str, title: str, numbers: Sequence[str] = ()) -> Table:
    """A plain table with its title on the left; columns in ``numbers`` stand on the right and are never broken."""
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=column in numbers)
    return table


def duration(seconds: float) -> str:
    """Seconds as people say them: ``4 s``, ``2 min 5 s``, ``3 h 20 min``, ``2 d 4 h``."""
    whole = round(seconds)
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"


def count(number: float) -> str:
    """A count, short: ``950``, ``12.3 k``, ``4.5 M``, ``1.2 G``."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if name == 'k' else size):.1f} {name}"
    return f"{number:,.0f}"
