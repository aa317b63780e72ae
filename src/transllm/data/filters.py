"""Cleaning and filters of pairs and documents. A filter returns the value or the reason why it goes: the caller counts.

Thresholds are wide on purpose. A filter that is too strict is worse here than one that is too wide: low-resource
languages have little text, and every drop is visible in the manifest.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass, field
from hashlib import blake2b

from transllm.data.types import Document, Pair

# Halves of surrogate pairs (broken JSON escapes) cannot be written as UTF-8, and control characters are no text.
# Soft hyphens, zero-width spaces, marks of direction and of byte order: invisible, and each a token of its own. The zero-width
# joiner and non-joiner (200D, 200C) stay: Persian and the Indic scripts spell with them.
_INVISIBLE = re.compile(
    "[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile(r"[^\S\n]+")
_LINES = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9-]*(?:\s[^<>]*)?/?>")
_BREAK = re.compile(r"<(?:br|p|li|/p|/li)\s*/?>", re.IGNORECASE)
_ACCELERATOR_IN_BRACKETS = re.compile(r"\s*\([&_]\w\)")
# "E&xit" and "&File", but not "R&D" and "AT&T".
_AMPERSAND = re.compile(r"(?<!&)&(?=[^\W\d_A-Z])|(?<![A-Z&])&(?=[A-Z])|&&(?=\s)")
_UNDERSCORE_AT_START = re.compile(r"(?<![\w/.{%<$-])_(?=[^\W\d_])")
_UNDERSCORE_INSIDE = re.compile(r"\b([A-Z][a-z]*)_([a-z]+)\b")
# printf (positional too), str.format, template strings, references in brackets, and addresses.
_PLACEHOLDER = re.compile(r"%(?:\([^)]*\))?[-+ #0]*\d*(?:\.\d+)?[a-zA-Z]|%\d+\$?[a-zA-Z]?|"
                          r"\$?\{[^{}]*\}|\{\{[^{}]*\}\}|\$\w+|\[%[^\]]*%\]|https?://\S+")
_MAY_HOLD_PLACEHOLDER = re.compile(r"[%{$]|://")
# ASCII punctuation, Spanish opening marks, quotes, dashes, the ellipsis, CJK and full-width marks, Arabic marks, danda.
_PUNCTUATION = re.compile("[!-/:-@\\[-`{-~"
                          "\u00a1\u00bf\u00ab\u00bb\u2010-\u203a\u3001-\u3011\uff01-\uff0f\uff1a-\uff20\u060c\u061b\u061f\u0964]+")


def clean(text: str) -> str:
    """Text without invisible and control characters, with single spaces inside lines and no trailing ones."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    text = unicodedata.normalize("NFC", _LINE_ENDS.sub("\n", text))
    return _EMPTY_LINES.sub("\n\n", _LINES.sub("\n", _SPACES.sub(" ", _INVISIBLE.sub("", text)))).strip()


def clean_message(text: str) -> str:
    """``clean`` for text from a catalogue: entities and simple tags go, and so do accelerators (``&File``, ``_Edit``, ``(&F)``)."""
    if "<" in text:
        text = _TAG.sub("", _BREAK.sub("\n", text))
    if "&" in text or "_" in text:
        text = _ACCELERATOR_IN_BRACKETS.sub("", html.unescape(text))
        text = _AMPERSAND.sub(lambda found: "&" if found.group() == "&&" else "", text)
        if text.count("_") == 1:  # two are a name such as __init__ or max_new_tokens
            text = _UNDERSCORE_INSIDE.sub(r"\1\2", _UNDERSCORE_AT_START.sub("", text))
    return clean(text)


def normalise(text: str) -> str:
    """The form in which texts are compared: compatible characters, case, punctuation and spaces are made alike."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(_PUNCTUATION.sub(" ", text.casefold()).split())


def fingerprint(*texts: str) -> int:
    """64 bits of the normalised texts. Two of 10 million texts meet by chance with a probability of 3 in a million."""
    return _hash("\x1f".join(map(normalise, texts)))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))


def placeholder_share(text: str) -> float:
    """Share of a text's characters that are placeholders and addresses."""
    if not _MAY_HOLD_PLACEHOLDER.search(text):
        return 0.0
    return sum(len(found.group()) for found in _PLACEHOLDER.finditer(text)) / max(1, len(text))


@dataclass(slots=True)
class PairFilter:
    """Which pairs stay. It remembers a fingerprint of each pair it kept: duplicates cannot be found without.

    Attributes:
        min_characters: shortest English side; a single letter is a key or a unit.
        max_characters: longest side.
        min_ratio, max_ratio: target characters over English characters, for sides of more than 20 characters (short ones
            vary: "Save" is 9 letters in Spanish). Wide enough for Chinese (0.3) and Burmese (over 2).
        max_placeholders: share of placeholders above which a message is no sentence.
    """

    min_characters: int = 2
    max_characters: int = 2000
    min_ratio: float = 0.2
    max_ratio: float = 4.0
    max_placeholders: float = 0.3
    seen: set[int] = field(default_factory=set, repr=False)

    def __call__(self, pair: Pair) -> str | None:
        """The reason to drop the pair, or None."""
        english, target = pair.english, pair.target
        if not english or not target:
            return "empty"
        if not _has_letters(english) or not _has_letters(target):
            return "no letters"
        if len(english) < self.min_characters:
            return "too short"
        if max(len(english), len(target)) > self.max_characters:
            return "too long"
        alike = normalise(english), normalise(target)
        if alike[0] == alike[1]:
            return "identical sides"
        if max(len(english), len(target)) > 20 and not self.min_ratio <= len(target) / len(english) <= self.max_ratio:
            return "length ratio"
        if max(placeholder_share(english), placeholder_share(target)) > self.max_placeholders:
            return "mostly placeholders"
        mark = _hash("\x1f".join(alike))
        if mark in self.seen:
            return "duplicate"
        self.seen.add(mark)
        return None


@dataclass(slots=True)
class DocumentFilter:
    """Which documents stay. It remembers a fingerprint of each document it kept.

    Attributes:
        min_characters: shorter texts teach nothing about running text.
    """

    min_characters: int = 20
    seen: set[int] = field(default_factory=set, repr=False)

    def __call__(self, document: Document) -> str | None:
        """The reason to drop the document, or None."""
        if not document.text:
            return "empty"
        if not _has_letters(document.text):
            return "no letters"
        if len(document.text) < self.min_characters:
            return "too short"
        mark = fingerprint(document.text)
        if mark in self.seen:
            return "duplicate"
        self.seen.add(mark)
        return None
