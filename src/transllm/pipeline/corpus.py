"""Whether a corpus is what the recipe says it is, and text to prove an extension on: English that nothing learns from, and program text."""

from __future__ import annotations

import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from transllm.data.language import share_in_language
from transllm.languages import LANGUAGES, Language
from transllm.tokenizer import Script, script_of

ENGLISH = Language("en", "English", "English")
SENTENCES = 10_000
"""Sentences of each kind that the proof compares."""
_LOOKED_AT = 300
_LETTERS = 20
"""Shorter lines say little about their language."""
_LEAST_SHARE = 0.8
"""Identifiers find some 97 % of sentences in the right language, of short ones fewer."""
_END = re.compile(r"(?<=[.!?])\s+|\n+")


def doubts(texts: Sequence[str], language: Language) -> list[str]:
    """What a look at a part of the texts finds wrong, a sentence each with the share; nothing where they are what they should be."""
    lines = [line for text in texts for line in text.split("\n") if sum(map(str.isalpha, line)) >= _LETTERS]
    if not lines:
        return []
    lines = random.Random(0).sample(lines, min(_LOOKED_AT, len(lines)))
    letters = Counter(char for line in lines for char in line if char.isalpha())
    latin = sum(times for char, times in letters.items() if not script_of([char])) / letters.total()
    share = latin if language.latin else 1 - latin
    if share < 0.5:
        kind, other = ("Latin letters", "another script") if language.latin else ("letters of its own script", "Latin letters")
        return [f"Only {share:.0%} of the {language.name} text's letters are {kind}, the others are {other} ({len(lines)} lines seen). "
                "Check the sources and the language of the recipe."]
    if language.code not in LANGUAGES and language != ENGLISH:
        return []  # the identifier may not know it
    share = share_in_language(lines, language.code)
    if share < _LEAST_SHARE:
        return [f"Only {share:.0%} of the {language.name} text is in {language.name}, by language identification of {len(lines)} lines. "
                "Check the sources and the language of the recipe."]
    return []


def too_small(found: int, wanted: int, characters: int, min_count: int) -> str:
    """The sentence for a sample that holds fewer sub-words than are asked for."""
    return (f"The sample of {characters:,} characters holds only {found:,} sub-words that occur {min_count} times, but "
            f"extend.vocab_size asks for {wanted:,}. Give more text, or lower extend.vocab_size or extend.min_count.")


def fixed_rule(kind: str, before: int, after: int) -> str:
    """The sentence for a tokenizer that cuts words at combining marks and cannot be made to stop."""
    return (f"The tokenizer cuts words at combining marks, into {before / after:.1f} times as many parts as there are words, and "
            f"transformers builds that rule into the tokenizer of every '{kind}' model: it stays, and sub-words stay short.")


def sentences(texts: Iterable[str], *, without: Script, count: int = SENTENCES) -> list[str]:
    """Different sentences of the texts, at most ``count`` drawn from all; those that quote the script are no English and left out."""
    found = sorted({part for text in texts for sentence in _END.split(text) if (part := sentence.strip())})
    found = [sentence for sentence in found if not without.found_in(sentence)]
    return random.Random(0).sample(found, min(count, len(found)))


def program_text(*, without: Script, count: int = SENTENCES) -> list[str]:
    """Lines of Python's standard library: real program text that is on every machine."""
    lines: set[str] = set()
    for text in modules():
        lines.update(line.rstrip() for line in text.split("\n") if len(line.strip()) > 3)
    kept = sorted(line for line in lines if not without.found_in(line))
    return random.Random(0).sample(kept, min(count, len(kept)))


def modules() -> Iterator[str]:
    """Sources of the standard library's own modules, without its packages, which hold tables of other languages."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            yield path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
