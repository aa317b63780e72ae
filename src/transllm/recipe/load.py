"""Reads a recipe, and reports everything that is wrong with it at once.

``load_recipe`` finds what the types can tell (keys, types, ranges); ``check_recipe`` (check.py) what needs a look at the whole
recipe and at the disk. ``dump_recipe`` writes the resolved recipe, defaults filled in, so that a run says what it was made of.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from transllm.errors import DataError, RecipeError
from transllm.files import write_text
from transllm.recipe.parse import parse, read_text
from transllm.recipe.problems import sections, sentences
from transllm.recipe.schema import Recipe


def load_recipe(path: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: a YAML file in UTF-8. A recipe without a name gets the file's; relative paths in it start at the file's folder.
        overrides: values that replace the file's, as ``section.key=value`` with a YAML value (``finetune.tokens=1000``,
            ``data.parallel.0.limit=50``).

    Raises:
        DataError: the file is missing, empty, or not UTF-8.
        RecipeError: every problem of the recipe, each a plain sentence.
    """
    path = Path(path)
    text = read_text(path)
    data, problems = parse(text, where=str(path))
    if data is None:
        raise DataError(f"The recipe '{path}' is empty. Write one with: transllm init MODEL LANGUAGE")
    if not isinstance(data, dict):
        raise RecipeError([f"A recipe is a mapping of sections (model:, language:, data: ...), but this is a {_kind(data)}. "
                           "See recipes/ for examples."], where=str(path))
    problems += [f"Unknown key {key!r} in the recipe. Keys are words." for key in data if not isinstance(key, str)]
    data = {key: value for key, value in data.items() if isinstance(key, str)}
    for override in overrides:
        problems += _override(data, override)
    _fill_empty_sections(data)
    if data.get("name") in (None, ""):
        data["name"] = path.stem
    if isinstance(data["name"], str) and not re.fullmatch(r"[^\W_][\w.+-]*", data["name"]):
        problems.append(f"name must be letters, digits, '-', '_', '.' and '+' (it names the run folder), but is '{data['name']}'.")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(problems + sentences(error, data), where=str(path)) from None
    if problems:
        raise RecipeError(problems, where=str(path))
    recipe._folder = path.parent
    return recipe


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values: every default filled in, keys without a value left out (none is their default), and paths
    absolute, so that it means the same wherever it is written. Equal for a recipe and for what ``dump_recipe`` wrote of it."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    _map_paths(data, recipe.folder, lambda path: str(recipe.folder.absolute() / path))
    return data


def movable(recipe: Recipe) -> dict[str, Any]:
    """``resolved``, but of a path its last part only: equal wherever the files lie. For telling whether work is still of this recipe
    after its folder was moved; what the files hold is to be compared beside it."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    _map_paths(data, recipe.folder, lambda path: path.name)
    return data


def dump_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write the resolved recipe to ``path``, whole or not at all. ``load_recipe`` on the result gives the same recipe."""
    head = "# The recipe as resolved: every default filled in. Written by transllm.\n"
    write_text(Path(path), head + yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True, width=120))


def _override(data: dict[str, Any], override: str) -> list[str]:
    """Put one ``section.key=value`` into the recipe's data; returns its problems."""
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        return [f"--set {override}: this is not of the form section.key=value, for example finetune.tokens=1000."]
    value, problems = parse(text, where=f"--set {override}")
    here: Any = data
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                place = ".".join(parts[:index])
                return [f"--set {override}: '{place}' is a list of {len(here)}, counted from 0; '{part}' is none of them."]
            key: Any = int(part)
        elif isinstance(here, dict):
            key = part
            if not last and (part not in here or here[part] is None):
                here[part] = {}
            elif not last and index == 0 and part == "model" and isinstance(here[part], str):
                here[part] = {"source": here[part]}  # ``model: org/name`` is short for its source
            elif not last and parts[:index + 1] == ["recover", "engine"] and isinstance(here[part], str):
                here[part] = {"name": here[part]}
        else:
            return [f"--set {override}: '{'.'.join(parts[:index])}' is a value, not a section."]
        if last:
            here[key] = value
        else:
            here = here[key]
    return problems


def _fill_empty_sections(data: dict[str, Any]) -> None:
    """A section whose keys are all commented out reads as nothing; it means the defaults."""
    for path in sections():
        here: Any = data
        *parents, name = path.split(".")
        for parent in parents:
            here = here.get(parent) if isinstance(here, dict) else None
        if path and isinstance(here, dict) and name in here and here[name] is None and path not in ("model", "data"):
            if path.startswith(("data.", "recover.", "evaluate.")) or path == "extend.lexicon":
                continue  # lists of sources and optional sources, not sections
            here[name] = {}


def _map_paths(data: dict[str, Any], folder: Path, change: Callable[[Path], str]) -> None:
    """Change the values of the dumped recipe that are local paths; ``folder`` is the recipe's."""
    for key in ("source", "chat_template"):
        value = data["model"].get(key)
        # A brace: the template itself, not its file. It may be longer than a name can be.
        if isinstance(value, str) and value and "{" not in value and (folder / Path(value).expanduser()).exists():
            data["model"][key] = change(Path(value).expanduser())
    encoder = data["bridge"]["encoder"]
    if encoder not in ("self", "use") and (folder / Path(encoder).expanduser()).exists():
        data["bridge"]["encoder"] = change(Path(encoder).expanduser())
    translator = data["bridge"]["translator"]
    for key in ("model", "to_english"):
        if translator["name"] == "ctranslate2" and key in translator and (folder / Path(translator[key]).expanduser()).exists():
            translator[key] = change(Path(translator[key]).expanduser())
    sources = [*data["data"]["parallel"], *data["data"]["target"], *data["data"]["english"], *data["recover"]["prompts"],
               data["recover"].get("delicate"), data["recover"].get("system_prompts"),
               data["extend"].get("lexicon"), data["evaluate"].get("test_pairs"), data["evaluate"].get("queries")]
    for source in sources:
        if isinstance(source, dict) and "files" in source:
            files = source["files"]
            changed = [change(Path(file).expanduser()) for file in ([files] if isinstance(files, str) else files)]
            source["files"] = changed[0] if isinstance(files, str) else changed


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "single value"
