"""The filter for the original model's answers: which of them are worth becoming chains, and why not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from transllm.data.language import is_language
from transllm.data.near import NearDuplicates
from transllm.data.refusals import is_refusal

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_LETTERS = 20
"""Answers with fewer letters ("Paris.", "42 km") are in no language that an identifier could tell."""
_WORDS = 12
"""Shorter answers ("Yes, it is.") are the same for good reasons."""


@dataclass(slots=True)
class AnswerFilter:
    """Says why an answer is dropped. Call it with the answers in an order that does not change: it remembers them.

    Attributes:
        drop_cut: whether an answer that met the limit is dropped.
        max_repeats: a run of four words that stands more often is a model in a loop.
        check_language: whether answers that are not English are dropped. Code blocks do not count.
        near: the answers before, among which near-duplicates are looked for; None keeps them.
    """

    drop_cut: bool = False
    max_repeats: int = 4
    check_language: bool = True
    near: NearDuplicates | None = field(default_factory=NearDuplicates, repr=False)

    def __call__(self, answer: str, *, cut: bool) -> str | None:
        """The reason to drop the answer, or None."""
        if not answer:
            return "empty"
        if cut and self.drop_cut:
            return "cut"
        if repeats(answer, self.max_repeats):
            return "repetition"
        if self.check_language and not _is_english(answer):
            return "not English"
        # A model refuses in the same words each time; all of them are kept.
        if self.near is not None and len(answer.split()) >= _WORDS and not is_refusal(answer) and self.near.known(answer):
            return "near-duplicate"
        return None


def repeats(text: str, most: int) -> bool:
    """Whether some run of four words stands in the text more than so many times."""
    words = text.split()
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(runs.values(), default=0) > most


def _is_english(answer: str) -> bool:
    text = _CODE.sub(" ", answer)
    # The bar of prompts: names, formulae and quotations make an identifier unsure.
    return sum(map(str.isalpha, text)) < _LETTERS or is_language(text, "en", threshold=0.25)
