"""YAML as people mean it: the loader that recipes are read with.

PyYAML follows YAML 1.1, where ``no`` (Norwegian) is false, ``2e-4`` is a text, ``2024-01-01`` a date, and of two equal keys
the first is lost without a word. Here only ``true`` and ``false`` are truth values, ``2e-4`` is a number, dates stay text,
and equal keys are a problem with its line.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from transllm.errors import DataError, RecipeError, first_line

_BOOL = "tag:yaml.org,2002:bool"
_FLOAT = "tag:yaml.org,2002:float"
_DATE = "tag:yaml.org,2002:timestamp"
_FLOAT_PATTERN = re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
                            r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")


class RecipeLoader(yaml.SafeLoader):
    """A safe loader with YAML 1.2's truth values and numbers that notes keys given twice in ``problems``."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.problems: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                line = key_node.start_mark.line + 1
                if key_node.value in seen:
                    self.problems.append(f"'{key_node.value}' is given twice, on lines {seen[key_node.value]} and {line}. Keep one.")
                seen[key_node.value] = line
        return super().construct_mapping(node, deep=deep)


RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT, _DATE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
RecipeLoader.add_implicit_resolver(_FLOAT, _FLOAT_PATTERN, list("-+0123456789."))


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ``DataError`` where it is missing, a folder, or in another encoding."""
    if path.is_dir():
        raise DataError(f"'{path}' is a folder, not a recipe. Name the YAML file, for example {path / 'recipe.yaml'}.")
    if not path.is_file():
        raise DataError(f"There is no recipe '{path}'. Write one with: transllm init MODEL LANGUAGE")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"'{path}' is not UTF-8 text: byte {error.start} on line {line} is 0x{data[error.start]:02x}. "
                        "Save the file as UTF-8.") from error


def parse(text: str, *, where: str) -> tuple[Any, list[str]]:
    """The value of a YAML text, and the problems that do not stop its reading (keys given twice).

    Raises:
        RecipeError: the text is not YAML; the problem names line and column.
    """
    try:
        loader = RecipeLoader(text)  # the constructor already rejects control characters
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = error.problem or error.context or "unreadable"
        raise RecipeError([f"{place}this is not YAML: {what}. {_hint(text, mark)}"], where=where) from error
    except yaml.YAMLError as error:
        raise RecipeError([f"This is not YAML: {first_line(error)}. Take the odd character out."], where=where) from error
    return value, loader.problems


def _hint(text: str, mark: yaml.Mark | None) -> str:
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if line[:len(line) - len(line.lstrip())].count("\t"):
        return "Indent with spaces, not with tabs."
    return "Mend the line, or put texts with ':' or '#' in quotes."
