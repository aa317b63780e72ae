"""Cut a text into sentences and put their translations together again; code blocks, tables, line breaks, list marks and blanks stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transllm.translation.protected import FIRST_PLACE, LEAD, SENTINEL, fences, hide, is_rule_of_table

# A sentence ends at its mark and the blanks after it (CJK marks need no blank). An abbreviation ends one too early, which costs
# the translator some context and loses nothing: the pieces are joined again.
_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][”’」』）]*\s*")  # noqa: RUF001
_LETTER = re.compile(r"[^\W\d_]")
_BAR = re.compile(r"(?<!\\)\|")
_LONGEST = 600


@dataclass(frozen=True, slots=True)
class Sentence:
    """What a translator gets.

    Attributes:
        text: the sentence, with private characters (chr(FIRST_PLACE + n)) where its protected pieces stand.
        pieces: what stands there.
    """

    text: str
    pieces: tuple[str, ...] = ()

    def restore(self, text: str) -> str:
        """A text with the sentence's pieces in their places."""
        return "".join(self.pieces[ord(character) - FIRST_PLACE] if 0 <= ord(character) - FIRST_PLACE < len(self.pieces) else character
                       for character in text)


@dataclass(frozen=True, slots=True)
class Parts:
    """A text in parts: strings that stay, and places (None) where the sentences go."""

    frame: tuple[str | None, ...]
    sentences: tuple[Sentence, ...]

    def join(self, translated: Sequence[str]) -> str:
        """The text with its sentences replaced, in order."""
        waiting = iter(translated)
        return "".join(next(waiting) if part is None else part for part in self.frame)


def split_text(text: str, *, longest: int = _LONGEST, whole_lines: bool = False, protect: bool = True) -> Parts:
    """Cut a text for a translator of single sentences or lines.

    Args:
        longest: characters; a longer sentence is cut at white space.
        whole_lines: leave the sentences of a line together, up to ``longest``.
        protect: keep code blocks, tables and protected pieces (protected.py) from the translator; else only line breaks, list marks
            and blanks.
    """
    cutter = _Cutter(longest, whole_lines, protect)
    place = 0
    for start, end in fences(text) if protect else []:
        cutter.lines(text[place:start])
        cutter.frame.append(text[start:end])
        place = end
    cutter.lines(text[place:])
    return Parts(tuple(cutter.frame), tuple(cutter.sentences))


class _Cutter:
    def __init__(self, longest: int, whole_lines: bool, protect: bool) -> None:
        self._longest, self._whole_lines, self._protect = longest, whole_lines, protect
        self.frame: list[str | None] = []
        self.sentences: list[Sentence] = []

    def lines(self, text: str) -> None:
        lines = text.split("\n")
        rows = _rows_of_tables(lines) if self._protect else set()
        for number, line in enumerate(lines):
            if number:
                self.frame.append("\n")
            hidden, pieces = hide(line) if self._protect else (line, [])
            waiting = iter(pieces)
            for place, cell in enumerate(_BAR.split(hidden) if number in rows else [hidden]):
                if place:
                    self.frame.append("|")
                self._cell(cell, [next(waiting) for _ in range(cell.count(SENTINEL))] if self._protect else [])

    def _cell(self, text: str, pieces: list[str]) -> None:
        matched = LEAD.match(text)
        lead = matched[0] if matched else ""
        body = text[len(lead):]
        tail = body[len(body.rstrip()):]
        self.frame.append(lead)
        waiting = iter(pieces)
        for place, sentence in enumerate(self._sentences(body)):
            if place:
                self.frame.append(" ")
            own = tuple(next(waiting) for _ in range(sentence.count(SENTINEL))) if self._protect else ()
            numbered = sentence
            for number in range(len(own)):
                numbered = numbered.replace(SENTINEL, chr(FIRST_PLACE + number), 1)
            made = Sentence(numbered, own)
            if _LETTER.search(sentence):
                self.frame.append(None)
                self.sentences.append(made)
            else:
                self.frame.append(made.restore(numbered) if own else sentence)
        self.frame.append(tail)

    def _sentences(self, body: str) -> list[str]:
        """The body in pieces that end where sentences do; quotes and brackets that close one stay with it."""
        places = [0, *(match.end() for match in _END.finditer(body)), len(body)]
        wholes = [body[start:end].strip() for start, end in pairwise(places)]
        wholes = [piece for whole in wholes for piece in _cut(whole, self._longest)]
        return _joined(wholes, self._longest) if self._whole_lines else wholes


def _joined(sentences: Sequence[str], longest: int) -> list[str]:
    """Neighbours together, as long as they fit."""
    joined: list[str] = []
    for sentence in sentences:
        if joined and len(joined[-1]) + len(sentence) < longest:
            joined[-1] += " " + sentence
        else:
            joined.append(sentence)
    return joined


def _cut(sentence: str, longest: int) -> list[str]:
    pieces: list[str] = []
    while len(sentence) > longest:
        place = sentence.rfind(" ", 0, longest)
        place = place if place > 0 else longest
        pieces.append(sentence[:place].strip())
        sentence = sentence[place:].strip()
    return [*pieces, sentence] if sentence else pieces


def _rows_of_tables(lines: Sequence[str]) -> set[int]:
    """The numbers of the lines that are rows of a table: around a line such as ``| --- | --- |``."""
    rows: set[int] = set()
    for number, line in enumerate(lines):
        if number and is_rule_of_table(line) and "|" in lines[number - 1]:
            end = number + 1
            while end < len(lines) and "|" in lines[end]:
                end += 1
            rows |= set(range(number - 1, end))
    return rows
