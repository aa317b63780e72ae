"""The script that a sample is written in, and a pre-tokenizer rule that keeps its words whole.

The rules of byte-level BPEs were written for Latin letters: a word is a run of letters (``\\p{L}+``). Vowels and tones of Thai, Lao,
Khmer, Burmese and the scripts of India are combining marks (``\\p{M}``), no letters, so such a rule cuts a word at each of them, and no
sub-word can reach across. GPT-2's rule leaves Thai in pieces of 2.6 characters: however many sub-words are learned, a text costs at most
4.8 times fewer tokens than before (PUD, a vocabulary of 49 k).

So where marks cut the sample, runs of letters *and marks of that script* become pre-tokens of their own. A text that holds no letter of
the script cannot match the added rule, so it is cut as before, whatever the old rules are.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_LEAST_OF_LETTERS = 0.05
"""A script with a smaller share of the sample's letters is quoted, not written."""
_JOINERS = "\u200c\u200d"
"""Zero-width (non-)joiner: inside words of Indic scripts, Persian and Khmer. They only follow a letter, since emoji use them too."""
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ``ByteLevel`` with ``use_regex`` cuts by; the file has to spell it out where the rule gets a second part."""


@dataclass(frozen=True, slots=True)
class Script:
    """Scripts other than Latin.

    Attributes:
        names: as Unicode names begin: "THAI"; for Japanese "CJK", "HIRAGANA" and "KATAKANA".
        characters: their letters and marks, as ranges inside a regular expression's brackets.
    """

    names: tuple[str, ...] = ()
    characters: str = ""

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def run(self) -> str:
        """A regular expression of a run of letters and marks, with the space before it: what a pre-token is to be."""
        return f" ?[{self.characters}][{self.characters}{_JOINERS}]*"

    def found_in(self, text: str) -> bool:
        """Whether the text holds a letter or mark of the script."""
        return bool(self) and _pattern(self.characters).search(text) is not None

    def reached_by(self, raw: bytes) -> bool:
        """Whether a piece's bytes can stand only where a character of the script stands.

        A piece may hold the first bytes of a character without the last, which alone tells 64 neighbours apart.
        """
        return bool(self) and _leads(self.characters).search(raw) is not None


def script_of(texts: Iterable[str]) -> Script:
    """The scripts that the texts are written in, without Latin and without what is only quoted."""
    letters = Counter("".join(texts))  # one text is counted much faster than many
    names: Counter[str] = Counter()
    for char, times in letters.items():
        if unicodedata.category(char)[0] in "LM" and (name := _script_name(char)) not in ("LATIN", "COMBINING", "MODIFIER", ""):
            names[name] += times
    most = sum(names.values())
    kept = tuple(sorted(name for name, times in names.items() if times >= _LEAST_OF_LETTERS * most))
    return Script(kept, _ranges(kept)) if kept else Script()


def _script_name(char: str) -> str:
    """What a character's Unicode name begins with, which is its script for all letters and marks of a script of its own."""
    return unicodedata.name(char, "").split(" ")[0]


@lru_cache(maxsize=16)
def _ranges(names: tuple[str, ...]) -> str:
    """All letters and marks whose name begins so, below the sign planes."""
    points = [point for point in range(0x80, 0x30000)
              if unicodedata.category(chr(point))[0] in "LM" and _script_name(chr(point)) in names]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and point == ranges[-1][1] + 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in ranges)


@lru_cache(maxsize=16)
def _pattern(characters: str) -> re.Pattern[str]:
    return re.compile(f"[{characters}]")


@lru_cache(maxsize=16)
def _leads(characters: str) -> re.Pattern[bytes]:
    """The bytes that characters of the script, and no others, begin with."""
    leads = set()
    for start, end in re.findall("(.)-(.)", characters, flags=re.DOTALL):
        for point in range(ord(start), ord(end) + 1):
            raw = chr(point).encode()
            leads.add(raw[:max(2, len(raw) - 1)])
    return re.compile(b"|".join(re.escape(lead) for lead in sorted(leads)))


def whole_words(pre_tokenizer: dict[str, Any] | None, script: Script) -> dict[str, Any] | None:
    """The pre-tokenizer of a ``tokenizer.json`` with runs of the script's letters and marks as pre-tokens of their own.

    Each rule gets a first choice that takes a run whole. A step of its own before them would also part a word of other letters that runs
    into the script without a space, but makes English 6 % slower to cut (PUD, paired rounds) and Thai no shorter.

    Returns:
        None where that cannot be said in the file's terms (a step that puts a space before a text, or none at all).
    """
    if pre_tokenizer is None or not script:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    amended: list[dict[str, Any]] = []
    for step in steps:
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            return None
        if step["type"] == "ByteLevel" and step.get("use_regex", True):
            rule = {"type": "Split", "pattern": {"Regex": f"{script.run}|{_GPT_2}"}, "behavior": "Isolated", "invert": False}
            amended += [rule, {**step, "use_regex": False}]
        elif step["type"] == "Split" and "Regex" in step["pattern"]:
            amended.append({**step, "pattern": {"Regex": f"{script.run}|(?:{step['pattern']['Regex']})"}})
        elif step["type"] in ("Digits", "ByteLevel"):
            amended.append(step)
        else:
            return None
    return {"type": "Sequence", "pretokenizers": amended}


def with_whole_words(tokenizer_json: str, script: Script) -> str | None:
    """A ``tokenizer.json`` with that rule in it; None where there is no such rule."""
    parsed: dict[str, Any] = json.loads(tokenizer_json)
    amended = whole_words(parsed["pre_tokenizer"], script)
    return None if amended is None else json.dumps({**parsed, "pre_tokenizer": amended}, ensure_ascii=False)
