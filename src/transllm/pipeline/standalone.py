"""The extension on its own: a model, texts and a language in, a folder with the extended model out. No recipe is needed."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transllm.errors import RecipeError, RunError
from transllm.files import write_text
from transllm.languages import LANGUAGES, Language
from transllm.pipeline.corpus import modules
from transllm.pipeline.run import transform
from transllm.progress import Progress
from transllm.recipe.schema import ModelSource, Recipe

_STAGE = "extend"


def extend_model(model: ModelSource | str, language: str | Language, texts: Sequence[Path | str], out: Path, *,
                 english: Sequence[Path | str] = (), size: int | Literal["auto"] = "auto", progress: Progress | None = None,
                 cache: Path | None = None, **settings: Any) -> Path:
    """Extend a chat model for a language: the stages *prepare* and *extend* of a run, and nothing else.

    What was begun lies beside ``out`` in a folder of its own until it is done; the same call goes on after a stop.

    Args:
        model: a hub id, a folder, a ``.gguf`` file, ``package:NAME==VERSION``, or a recipe's ``model`` section.
        language: a code of the language table, or a language of your own.
        texts: files of target-language text (txt with a document a line, jsonl, tsv, csv, parquet; ``.gz`` and ``.xz`` too).
        out: the folder to write: model, both tokenizers, manifest with the proof, report.
        english: files of English text that must be cut as before. None are needed for another script, which cannot touch English; the
            proof then takes the English in Python's standard library.
        size: new sub-words at most, or "auto": what they save decides.
        settings: further keys of a recipe's ``extend`` section.

    Returns:
        ``out``.

    Raises:
        RunError: ``out`` exists.
        RecipeError: a text does not exist, the language is unknown, or English text is missing.
        DataError, ModelError: as the stages raise them.
    """
    out = out.absolute()
    if out.exists():
        raise RunError(f"'{out}' exists already. Choose another folder, or remove it.")
    spoken = LANGUAGES.get(language) if isinstance(language, str) else language
    if spoken is None:
        raise RecipeError([f"There is no language '{language}' in the table. Use one of {', '.join(LANGUAGES)}, or give a Language."])
    if spoken.latin and not english:
        raise RecipeError([f"{spoken.name} is written in Latin letters, so its sub-words could change how English is cut. Give English "
                           "text to hold them against (--english); a few million characters are good."])
    work = out.with_name(f".{out.name}.unfinished")
    work.mkdir(parents=True, exist_ok=True)
    given = [str(Path(path).absolute()) for path in english] or [str(_docstrings(work))]
    skipped = {"tokens": 0}
    recipe = Recipe.model_validate({
        "name": "run", "model": model, "language": _named(spoken), "extend": {"vocab_size": size, **settings},
        "data": {"target": [{"files": [str(Path(path).absolute()) for path in texts]}], "english": [{"files": given}]},
        "pretrain": skipped, "bitext": skipped, "finetune": skipped})
    recipe._folder = Path.cwd()
    run = transform(recipe, runs=work, until=_STAGE, progress=progress, cache=cache)
    for name in ("recipe.yaml", "report.html"):
        shutil.copy(run.folder / name, run.folder / _STAGE / name)
    (run.folder / _STAGE).rename(out)
    shutil.rmtree(work)
    return out


def _named(language: Language) -> str | dict[str, Any]:
    if LANGUAGES.get(language.code) == language:
        return language.code
    return {name: getattr(language, name) for name in Language.__slots__}


def _docstrings(folder: Path) -> Path:
    """The English in Python's standard library, a paragraph a line: some megabytes of it are on every machine."""
    path = folder / "english.txt"
    if path.exists():
        return path
    found: dict[str, None] = {}
    for source in modules():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
                found.update(dict.fromkeys(" ".join(part.split()) for part in text.split("\n\n")))
    write_text(path, "".join(f"{paragraph}\n" for paragraph in found if len(paragraph) > 40))
    return path
