"""A small embedding of all tokens, old and new, trained here on the run's own text.

FOCUS and matching pursuit ask which old tokens a new one is like, and the model itself cannot say: it never saw the new one. The
papers bring an answer from outside (fastText vectors, another model's embedding). Here nothing is downloaded: tokens that keep the
same company get like vectors, by positive pointwise mutual information and a truncated decomposition, which is as good as trained
word vectors on little text (Levy, Goldberg & Dagan, "Improving Distributional Similarity", TACL 2015). Words and contexts are the
same tokens, and only positive eigenvalues are kept, which is their "w + c": two tokens are alike if they keep the same company
*or keep each other's*. Without it a word and its translation, each the other's best company, would be unlike.

Company across languages comes from sentence pairs: :func:`interleaved` lays both sides into one document. Without pairs, old and
new tokens share only the company of digits, signs, names and of what the original vocabulary already had of the language.

Shapes: M tokens that occur often enough, E pairs of them that are met, d dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DIMENSIONS = 128
_WINDOW = 5  # tokens on either side
_MIN_COUNT = 5  # rarer tokens get no vector: of fewer neighbours nothing is learned
_MIN_TOGETHER = 2  # pairs seen once are two thirds of all pairs, and mostly chance
_SMOOTHING = 0.75  # of counts, so that rare company does not weigh most (the same paper)
_NOTHING = 1e-6  # shorter vectors are rounding: such a token keeps company with all alike
_MORE, _ROUNDS = 16, 4  # of the search for the eigenvectors: dimensions more than needed, and products (Halko et al., arXiv 0909.4061)


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """Vectors of the tokens that occur often enough and keep some company more than other.

    Attributes:
        ids_M: their ids, ascending.
        vectors_Md: their vectors, of length 1.
    """

    ids_M: NDArray[np.int64]
    vectors_Md: Tensor

    def split(self, new: Collection[int], old: Collection[int]) -> tuple[list[int], Tensor, list[int], Tensor]:
        """(new ids, their vectors, shared ids, theirs): of the new and of the old tokens those that have a vector. Ids that are neither,
        such as markers, are left out."""
        new_M, old_M = (np.isin(self.ids_M, np.fromiter(ids, np.int64, len(ids))) for ids in (new, old))
        return (self.ids_M[new_M].tolist(), self.vectors_Md[torch.from_numpy(new_M)],
                self.ids_M[old_M].tolist(), self.vectors_Md[torch.from_numpy(old_M)])


def interleaved(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Both sides of a sentence pair as one document, each token at its relative place: what corresponds comes to stand close
    (the length-ratio shuffle of Vulić & Moens, ACL 2015)."""
    places = [((place + 0.5) / len(side), token) for side in (left, right) for place, token in enumerate(side)]
    return [token for _, token in sorted(places, key=lambda item: item[0])]


def train_auxiliary(documents: Iterable[Sequence[int]], *, seed: int, dimensions: int = DIMENSIONS) -> Auxiliary:
    """Vectors for all tokens of the documents that occur often enough; some five seconds for a million tokens on one core.

    Args:
        documents: token ids; neighbours are looked for inside a document.
        seed: of the decomposition's random start.
        dimensions: at most; fewer where there are fewer tokens.
    """
    lists = [np.asarray(document, dtype=np.int64) for document in documents]
    flat = np.concatenate([np.empty(0, np.int64), *lists])
    document = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
    ids_M, place, counts = np.unique(flat, return_inverse=True, return_counts=True)
    frequent = counts >= _MIN_COUNT
    ids_M = ids_M[frequent]
    kept = frequent[place]
    compact = (np.cumsum(frequent) - 1)[place[kept]]
    left, right, together = _neighbours(compact, document[kept], len(ids_M))
    if not len(left):
        return Auxiliary(ids_M[:0], torch.empty(0, dimensions))
    vectors_Md = _decomposed(_ppmi(left, right, together, len(ids_M)), dimensions, seed)
    length_M = vectors_Md.norm(dim=1)
    told_M = length_M > _NOTHING
    return Auxiliary(ids_M[told_M.numpy()], vectors_Md[told_M] / length_M[told_M].unsqueeze(1))


def _neighbours(tokens: NDArray[np.int64], document: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], ...]:
    """(left, right, how often) of all pairs of tokens inside a window, each pair both ways round. (E,) each"""
    keys = [np.empty(0, np.int64)]
    for gap in range(1, _WINDOW + 1):
        same = document[:-gap] == document[gap:]
        keys.append(tokens[:-gap][same] * size + tokens[gap:][same])
    pairs, times = np.unique(np.concatenate(keys), return_counts=True)
    left, right = np.divmod(pairs, max(1, size))
    both, where = np.unique(np.concatenate([pairs, right * size + left]), return_inverse=True)
    together = np.bincount(where, weights=np.concatenate([times, times]), minlength=len(both)).astype(np.int64)
    seen = together >= _MIN_TOGETHER
    left, right = np.divmod(both[seen], max(1, size))
    return left, right, together[seen]


def _ppmi(left: NDArray[np.int64], right: NDArray[np.int64], together: NDArray[np.int64], size: int) -> Tensor:
    """log p(one, other) / p(one) p(other), where that is above 0. Sparse (M, M), symmetric.

    The paper smooths the counts of the contexts; here either side is context of the other, so each gets half of it.
    """
    counts_M = np.maximum(1, np.bincount(left, weights=together, minlength=size))
    power = (1 + _SMOOTHING) / 2
    information = np.log(together) + np.log((counts_M ** _SMOOTHING).sum()) - power * np.log(counts_M[left] * counts_M[right])
    used = information > 0
    indices = torch.from_numpy(np.stack([left[used], right[used]]))
    values = torch.from_numpy(information[used].astype(np.float32))
    return torch.sparse_coo_tensor(indices, values, (size, size), check_invariants=True).coalesce()


def _decomposed(matrix_MM: Tensor, dimensions: int, seed: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues above 0, times their square roots, by a randomised range finder. (M, M) -> (M, d)"""
    width = min(2 * dimensions + _MORE, len(matrix_MM))  # about half of the large eigenvalues are negative
    basis_Mw = torch.randn(len(matrix_MM), width, generator=torch.Generator().manual_seed(seed))
    for _ in range(_ROUNDS):
        basis_Mw = torch.linalg.qr(torch.sparse.mm(matrix_MM, basis_Mw)).Q
    values_w, vectors_ww = torch.linalg.eigh(basis_Mw.T @ torch.sparse.mm(matrix_MM, basis_Mw))  # ascending
    vectors_Md: Tensor = basis_Mw @ vectors_ww[:, -dimensions:] * values_w[-dimensions:].clamp_min(0).sqrt()
    return vectors_Md
