"""How fast two tokenizers cut the same text, measured in turn: a busy machine is busy for both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transllm.tokenizer.backend import plain_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Throughput:
    """Characters a second of each round."""

    before: list[float]
    after: list[float]

    @property
    def ratios(self) -> list[float]:
        """After over before, round by round, sorted."""
        return sorted(after / before for before, after in zip(self.before, self.after, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles of the ratios; the ends where there are fewer than four rounds."""
        ratios = self.ratios
        quarter = len(ratios) // 4
        return ratios[quarter], ratios[-1 - quarter]


def throughput(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, texts: Sequence[str], *, rounds: int = 5) -> Throughput:
    """Cut the texts with each tokenizer, in turn, ``rounds`` times after one that does not count.

    Each round goes the other way round (A B, B A), so that neither is always the second.
    """
    characters = sum(map(len, texts))
    pair = (plain_backend(before), plain_backend(after))
    speeds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            seconds = _seconds(pair[which], texts)
            if number:
                speeds[which].append(characters / seconds)
    return Throughput(*speeds)


def _seconds(backend: Tokenizer, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return time.perf_counter() - started
