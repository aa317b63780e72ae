"""Cut a text into sentences and put their translations together again; line breaks, list marks and blanks stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# A sentence ends at its mark and the blanks after it (CJK marks need no blank). An abbreviation ends one too early, which costs
# the translator some context and loses nothing: the pieces are joined again.
_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][”’」』）]*\s*")  # noqa: RUF001
# A list mark has a blank after it: "3.5" and "-5" have none.
_LEAD = re.compile(r"^(\s*(?:(?:[-*+•]|\d{1,3}[.)]|#{1,6})\s+)?)(.*?)(\s*)$", re.DOTALL)
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Parts:
    """A text in parts: strings that stay, and places (None) where the sentences go."""

    frame: tuple[str | None, ...]
    sentences: tuple[str, ...]

    def join(self, translated: Sequence[str]) -> str:
        """The text with its sentences replaced, in order."""
        waiting = iter(translated)
        return "".join(next(waiting) if part is None else part for part in self.frame)


def split_text(text: str, *, longest: int = 600) -> Parts:
    """Cut a text for a translator that does best with single sentences.

    Args:
        longest: characters; a longer sentence is cut at white space.
    """
    frame: list[str | None] = []
    sentences: list[str] = []
    for number, line in enumerate(text.split("\n")):
        if number:
            frame.append("\n")
        matched = _LEAD.match(line)
        lead, body, tail = matched.groups() if matched else ("", line, "")
        frame.append(lead)
        for place, sentence in enumerate(piece for whole in _sentences(body) for piece in _cut(whole.strip(), longest)):
            if place:
                frame.append(" ")
            if _LETTER.search(sentence):
                frame.append(None)
                sentences.append(sentence)
            else:
                frame.append(sentence)
        frame.append(tail)
    return Parts(tuple(frame), tuple(sentences))


def _sentences(body: str) -> list[str]:
    """The text in pieces that end where sentences do; quotes and brackets that close one stay with it."""
    places = [0, *(match.end() for match in _END.finditer(body)), len(body)]
    return [body[start:end] for start, end in pairwise(places)]


def _cut(sentence: str, longest: int) -> list[str]:
    pieces: list[str] = []
    while len(sentence) > longest:
        place = sentence.rfind(" ", 0, longest)
        place = place if place > 0 else longest
        pieces.append(sentence[:place].strip())
        sentence = sentence[place:].strip()
    return [*pieces, sentence] if sentence else pieces
