"""What rows of a bin have in common: the system's words and the template before the first question are the same in every conversation, and
stages make several rows of one question.

Such a beginning is computed once a bin (``model.attention.Shared``), with the same result: what stands before all that a row learns is
there for the places after it alone, whose gradients add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from transllm.model.attention import Shared

LEAST = 8
"""Tokens that are worth sharing."""


def shared_beginnings(rows: Sequence[NDArray[np.int32]], most: Sequence[int]) -> list[Shared]:
    """Which row shares how many tokens with which, each after the one that it shares with.

    In the order of a dictionary a row has most in common with the one before it.

    Args:
        rows: token ids.
        most: of each row, tokens at its beginning that may be shared; it learns nothing at their places.
    """
    order = sorted(range(len(rows)), key=lambda number: rows[number].astype(">u4").tobytes())
    found = [Shared(after, before, _in_common(rows[before], rows[after], most[after])) for before, after in pairwise(order)]
    return [one for one in found if one.tokens >= LEAST]


def _in_common(left: NDArray[np.int32], right: NDArray[np.int32], most: int) -> int:
    compared = min(len(left), len(right), most)
    differ = left[:compared] != right[:compared]
    return int(differ.argmax()) if differ.any() else compared
