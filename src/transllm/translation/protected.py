"""What of a text no translator may change, and how to see whether one did.

Protected pieces come back letter for letter. Numbers are shown to the translator, which needs them ("1 apple", "2 apples"), and come back
in the text's own form: a translator may write 1,234.5 as 1.234,5, but so it also writes version 3.11 as 3,11, and nobody can tell the
two apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

SENTINEL = "\ue000"
"""Stands for one protected piece while a text is cut: no letter, no blank, no end of a sentence."""
FIRST_PLACE = 0xF0000
"""The pieces of a sentence stand in it as chr(FIRST_PLACE), chr(FIRST_PLACE + 1), ...: private characters, which no text needs."""

_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]")
_PIECES = (
    _PRIVATE.pattern,  # of the text itself
    r"(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)",  # inline code
    r"\$\$.+?\$\$|\\\(.+?\\\)|\\\[.+?\\\]",  # formulae
    r"(?<=\])\([^()\s]+(?: \"[^\"]*\")?\)",  # the address of a Markdown link
    r"<!--.*?-->|</?[A-Za-z][\w:.-]*(?:\s[^<>]*)?/?>",  # tags
    r"(?:<)?(?:https?|ftp)://[^\s<>\"'`|]*[^\s<>\"'`|.,;:!?)\]}*_](?:>)?|\bwww\.[^\s<>\"'`|]*[^\s<>\"'`|.,;:!?)\]}*_]",
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    r"\$\{[^{}]*\}|\{\{.*?\}\}|\{%.*?%\}|\{[\w.\[\]!:<>=^+,%#-]*\}",  # ${VAR}, {{ name }}, {name}, {0:.2f}
    r"%\([^()\s]+\)[#0+-]*\d*(?:\.\d+)?[A-Za-z]|(?<![\w%])%[#0+-]*\d*(?:\.\d+)?[A-Za-z](?![A-Za-z])",  # %(name)s, %d
    r"(?<!\w)\$[A-Za-z_]\w*",  # $VAR
)
_PROTECTED = re.compile("|".join(_PIECES))
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_FENCE = re.compile(r"^[ \t>]*(?P<fence>`{3,}|~{3,})[^`\n]*(?:\n.*?(?:^[ \t>]*(?P=fence)[`~]*[ \t]*$|\Z)|\Z)", re.MULTILINE | re.DOTALL)
# A list mark has a blank after it: "3.5" and "-5" have none.
LEAD = re.compile(r"\s*(?:>\s?)*\s*(?:(?:[-*+•]|\d{1,3}[.)]|#{1,6})\s+)?(?:\[[ xX]\]\s+)?")
_LEAST_COLUMN = re.compile(r"^[\s>]*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")


def fences(text: str) -> list[tuple[int, int]]:
    """Where the fenced code blocks are; one that is not closed goes to the end."""
    return [match.span() for match in _FENCE.finditer(text)]


def is_rule_of_table(line: str) -> bool:
    """Whether a line is what stands under a table's head, such as ``| --- | :-: |``."""
    return "|" in line and bool(_LEAST_COLUMN.match(line))


def hide(line: str) -> tuple[str, list[str]]:
    """The line with a sentinel for each protected piece, and the pieces."""
    pieces: list[str] = []

    def take(match: re.Match[str]) -> str:
        pieces.append(match[0])
        return SENTINEL

    return _PROTECTED.sub(take, line), pieces


def without_private(text: str) -> str:
    """The text without private characters: a translator that writes one would put a piece there."""
    return _PRIVATE.sub("", text)


def numbers(text: str) -> list[str]:
    """The numbers in a text, as they stand there."""
    return _NUMBER.findall(text)


def with_numbers_of(source: str, translation: str) -> tuple[str, list[str]]:
    """The translation with each number of the source in the source's form, and the numbers that are not there in any form."""
    wanted = Counter(numbers(source))
    found = Counter(numbers(translation))
    missing = wanted - found
    forms: dict[str, list[str]] = {}
    for number in missing.elements():
        forms.setdefault(_digits(number), []).append(number)
    free = found - wanted

    def mend(match: re.Match[str]) -> str:
        fitting = forms.get(_digits(match[0]))
        if not fitting or not free[match[0]]:
            return match[0]
        free[match[0]] -= 1
        return fitting.pop(0)

    mended = _NUMBER.sub(mend, translation)
    return mended, [number for rest in forms.values() for number in rest]


def lost_structure(source: str, translation: str) -> tuple[str, ...]:
    """What of the source's structure is not in the translation as it was, and what is there and was not in the source.

    Compared are code blocks, all protected pieces, numbers (those of the source must be there; more may be, for number words), the count
    of lines, and the marks of lists, headings, quotes and tables at their beginnings.
    """
    (ours, pieces, blocks), (theirs, others, made) = _taken_apart(source), _taken_apart(translation)
    lost = _differences(blocks, made) + _differences(pieces, others)
    if len(ours) != len(theirs):
        return (*lost, f"{len(ours)} lines, not {len(theirs)}")
    for one, two in zip(ours, theirs, strict=True):
        if _lead(one) != _lead(two):
            lost.append(_lead(one).strip() or _lead(two).strip() or "indent")
        if one.lstrip(" >").startswith("|") and one.count("|") != two.count("|"):
            lost.append("|")
    lost += (Counter(numbers("\n".join(ours))) - Counter(numbers("\n".join(theirs)))).elements()
    return tuple(lost)


def _taken_apart(text: str) -> tuple[list[str], list[str], list[str]]:
    """The lines of a text with sentinels, its protected pieces, its code blocks."""
    hidden = [hide(line) for line in _FENCE.sub("", text).split("\n")]
    blocks = [text[start:end] for start, end in fences(text)]
    return [line for line, _ in hidden], [piece for _, pieces in hidden for piece in pieces], blocks


def _differences(ours: Iterable[str], theirs: Iterable[str]) -> list[str]:
    one, two = Counter(ours), Counter(theirs)
    return [*(one - two).elements(), *(two - one).elements()]


def _lead(line: str) -> str:
    matched = LEAD.match(line)
    return matched[0] if matched else ""


def _digits(number: str) -> str:
    """A number without its separators, in the digits 0 to 9: how it is compared."""
    return "".join(str(unicodedata.digit(character)) for character in number if character.isdigit())
