"""Pydantic's errors in words: one plain sentence a problem, with the key's path, the value given and what to do.

Pydantic reports a union (``'seed' | 'self' | Source``) as one error for each member; here it is one problem. An unknown key
is answered with the key that was probably meant, or the section that it belongs in.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from transllm.recipe.schema import Recipe

_RANGES = {"greater_than_equal": ("at least", "ge"), "greater_than": ("above", "gt"), "less_than_equal": ("at most", "le"),
           "less_than": ("below", "lt")}
_KINDS = {"string_type": "a text", "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
          "int_parsing_size": "a smaller whole number", "float_type": "a number", "float_parsing": "a number",
          "finite_number": "a finite number", "bool_type": "true or false", "bool_parsing": "true or false", "list_type": "a list",
          "dict_type": "a mapping", "model_type": "a section with keys", "model_attributes_type": "a section with keys"}
_TAGS = {"str": "a text", "int": "a whole number", "float": "a number", "list[str]": "a list of texts", "dict[str,any]": "a mapping",
         "bool": "true or false"}
_SECTION_TAG = re.compile(r"\bSource\b")  # also inside "function-after[..., Source]"
_Path = tuple[str | int, ...]


def sentences(error: ValidationError, data: Mapping[str, Any]) -> list[str]:
    """All problems of ``error`` about the recipe ``data``, each one once."""
    details = [(detail["loc"], detail) for detail in error.errors(include_url=False)]
    return list(dict.fromkeys(_problems(details, data, ())))


def dotted(path: Iterable[str | int]) -> str:
    """``('data', 'parallel', 0)`` as ``data.parallel[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def sections() -> dict[str, type[BaseModel]]:
    """Every section of a recipe by its dotted path; the recipe itself is ``''``, a list's items have the list's path."""
    found: dict[str, type[BaseModel]] = {"": Recipe}

    def descend(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            for inner in _models(field.annotation):
                path = f"{prefix}.{name}" if prefix else name
                found[path] = inner
                descend(inner, path)

    descend(Recipe, "")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


def _locate(loc: _Path, data: Any, *, missing: bool) -> tuple[_Path, str, _Path]:
    """Split pydantic's location into the path in the data, the first union tag, and what follows the tag."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        inside = (isinstance(data, Mapping) and part in data) or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
        elif not (missing and index == len(loc) - 1):
            return tuple(path), str(part), loc[index + 1:]
        path.append(part)
    return tuple(path), "", ()


def _value(path: Iterable[str | int], data: Any) -> Any:
    for part in path:
        data = data[part]
    return data


def _problems(details: Iterable[tuple[_Path, ErrorDetails]], data: Any, prefix: _Path) -> Iterator[str]:
    """The sentences about the part of the recipe at ``prefix``; ``data`` is its value, locations are relative to it."""
    groups: dict[_Path, list[tuple[str, _Path, ErrorDetails]]] = {}
    for loc, detail in details:
        path, tag, rest = _locate(loc, data, missing=detail["type"] == "missing")
        groups.setdefault(path, []).append((tag, rest, detail))
    for path, members in groups.items():
        plain = [detail for tag, _, detail in members if not tag]
        yield from (_single(prefix + path, detail) for detail in plain)
        if not plain:
            value = _value(path, data)
            of_section = [(rest, detail) for tag, rest, detail in members if _SECTION_TAG.search(tag)]
            if isinstance(value, Mapping) and of_section:
                # A mapping can only be meant as the union's section: its own problems say more than "none of these".
                yield from _problems(of_section, value, prefix + path)
            else:
                yield _no_member(prefix + path, members, value)


def _no_member(path: _Path, members: Iterable[tuple[str, _Path, ErrorDetails]], value: Any) -> str:
    """A value that is none of a union's members."""
    wanted: dict[str, None] = {}
    literals: list[str] = []
    for tag, _, detail in members:
        if detail["type"] == "literal_error":
            literals = _options(detail)
            wanted.update(dict.fromkeys(map(repr, literals)))
        elif _SECTION_TAG.search(tag):
            wanted.setdefault("a source (a mapping with 'package', 'files' or 'hub')")
        else:
            wanted.setdefault(_TAGS.get(tag) or _KINDS.get(detail["type"], tag))
    return f"{dotted(path)} must be {_either(wanted)}, but is {_shown(value)}.{_meant(value, literals)}"


def _options(detail: ErrorDetails) -> list[str]:
    """The values that a literal may have."""
    return re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))


def _meant(value: Any, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, options, 1) if isinstance(value, str) else []
    return f" Did you mean '{near[0]}'?" if near else ""


def _single(path: _Path, detail: ErrorDetails) -> str:
    """One error that is not a union's."""
    kind, where, context = detail["type"], dotted(path), detail.get("ctx", {})
    if kind == "missing":
        return f"'{where}' is missing. Every recipe must give it." if len(path) == 1 else f"{where} is missing. Add it."
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "value_error":
        message = str(context["error"])
        return f"{where}: {message}." if where else f"{message[0].upper()}{message[1:]}."
    given = f"but is {_shown(detail['input'])}"
    if kind == "literal_error":
        return f"{where} must be {_either(map(repr, _options(detail)))}, {given}.{_meant(detail['input'], _options(detail))}"
    if kind in _RANGES:
        words, key = _RANGES[kind]
        limit = context[key]
        return f"{where} must be {words} {limit:g}, {given}."
    sentence = f"{where or 'The recipe'} must be {_KINDS.get(kind, detail['msg'])}, {given}."
    if kind == "string_type" and isinstance(detail["input"], int | float):
        sentence += " Put it in quotes."
    if kind == "list_type" and isinstance(detail["input"], Mapping):
        sentence += " Put '- ' before it, to make it the list's only item."
    return sentence


def _unknown(path: _Path) -> str:
    """An unknown key, what was probably meant, and the sections that have it."""
    *parents, key = path
    name = str(key)
    here = ".".join(part for part in parents if isinstance(part, str))
    table = sections()
    own = list(table[here].model_fields) if here in table else []
    sentence = f"Unknown key '{name}' in {f'section {dotted(parents)!r}' if parents else 'the recipe'}."
    near = difflib.get_close_matches(name, own, 1)
    hints = [f"Did you mean '{near[0]}'?"] if near else []
    homes = [section for section, model in table.items() if name in model.model_fields and section != here]
    if homes:
        hints.append(f"It belongs in section {_either([repr(home) for home in homes if home])}." if any(homes)
                     else "It belongs at the top of the recipe, outside any section.")
    elif not near:
        others = {field: section for section, model in reversed(table.items()) for field in model.model_fields if section != here}
        far = difflib.get_close_matches(name, others, 1, 0.75)
        if far:
            home = others[far[0]]
            hints.append(f"Did you mean '{far[0]}' {f'in section {home!r}' if home else 'at the top of the recipe'}?")
        else:
            hints.append(f"Its keys are {', '.join(own)}.")
    return " ".join([sentence, *hints])


def _either(options: Iterable[str]) -> str:
    *first, last = list(options)
    return f"{', '.join(first)} or {last}" if first else last


def _shown(value: Any) -> str:
    """The value given, short enough for a sentence."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(repr(str(key)) for key in list(value)[:4])}" if value else "an empty mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
