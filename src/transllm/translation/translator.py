"""What a translator is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from transllm.progress import Progress


@dataclass(frozen=True, slots=True)
class Translation:
    """One translated text.

    Attributes:
        text: the translation.
        cut: whether any part of it ran into the length limit.
    """

    text: str
    cut: bool


class Translator(Protocol):
    """Anything that translates between English and the target language."""

    name: str

    def translate(self, texts: Sequence[str], *, to: Literal["english", "target"], progress: Progress, label: str) -> list[Translation]:
        """Translate texts of any length, in order. Line breaks stay where they are."""
        ...
