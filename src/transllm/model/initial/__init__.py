"""How the rows of new pieces start: one method a file, chosen by name (``extend.init`` of a recipe).

A method takes :class:`Known` and gives a :class:`Start` for the pieces that it can say something about; ``grow`` starts all others,
and markers and pad, as the mean of their sub-tokens. Methods touch no old row and draw only from ``Known.seed``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from transllm.errors import ModelError
from transllm.model.initial.auxiliary import interleaved
from transllm.model.initial.focus import focus
from transllm.model.initial.lexicon import lexicon
from transllm.model.initial.mean import mean, mean_of
from transllm.model.initial.omp import omp
from transllm.model.initial.random import random
from transllm.model.initial.start import Known, Mixture, Start, SubTokens
from transllm.model.initial.weighted import by_length, by_position, first

METHODS: Mapping[str, Callable[[Known], Start]] = MappingProxyType({
    "mean": mean, "by_length": by_length, "by_position": by_position, "first": first, "omp": omp, "focus": focus, "lexicon": lexicon,
    "random": random})


def start_of(name: str, known: Known) -> Start:
    """The start that a method gives.

    Raises:
        ModelError: there is no such method.
    """
    if name not in METHODS:
        raise ModelError(f"There is no way '{name}' to start new rows. Choose one of {', '.join(METHODS)}.")
    return METHODS[name](known)


__all__ = ["METHODS", "Known", "Mixture", "Start", "SubTokens", "interleaved", "mean_of", "start_of"]
