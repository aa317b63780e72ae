"""``transllm inspect``: look at what the model reads. ``tokens``: cuts of text; ``batch``: what is learned of a row; ``tcot`` (tcot.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from transllm.cli.console import err, out, run_folder
from transllm.cli.segments import (
    fertility_of_manifest,
    fertility_table,
    html_page,
    mask_line,
    piece_line,
    run_of,
    throughput_line,
    tokenizers_of,
)
from transllm.cli.tcot import tcot

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Look at what the model reads: tokens, training rows.")
app.command("tcot")(tcot)


@app.command("tokens")
def tokens(
    where: Annotated[Path, typer.Argument(metavar="FOLDER_OR_RECIPE", help="A run folder, its extend/ folder, or a recipe that has run.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to cut. Default: a pipe's, or the run's.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with the cuts in colour.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where run folders are, for a recipe.")] = Path("runs"),
    speed: Annotated[bool, typer.Option("--speed", help="Also measure how fast both tokenizers are, in a few seconds.")] = False,
) -> None:
    """Show how texts are cut before and after the extension, and what a word, a character and a byte cost in tokens: in these texts, and
    in the held-out text of the language and of English that the extension was measured on."""
    spans, samples = tokenizers_of(where, runs=runs)
    if not texts:
        texts = [] if sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin if line.strip()]
    texts = texts or samples()
    console = out()
    for text in texts:
        for label, tokenizer in (("before", spans.original), ("after", spans.extended)):
            console.print(piece_line(label, tokenizer, text, colour=console.is_terminal, new_from=spans.original_size))
    console.print("Underlined: new sub-words. ·: a token that is a part of a character." if console.is_terminal else
                  "|: between two tokens. +: a new sub-word. ·: a token that is a part of a character.", style="dim", markup=False)
    console.print(fertility_table(spans, texts))
    folder = run_of(where, runs=runs)
    if (held_out := fertility_of_manifest(folder)) is not None:
        console.print(held_out)
    if speed:
        console.print(throughput_line(spans, texts))
    if html is not None:
        html.write_text(html_page(spans, texts), encoding="utf-8")
        err().print(f"Wrote {html}", markup=False)


@app.command("batch")
def batch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A training stage: pretrain, bitext or finetune.")],
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    failed: Annotated[bool, typer.Option("--failed", help="The step at which NaN, or a leap of the loss, stopped training.")] = False,
) -> None:
    """Show rows of a training stage with their loss mask: what is learned is green and underlined, or in ⟦brackets⟧ off a terminal."""
    run_folder(run)
    from transllm.pipeline import inspect_failed, inspect_rows

    console = out()
    if failed:
        noted, shown = inspect_failed(run, stage)
        for key, value in noted.items():
            shown_value = str(value)
            console.print(f"{key}: {shown_value if len(shown_value) < 300 else shown_value[:300] + ' ...'}", style="bold", markup=False)
        named = shown[:rows]
    else:
        named = [(f"row {number}", pieces) for number, pieces in enumerate(inspect_rows(run, stage, rows), 1)]
    for name, pieces in named:
        learned = sum(trained for _, trained in pieces)
        console.print(f"{name}: {len(pieces)} tokens, {learned} learned ({learned / max(1, len(pieces)):.0%})", style="bold")
        console.print(mask_line(pieces, colour=console.is_terminal))
        console.print()
    if failed and len(shown) > rows:
        console.print(f"{len(shown) - rows} more rows: --rows {len(shown)}", style="dim")
