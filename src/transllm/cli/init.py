"""``transllm init``: write a recipe for a model and a language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from transllm.cli.console import out


def init(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, a .gguf file or package:NAME==VERSION.")],
    language: Annotated[str, typer.Argument(help="ISO 639 code of the language to teach, e.g. th.")],
    path: Annotated[Path | None, typer.Option("--out", "-o", help="The recipe to write. Default: MODEL-LANGUAGE.yaml here.")] = None,
    name: Annotated[str | None, typer.Option(help="English name of a language that is not in the table.")] = None,
    native: Annotated[str | None, typer.Option(help="Its name in itself.")] = None,
    parallel: Annotated[list[str] | None, typer.Option(help="A file of sentence pairs (English, target). May be repeated.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="A file of target-language text. May be repeated.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
) -> None:
    """Write a short, commented recipe for a model and a language."""
    from transllm.recipe import write_recipe

    path = path or Path(f"{short_name(model)}-{language}.yaml")
    write_recipe(path, model=model, language=language, name=name, native=native, parallel=parallel or (), target=target or (), force=force)
    console = out()
    console.print(f"Wrote {path}. Read it, then:", markup=False)
    for verb, what in (("check", "finds mistakes"), ("plan", "says what it will cost"), ("run", "runs it")):
        console.print(f"  transllm {verb} {path}   {what}", markup=False)


def short_name(model: str) -> str:
    """The model's own name: no owner, no ending, no version."""
    name = model.removeprefix("package:").split("==")[0].rstrip("/").split("/")[-1].removesuffix(".gguf")
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "recipe"
