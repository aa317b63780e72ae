"""A small embedding of all tokens, old and new, trained here in seconds on the run's own text.

FOCUS and matching pursuit ask which old tokens a new one is like, and the model itself cannot say: it never saw the new one. The
papers bring an answer from outside (fastText vectors, another model's embedding). Here nothing is downloaded: tokens that keep the
same company get like vectors, by positive pointwise mutual information and a truncated singular value decomposition, which is as
good as trained word vectors on little text (Levy, Goldberg & Dagan, "Improving Distributional Similarity", TACL 2015).

Company across languages comes from sentence pairs: :func:`interleaved` lays both sides into one document. Without pairs, old and
new tokens share only the company of digits, signs, names and of what the original vocabulary already had of the language.

Shapes: M tokens with a vector, C of them as contexts, E entries of the sparse matrix, d dimensions.
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
_CONTEXTS = 8192  # the most frequent tokens
_SMOOTHING = 0.75  # of the contexts' counts, so that rare contexts do not weigh most (the same paper)
_MORE = 16  # dimensions more than asked for while the decomposition is searched (Halko et al., arXiv 0909.4061)


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """Vectors of the tokens that occur often enough.

    Attributes:
        ids_M: their ids, ascending.
        vectors_Md: their vectors, of length 1.
    """

    ids_M: NDArray[np.int64]
    vectors_Md: Tensor

    def split(self, new: Collection[int]) -> tuple[list[int], Tensor, list[int], Tensor]:
        """(new ids, their vectors, shared ids, theirs). Shared are the tokens that the original model knows too."""
        is_new = np.isin(self.ids_M, np.fromiter(new, np.int64, len(new)))
        mask_M = torch.from_numpy(is_new)
        return self.ids_M[is_new].tolist(), self.vectors_Md[mask_M], self.ids_M[~is_new].tolist(), self.vectors_Md[~mask_M]


def interleaved(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Both sides of a sentence pair as one document, each token at its relative place: what corresponds comes to stand close
    (the length-ratio shuffle of Vulić & Moens, ACL 2015)."""
    places = [((place + 0.5) / len(side), token) for side in (left, right) for place, token in enumerate(side)]
    return [token for _, token in sorted(places, key=lambda item: item[0])]


def train_auxiliary(documents: Iterable[Sequence[int]], *, seed: int, dimensions: int = DIMENSIONS) -> Auxiliary:
    """Vectors for all tokens of the documents that occur often enough; some seconds for a million tokens on one core.

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
    contexts_C = np.argsort(-counts[frequent], kind="stable")[:_CONTEXTS]
    matrix_MC = _ppmi(left, right, together, size=len(ids_M), contexts_C=contexts_C)
    return Auxiliary(ids_M, torch.nn.functional.normalize(_decomposed(matrix_MC, dimensions, seed), dim=1))


def _neighbours(tokens: NDArray[np.int64], document: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], ...]:
    """(left, right, how often) of all pairs of tokens inside a window, each pair both ways round. (E,) each"""
    keys = [tokens[:-gap][same] * size + tokens[gap:][same]
            for gap in range(1, _WINDOW + 1) if (same := document[:-gap] == document[gap:]).any()]
    pairs, times = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_counts=True)
    left, right = np.divmod(pairs, max(1, size))
    both, where = np.unique(np.concatenate([pairs, right * size + left]), return_inverse=True)
    together = np.bincount(where, weights=np.concatenate([times, times]), minlength=len(both)).astype(np.int64)
    seen = together >= _MIN_TOGETHER
    left, right = np.divmod(both[seen], max(1, size))
    return left, right, together[seen]


def _ppmi(left: NDArray[np.int64], right: NDArray[np.int64], together: NDArray[np.int64], *, size: int,
          contexts_C: NDArray[np.int64]) -> Tensor:
    """log p(token, context) / p(token) p(context), where that is above 0. Sparse (M, C), coalesced"""
    tokens_M = np.bincount(left, weights=together, minlength=size)
    smoothed_M = tokens_M ** _SMOOTHING
    information = np.log(together * smoothed_M.sum() / np.maximum(1, tokens_M[left] * smoothed_M[right]))
    column = np.full(size, -1)
    column[contexts_C] = np.arange(len(contexts_C))
    used = (information > 0) & (column[right] >= 0)
    indices = torch.from_numpy(np.stack([left[used], column[right[used]]]))
    values = torch.from_numpy(information[used].astype(np.float32))
    return torch.sparse_coo_tensor(indices, values, (size, len(contexts_C)), check_invariants=True).coalesce()


def _decomposed(matrix_MC: Tensor, dimensions: int, seed: int) -> Tensor:
    """Left singular vectors times the square root of their singular values, by a randomised range finder. (M, C) -> (M, d)"""
    dimensions = min(dimensions, *matrix_MC.shape)
    width = min(dimensions + _MORE, *matrix_MC.shape)
    transposed_CM = matrix_MC.t().coalesce()
    start_Cw = torch.randn(matrix_MC.shape[1], width, generator=torch.Generator().manual_seed(seed))
    basis_Mw = torch.linalg.qr(torch.sparse.mm(matrix_MC, start_Cw)).Q
    for _ in range(2):
        basis_Mw = torch.linalg.qr(torch.sparse.mm(matrix_MC, torch.sparse.mm(transposed_CM, basis_Mw))).Q
    left_ww, singular_w, _ = torch.linalg.svd(torch.sparse.mm(transposed_CM, basis_Mw).T, full_matrices=False)
    return basis_Mw @ left_ww[:, :dimensions] * singular_w[:dimensions].sqrt()
