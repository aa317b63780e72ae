"""omp: a piece starts as the sparse combination of old tokens that rebuilds it in an auxiliary embedding (arXiv 2506.06607).

Orthogonal matching pursuit finds few tokens of a *shared basis* whose weighted sum comes closest to the piece's vector in a space
that knows both, and the same weights are then taken of the model's own rows. In the paper that space is a donor model's embedding, and
the basis are the tokens of both models' vocabularies. Here there is no donor: the space is the auxiliary embedding of the run's
own text (``auxiliary.py``), and the basis are the original tokens that occur in that text often enough to have a vector.

Weights can be negative and do not add up to 1: unlike ``focus``, a piece can be "this token, but not in that sense".

Shapes: N new pieces, S shared tokens, k terms, d dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transllm.model.initial.auxiliary import train_auxiliary
from transllm.model.initial.start import Known, Mixture, Start, mixed

TERMS = 8  # an eighth to a sixteenth of the dimensions: with as many terms as dimensions any basis rebuilds anything
_AT_ONCE = 512
_NOTHING = 1e-6  # what is left, and weights, below this are rounding


def omp(known: Known) -> Start:
    """Pieces that occur often enough to have a vector; the others are not started here."""
    new, new_Nd, shared, shared_Sd = train_auxiliary(known.documents(), seed=known.seed).split(known.pieces, known.n_bytes)
    mixtures: dict[int, Mixture] = {}
    for place in range(0, len(new) if shared else 0, _AT_ONCE):
        ids = new[place: place + _AT_ONCE]
        chosen_Nk, weights_Nk = matching_pursuit(new_Nd[place: place + _AT_ONCE], shared_Sd)
        for new_id, chosen, weights in zip(ids, chosen_Nk.tolist(), weights_Nk.tolist(), strict=True):
            mixtures[new_id] = {shared[one]: weight for one, weight in zip(chosen, weights, strict=True) if abs(weight) > _NOTHING}
    return mixed({new_id: mixture for new_id, mixture in mixtures.items() if mixture})


def matching_pursuit(targets_Nd: Tensor, atoms_Sd: Tensor, *, terms: int = TERMS) -> tuple[Tensor, Tensor]:
    """For each target, the places of few atoms and the weights with which they rebuild it. (N, d), (S, d) -> (N, k), (N, k) float64

    Each round takes the atom that is most like what is still missing, then fits the weights of all that were taken anew
    (Pati et al. 1993). Atoms have length 1. All targets go side by side.
    """
    terms = min(terms, *atoms_Sd.shape)
    targets_Nd, single_dS = targets_Nd.double(), atoms_Sd.float().T  # choosing is the costly part and needs no more than float32
    chosen_Nk = torch.empty(len(targets_Nd), 0, dtype=torch.int64)
    weights_Nk = torch.empty(len(targets_Nd), 0, dtype=torch.float64)
    missing_Nd = targets_Nd
    for _ in range(terms):
        likeness_NS = (missing_Nd.float() @ single_dS).abs_().scatter_(1, chosen_Nk, -1.0)  # no atom twice
        chosen_Nk = torch.cat([chosen_Nk, likeness_NS.argmax(1, keepdim=True)], dim=1)
        taken_Nkd = atoms_Sd[chosen_Nk].double()
        weights_Nk = _fitted(targets_Nd, taken_Nkd)
        missing_Nd = targets_Nd - (weights_Nk.unsqueeze(1) @ taken_Nkd).squeeze(1)
    return chosen_Nk, weights_Nk


def _fitted(targets_Nd: Tensor, taken_Nkd: Tensor) -> Tensor:
    """Least squares by the normal equations; the small ridge keeps twins among the atoms from making them singular. -> (N, k)"""
    gram_Nkk = taken_Nkd @ taken_Nkd.mT + 1e-9 * torch.eye(taken_Nkd.shape[1], dtype=torch.float64)
    likeness_Nk1 = taken_Nkd @ targets_Nd.unsqueeze(2)
    weights_Nk1: Tensor = torch.cholesky_solve(likeness_Nk1, torch.linalg.cholesky(gram_Nkk))
    return weights_Nk1.squeeze(2)
