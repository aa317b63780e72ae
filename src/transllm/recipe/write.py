"""Writes a first recipe for a model and a language: short, commented, and ready to run where the hub can be reached."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from transllm.errors import RecipeError, RunError
from transllm.languages import LANGUAGES, Language


def write_recipe(path: str | os.PathLike[str], *, model: str, language: str, name: str | None = None, native: str | None = None,
                 parallel: Sequence[str] = (), target: Sequence[str] = (), force: bool = False) -> Path:
    """Write a recipe of fewer than 30 lines to ``path``.

    Args:
        path: the file to write; its folder is made.
        model: a hub id, a folder, a ``.gguf`` file or ``package:NAME==VERSION``.
        language: a code of the language table, or any other code with ``name`` and ``native``.
        name: English name of a language that is not in the table.
        native: the language's name in itself.
        parallel: files of sentence pairs; none: a hub data set is written.
        target: files of target-language text; none: a hub data set is written.
        force: replace an existing file.

    Raises:
        RunError: the file exists and ``force`` is not set.
        RecipeError: the language is unknown and not described.
    """
    path = Path(path)
    if path.exists() and not force:
        raise RunError(f"'{path}' exists already. Choose another name with --out, or replace it with --force.")
    known = LANGUAGES.get(language)
    if known is None and not (name and native):
        near = difflib.get_close_matches(language, [*LANGUAGES, *(entry.name for entry in LANGUAGES.values())], 1)
        hint = f" Did you mean '{_code(near[0])}'?" if near else ""
        raise RecipeError([f"There is no language '{language}' in the table.{hint} Give its ISO 639 code, or describe it with --name "
                           "(in English) and --native (in itself)."])
    spoken = known or Language(language, name or "", native or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(path, model, spoken, known is not None, parallel, target), encoding="utf-8")
    return path


def _code(name_or_code: str) -> str:
    return next((code for code, entry in LANGUAGES.items() if name_or_code in (code, entry.name)), name_or_code)


def _text(path: Path, model: str, language: Language, known: bool, parallel: Sequence[str], target: Sequence[str]) -> str:
    described = language.code
    if not known:
        described = f"{{code: {language.code}, name: {_quoted(language.name)}, native: {_quoted(language.native)}, latin: true}}"
    pair = "-".join(sorted(("en", language.code)))
    pairs = [f"files: {_file(file, path)}, columns: [0, 1]" for file in parallel] or [
        f'hub: "Helsinki-NLP/opus-100:{pair}", columns: [translation.en, translation.{language.code}]']
    texts = [f"files: {_file(file, path)}" for file in target] or [f'hub: "allenai/c4:{language.code}", columns: [text], limit: 1000000']
    lines = [
        f"# {language.name} for {model}.",
        f"# Size it: transllm plan {path.name}   Check it: transllm check {path.name}   Run it: transllm run {path.name}",
        f"model: {_quoted(model)}  # a hub id, a folder, a .gguf file, or package:NAME==VERSION",
        f"language: {described}",
        "data:",
        f"  parallel:  # pairs of English and {language.name}: full sentences teach more than short strings",
        *(f"    - {{{item}}}" for item in pairs),
        f"  target:  # {language.name} text; leave it out to use that side of the pairs",
        *(f"    - {{{item}}}" for item in texts),
        "  # english: your own English documents, as replay; without it, the English side of the pairs",
        "extend: {vocab_size: 8000}  # new sub-words; more for a script that the model hardly knows",
        "pretrain: {tokens: 100_000_000}  # budgets are in tokens; 0 skips a stage",
        "bitext: {tokens: 100_000_000}",
        "recover: {count: 52_000, prompts: [seed, self]}  # or add {hub: tatsu-lab/alpaca, columns: [instruction]}",
        "bridge: {translator: self}  # apertium: rule-based, where it is installed",
        "finetune: {tokens: 50_000_000}",
        "# For a large model: training: {gradient_checkpointing: true}. All keys and their reasons: src/transllm/recipe",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A YAML text: plain where that is safe, else in double quotes (JSON's are YAML's)."""
    plain = text.replace("/", "").replace("-", "").replace(".", "").replace("_", "").isalnum() and text[0].isalpha()
    return text if plain and text.lower() not in ("true", "false", "null") else json.dumps(text, ensure_ascii=False)


def _file(file: str, recipe: Path) -> str:
    """The path as the recipe must give it: relative to the recipe's folder."""
    return _quoted(os.path.relpath(file, recipe.parent) if not os.path.isabs(file) else file)
