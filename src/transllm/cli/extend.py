"""``transllm extend``: give a chat model sub-words of a language, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from transllm.cli.console import out
from transllm.cli.init import short_name
from transllm.cli.progress import RichProgress
from transllm.cli.segments import fertility_of_manifest


def _size(text: str) -> int | Literal["auto"]:
    """``auto`` or a number."""
    if text == "auto":
        return "auto"
    if not text.isdigit() or int(text) == 0:
        raise typer.BadParameter(f"'{text}' is no number of sub-words. Write 8000, or auto.")
    return int(text)


def extend(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, a .gguf file or package:NAME==VERSION.")],
    language: Annotated[str, typer.Argument(help="ISO 639 code of the language, e.g. th.")],
    texts: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="Files of text in the language: txt (a document a line), jsonl, "
                                                                        "tsv, csv, parquet; .gz and .xz too.")],
    english: Annotated[list[Path] | None, typer.Option(help="A file of English that must be cut as before; needed for a Latin-script "
                                                            "language. May be repeated.")] = None,
    size: Annotated[str, typer.Option(metavar="NUMBER|auto", help="New sub-words at most; auto: as many as save enough.")] = "auto",
    folder: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write. Default: MODEL-LANGUAGE here.")] = None,
) -> None:
    """Learn sub-words of a language, merge them into a chat model's tokenizer and grow the model: a folder that any engine loads.

    The new rows are initialised, not trained: train the model on text of the language before you use it.
    """
    wanted = _size(size)
    from transllm.pipeline import extend_model

    written = extend_model(model, language, texts, folder or Path(f"{short_name(model)}-{language}"), english=english or (), size=wanted,
                           progress=RichProgress())
    console = out()
    console.print(fertility_of_manifest(written))
    console.print(f"Wrote {written}. Look at it: transllm inspect tokens {written} 'some text'", markup=False)
