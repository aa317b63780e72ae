"""What a translator is, and what each kind of one brings.

A kind (the model itself, Apertium, CTranslate2, ...) translates single sentences: ``SentenceTranslator``. ``TextTranslator`` (structure.py)
makes of any of them a ``Translator`` of whole texts, whose structure survives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from transllm.progress import Progress
from transllm.translation.masks import MaskForm

Direction = Literal["english", "target"]


@dataclass(frozen=True, slots=True)
class Translation:
    """One translated text.

    Attributes:
        text: the translation.
        cut: whether any part of it ran into the length limit.
        lost: what of the text's structure is not in the translation as it was (code, links, numbers, placeholders, marks of lists and
            tables), what is there and was not in the text, and sentences that came back empty. Nothing should be learned from such a
            translation.
    """

    text: str
    cut: bool
    lost: tuple[str, ...] = ()


class Translator(Protocol):
    """Anything that translates texts between English and the target language."""

    name: str

    def translate(self, texts: Sequence[str], *, to: Direction, progress: Progress, label: str) -> list[Translation]:
        """Translate texts of any length, in order. Line breaks stay where they are."""
        ...

    def close(self) -> None:
        """Give back memory, processes and connections."""
        ...


class SentenceTranslator(Protocol):
    """What a kind of translator brings.

    Attributes:
        name: as the recipe names it.
        masks: how the pieces that must not be translated are written for it; None: a sentence is cut at them.
        longest: characters of what it gets at once.
        whole_lines: it gets lines, with several sentences, for their context; else one sentence at a time.
        identity: all that decides its translations (weights, settings, version of the code), for the cache. Plain values.
    """

    name: str
    masks: MaskForm | None
    longest: int
    whole_lines: bool
    identity: dict[str, Any]

    def sentences(self, sentences: Sequence[str], *, to: Direction) -> Iterator[tuple[int, Translation]]:
        """Translate sentences or lines (without line breaks, not blank, all different).

        Yields:
            The number of each and its translation, when it is done, in any order.

        Raises:
            ModelError: the translator cannot do it, or failed for good.
        """
        ...

    def close(self) -> None:
        """Give back memory, processes and connections."""
        ...
