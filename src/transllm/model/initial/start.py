"""What a method of starting new rows is given, and what it gives.

Every method but *random* finds, for each new piece, a *mixture* of original rows, and finds it without a look at the matrix: a
table of old id -> weight that can be read. The same mixture serves the embedding and an untied head, each mixing its own rows.

Shapes: V old rows, N new rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SubTokens = Mapping[int, Sequence[int]]
"""New id -> the original ids that it stands for, in text order."""
Mixture = Mapping[int, float]
"""Original id -> its weight. Weights need not add up to 1."""


@dataclass(frozen=True, slots=True)
class Known:
    """What methods may look at, in token ids: none of them needs a tokenizer. What is costly is a function: few methods ask for it.

    Attributes:
        pieces: the sub-tokens of each new piece. Markers and pad are none: they always start as the mean of their description.
        n_bytes: original id -> UTF-8 bytes that it stands for; for every original id.
        documents: a sample of text as the extended model reads it, one list of ids a document. A sentence pair is best one document
            (:func:`interleaved`): it is what tells that words of two languages mean the same.
        entries: a bilingual lexicon as (target word in extended ids, English word in original ids).
        seed: of all that is drawn.
    """

    pieces: SubTokens
    n_bytes: Mapping[int, int]
    documents: Callable[[], Iterable[Sequence[int]]]
    entries: Callable[[], Iterable[tuple[Sequence[int], Sequence[int]]]]
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Start:
    """How some new rows start.

    Attributes:
        ids: the new ids that a method knows a start for. All others start as the mean of their sub-tokens.
        rows: one matrix's original rows (V, D) -> the rows of ``ids`` (N, D).
    """

    ids: Sequence[int]
    rows: Callable[[Tensor], Tensor]


def mixed(mixtures: Mapping[int, Mixture]) -> Start:
    """Rows that are mixtures, by their new id."""
    return Start(list(mixtures), lambda old_VD: mix(old_VD, list(mixtures.values())))


def mix(old_VD: Tensor, mixtures: Sequence[Mixture]) -> Tensor:
    """Weighted sums of old rows. Summed in float64, so that rounding to the model's precision is the only rounding. (V, D) -> (N, D)"""
    new_ND = torch.empty(len(mixtures), old_VD.shape[1], dtype=torch.float64, device=old_VD.device)
    for place, mixture in enumerate(mixtures):
        weights_k = torch.tensor(list(mixture.values()), dtype=torch.float64, device=old_VD.device)
        new_ND[place] = weights_k @ old_VD[list(mixture)].double()
    return new_ND


def shares(ids: Sequence[int], weights: Sequence[float]) -> Mixture:
    """Weights scaled to add up to 1; those of an id that stands twice are added up."""
    total = sum(weights)
    mixture: dict[int, float] = {}
    for token_id, weight in zip(ids, weights, strict=True):
        mixture[token_id] = mixture.get(token_id, 0.0) + weight / total
    return mixture
