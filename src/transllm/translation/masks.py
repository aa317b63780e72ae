"""How the pieces that must not be translated are written for a translator that would change them.

A mask is a short text with a number that the translator is known to leave alone. Which form is left alone depends on the translator; the
figures are in docs/translators.md. After the translation each mask must be there exactly once, or the sentence is done again in pieces.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from transllm.translation.protected import FIRST_PLACE, numbers


@dataclass(frozen=True, slots=True)
class MaskForm:
    """One way to write masks.

    Attributes:
        template: a mask, with ``{}`` for its number and something on both sides of it.
        markup: what the translator gets is markup: ``&``, ``<`` and ``>`` of the text are escaped in it.
    """

    template: str
    markup: bool = False

    def write(self, sentence: str) -> str:
        """The sentence with masks for its places."""
        first = self._first(sentence)
        text = html.escape(sentence, quote=False) if self.markup else sentence
        return "".join(self.template.format(first + ord(character) - FIRST_PLACE) if ord(character) >= FIRST_PLACE else character
                       for character in text)

    def read(self, sentence: str, translation: str) -> str | None:
        """The translation with the places of ``sentence`` instead of masks; None if one of them is missing or doubled."""
        first, count = self._first(sentence), sum(ord(character) >= FIRST_PLACE for character in sentence)
        left, right = (re.escape(part).replace(r"\ ", r"\s*") for part in self.template.split("{}"))
        seen: set[int] = set()
        wrong = False

        def place(match: re.Match[str]) -> str:
            nonlocal wrong
            number = int(match[1]) - first
            if not 0 <= number < count:
                wrong |= match[0] not in sentence  # a mask that nobody wrote
                return match[0]
            wrong |= number in seen
            seen.add(number)
            return chr(FIRST_PLACE + number)

        text = re.sub(rf"{left}\s*(\d+)\s*{right}", place, translation)
        if wrong or len(seen) != count:
            return None
        return html.unescape(text) if self.markup else text

    def _first(self, sentence: str) -> int:
        """The number of the first mask: above all small numbers of the sentence, so that none of them looks like one."""
        return 1 + max((int(number) for number in numbers(sentence) if number.isdecimal() and len(number) < 4), default=0)


# For translators that were measured (docs/translators.md), and what their makers document for the others.
WORD = MaskForm("Q{}Z")
BRACKETS = MaskForm("[{}]")
NOTRANSLATE = MaskForm('<span translate="no">{}</span>', markup=True)
XML = MaskForm('<x id="{}"/>', markup=True)
