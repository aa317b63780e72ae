"""focus: a piece starts as a mixture of the old tokens that are nearest to it in an auxiliary embedding (FOCUS, arXiv 2305.14481).

The paper's auxiliary embedding is fastText trained on the target language; here it is trained on the run's own text
(``auxiliary.py``), so that no hub is needed. As in the paper, sparsemax makes weights of the similarities: most become exactly 0.

Shapes: N new pieces, S shared tokens, k nearest of them, d dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transllm.model.initial.auxiliary import train_auxiliary
from transllm.model.initial.start import Known, Mixture, Start, mixed

_NEAREST = 64  # sparsemax leaves fewer
_AT_ONCE = 512


def focus(known: Known) -> Start:
    """Pieces that occur often enough to have a vector; the others are not started here."""
    new, new_Nd, shared, shared_Sd = train_auxiliary(known.documents(), seed=known.seed).split(known.pieces, known.n_bytes)
    mixtures: dict[int, Mixture] = {}
    for place in range(0, len(new) if shared else 0, _AT_ONCE):
        ids = new[place: place + _AT_ONCE]
        nearest_Nk, weights_Nk = nearest(new_Nd[place: place + _AT_ONCE], shared_Sd)
        for new_id, chosen, weights in zip(ids, nearest_Nk.tolist(), weights_Nk.tolist(), strict=True):
            mixtures[new_id] = {shared[one]: weight for one, weight in zip(chosen, weights, strict=True) if weight > 0}
    return mixed(mixtures)


def nearest(new_Nd: Tensor, shared_Sd: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the nearest shared vectors, nearest first, and their weights, which add up to 1. (N, d), (S, d) -> (N, k), (N, k)"""
    similarity_Nk, places_Nk = (new_Nd @ shared_Sd.T).topk(min(_NEAREST, len(shared_Sd)), dim=1)
    return places_Nk, sparsemax(similarity_Nk.double())


def sparsemax(sorted_Nk: Tensor) -> Tensor:
    """The nearest point of the simplex to each row; rows are sorted, largest first (Martins & Astudillo, arXiv 1602.02068)."""
    sums_Nk = sorted_Nk.cumsum(1)
    counts_k = torch.arange(1, sorted_Nk.shape[1] + 1, dtype=sorted_Nk.dtype, device=sorted_Nk.device)
    support_N1 = (1 + counts_k * sorted_Nk > sums_Nk).sum(1, keepdim=True)
    threshold_N1 = (sums_Nk.gather(1, support_N1 - 1) - 1) / support_N1
    return (sorted_Nk - threshold_N1).clamp_min(0)
