"""``transllm run``: run a recipe, from where it stands to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from transllm import processes
from transllm.cli.check import Overrides, refuse_problems
from transllm.cli.console import out
from transllm.cli.progress import RichProgress

if TYPE_CHECKING:
    from transllm.pipeline import Run


def run(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe.")],
    runs: Annotated[Path, typer.Option("--runs", help="Where run folders are.")] = Path("runs"),
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and what follows again.")] = None,
    overrides: Overrides = None,
) -> None:
    """Run a recipe. Finished stages are skipped; after a stop, the same command goes on where it was.

    Under torchrun or accelerate launch all processes train together: docs/many-processes.md.
    """
    with processes.joined():
        from transllm.recipe import load_recipe

        recipe = load_recipe(recipe_file, overrides=overrides or ())
        processes.on_main(lambda: refuse_problems(recipe, recipe_file))
        from transllm.pipeline import transform

        finished = transform(recipe, runs=runs, until=until, start=start, progress=RichProgress())
        plain = not overrides and runs == Path("runs")
        # What was changed on the command line is in the run's own recipe.
        processes.on_main(lambda: _tell(finished, str(recipe_file) if plain else f"{finished.folder / 'recipe.yaml'} --runs {runs}"))


def _tell(finished: Run, again: str) -> None:
    """The before/after table, one conversation, and how to go on: ``again`` is what ``run`` takes."""
    console, folder = out(), finished.folder
    if finished.metrics is not None:
        from transllm.evaluation.table import before_after, render_terminal

        console.print()
        console.print(render_terminal(before_after(finished.metrics)))
    for line in sample_conversation(folder / "evaluate" / "samples.json"):
        console.print(line)
    report = folder / "report.html"
    if report.exists():
        console.print(f"Report: {report}", markup=False)
    if (folder / "merge" / "manifest.json").exists():
        console.print(f"Chat:   transllm chat {folder}", markup=False)
    else:
        console.print(f"Go on:  transllm run {again}    Status: transllm status {folder}", markup=False)


def sample_conversation(path: Path) -> list[Text]:
    """The first conversation of the last measured model, as lines; nothing where none was held yet."""
    if not path.exists():
        return []
    conversations: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["conversations"]
    if not conversations:
        return []
    last = conversations[-1]["stage"]
    shown = next(conversation for conversation in conversations if conversation["stage"] == last)
    lines = [Text(f"A conversation with the model after '{last}':", style="bold")]
    for turn in shown["turns"]:
        for key, label, style in (("query", "you", "bold"), ("query_en", "  in English", "dim"),
                                  ("answer_en", "  answer in English", "dim"), ("answer", "model", "green")):
            if turn.get(key):
                lines.append(Text(f"  {label}: ", style="dim").append(" ".join(str(turn[key]).split()), style=style))
    return [*lines, Text("")]
