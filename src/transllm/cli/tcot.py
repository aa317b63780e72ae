"""``transllm inspect tcot``: what *finetune* learns of what *bridge* made, and what *bridge* rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from transllm.cli.console import out, run_folder
from transllm.cli.segments import mask_line


def tcot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder in which bridge is done.")],
    rejects: Annotated[bool, typer.Option("--rejects", help="What was rejected, by reason, with its scores.")] = False,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only chain, recovery, translation or direct; of rejects, only "
                                                                            "reasons that hold this word.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Examples of each kind, or of each reason.")] = 2,
) -> None:
    """Show examples with their parts and their loss mask: what is learned is green and underlined, or in ⟦brackets⟧ off a terminal."""
    run_folder(run)
    from transllm.pipeline import inspect_tcot

    console = out()
    examples = inspect_tcot(run, kind=kind, rejects=rejects, count=count)
    for example in examples:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in example.scores.items())
        console.print(Text(example.kind, style="bold").append(f"  {scores}" if scores else "", style="not bold dim"))
        for name, text in example.parts.items():
            if name != "prompt":
                console.print(Text(f"  {name}: ", style="dim").append(text, style="cyan"))
        if example.pieces:
            console.print(mask_line(example.pieces, colour=console.is_terminal))
        console.print()
    if not examples:
        console.print("Nothing was rejected." if rejects and kind is None else "There is none.", style="dim")
