"""mean: a piece starts as the mean of the rows of the sub-tokens that it replaces.

Nothing is known of the piece but what the original model saw in its place, and nothing is needed to know it.
"""

from __future__ import annotations

from transllm.model.initial.start import Known, Start, SubTokens, mixed, shares


def mean(known: Known) -> Start:
    """The mean of each piece's sub-tokens."""
    return mean_of(known.pieces)


def mean_of(sub_tokens: SubTokens) -> Start:
    """The mean of any new token's sub-tokens."""
    return mixed({new_id: shares(parts, [1.0] * len(parts)) for new_id, parts in sub_tokens.items()})
