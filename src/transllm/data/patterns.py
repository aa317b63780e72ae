"""Globs over names, with ``{lang}`` for the language: which files a source means, and which English file belongs to which target file.

``*`` and ``?`` match any characters, ``/`` too (a wheel's folders are deep and of no interest).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

LANG = "{lang}"
_WILDCARD = re.compile(r"\*+|\?|\[!?[^\]]+\]")


def to_regex(pattern: str) -> re.Pattern[str]:
    """The glob as a regular expression; each wildcard is a group."""
    parts: list[str] = []
    end = 0
    for found in _WILDCARD.finditer(pattern):
        parts.append(re.escape(pattern[end:found.start()]))
        wildcard = found.group()
        if wildcard.startswith("["):
            inside = wildcard[1:-1].replace("\\", r"\\").replace("[", r"\[")
            parts.append(f"([{'^' + inside[1:] if inside.startswith('!') else inside}])")
        else:
            parts.append("(.)" if wildcard == "?" else "(.*)")
        end = found.end()
    parts.append(re.escape(pattern[end:]))
    return re.compile("".join(parts), re.DOTALL)


def select(pattern: str, names: Sequence[str], *, language: str) -> list[str]:
    """Names that match, sorted, so that the order of rows is the same on every machine."""
    regex = to_regex(pattern.replace(LANG, language))
    return sorted(name for name in names if regex.fullmatch(name))


def select_both(pattern: str, names: Sequence[str], *, language: str) -> list[tuple[str | None, str]]:
    """(English name or None, target name), matched by what the wildcards stand for.

    Where each language has one name only, they belong together whatever the wildcards stand for (files with a hash in the name).
    """
    english_regex, target_regex = to_regex(pattern.replace(LANG, "en")), to_regex(pattern.replace(LANG, language))
    english = {found.groups(): name for name in names if (found := english_regex.fullmatch(name))}
    target = {found.groups(): name for name in sorted(names) if (found := target_regex.fullmatch(name))}
    if len(english) == 1 and len(target) == 1:
        return [(next(iter(english.values())), next(iter(target.values())))]
    return [(english.get(groups), name) for groups, name in target.items()]


def names_on_disk(pattern: str, folder: Path, *, language: str) -> list[str]:
    """Files of the English and the target form of a path or glob; a relative one starts at ``folder``."""
    names: set[str] = set()
    for code in {"en", language}:
        concrete = pattern.replace(LANG, code)
        plain = folder / Path(concrete).expanduser()
        # A plain name first: real file names may hold brackets.
        names.update([str(plain)] if plain.is_file() else glob.glob(full_pattern(concrete, folder), recursive=True))
    return sorted(name for name in names if Path(name).is_file())


def full_pattern(pattern: str, folder: Path) -> str:
    """The pattern from the root on; what looks like a wildcard in the folder's own name is none."""
    path = Path(pattern).expanduser()
    return str(path) if path.is_absolute() else str(Path(glob.escape(str(folder))) / path)
