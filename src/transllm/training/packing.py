"""Pack rows into bins of a fixed number of tokens, best fit first, and cut the bins into steps.

No row is split and none is dropped; the order is a function of the seed alone, so that position = step.
"""

from __future__ import annotations

import bisect
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transllm.errors import TrainingError
from transllm.model.attention import Documents
from transllm.training.beginnings import shared_beginnings
from transllm.training.loss import IGNORE, SoftLabels
from transllm.training.mirror import Mirror, mirror_of
from transllm.training.rows import Drawn, EncodedRow, Rows

# Rows are sorted within windows of so many, so that packing a large corpus needs little memory and stays nearly random.
_WINDOW = 4096


@dataclass(frozen=True)
class Packed:
    """One bin as the model takes it.

    Attributes:
        ids_1T: token ids of all documents in a line; a beginning that several share stands there once.
        labels_T: the next token where it is trained, else IGNORE.
        documents: where documents lie.
        labels: how many labels there are.
        n_bytes: bytes of text that the labels stand for.
        learned: places from which something is learned: by a label, from the original, or both.
        mirror: which places are held against the original model; None: none is.
        soft: the labels in whose place drawn tokens are learned; None: there are none.
    """

    ids_1T: Tensor
    labels_T: Tensor
    documents: Documents
    labels: int
    n_bytes: int
    learned: int
    mirror: Mirror | None = None
    soft: SoftLabels | None = None

    @property
    def shared(self) -> int:
        """Tokens of the rows that are not in ``ids_1T`` again."""
        return len(self.documents.places_W) - self.ids_1T.shape[1]


class Bins(Sequence[list[int]]):
    """Row numbers of each bin, in training order, in two arrays: eight bytes a row, however many there are.

    Args:
        rows: (rows,) row numbers of all bins.
        ends: (bins,) where each bin ends in them.
    """

    def __init__(self, rows: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self.rows, self.ends = rows, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return cast(list[int], self.rows[self.ends[number - 1] if number else 0: self.ends[number]].tolist())

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each bin."""
        return np.diff(self.ends, prepend=0)

    def ordered(self, order: NDArray[np.int64]) -> Bins:
        """The bins of these numbers, in this order."""
        sizes = self.sizes[order]
        ends = np.cumsum(sizes)
        starts = (self.ends - self.sizes)[order]
        return Bins(self.rows[np.repeat(starts - (ends - sizes), sizes) + np.arange(sizes.sum())], ends)


def pack(lengths: NDArray[np.int64], *, capacity: int, seed: int) -> Bins:
    """Share rows out among bins.

    Args:
        lengths: tokens of each row.
        capacity: tokens of a bin.

    Raises:
        TrainingError: a row is longer than a bin.
    """
    longest = int(lengths.max(initial=0))
    if longest > capacity:
        raise TrainingError(f"A row of {longest} tokens does not fit in 'micro_tokens' = {capacity}. Raise it, or lower 'sequence_length'.")
    # The old generator's numbers are frozen: a run goes on under another version of numpy.
    draw, shuffle = np.random.RandomState(seed), random.Random(seed)
    order = draw.permutation(len(lengths))
    rows, sizes = array("q"), array("q")
    for start in range(0, len(order), _WINDOW):
        window = order[start: start + _WINDOW]
        of_window = lengths[window]
        falling = np.argsort(-of_window, kind="stable")
        for members in _best_fit(window[falling].tolist(), of_window[falling].tolist(), capacity):
            shuffle.shuffle(members)
            rows.extend(members)
            sizes.append(len(members))
    bins = Bins(np.frombuffer(rows, dtype=np.int64), np.cumsum(np.frombuffer(sizes, dtype=np.int64)))
    return bins.ordered(draw.permutation(len(bins)))


def _best_fit(rows: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Each row, longest first, goes into the fullest bin that still has room."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for row, length in zip(rows, lengths, strict=True):
        place = bisect.bisect_left(room, (length, -1))
        if place < len(room):
            free, number = room.pop(place)
        else:
            free, number = capacity, len(bins)
            bins.append([])
        bins[number].append(row)
        bisect.insort(room, (free - length, number))
    return bins


def batches_of(rows: Rows, bins: Sequence[Sequence[int]], *, device: torch.device, by: str = "text",
               rewritten: Mapping[int, EncodedRow] | None = None) -> Iterator[Packed]:
    """Build bins one at a time.

    Args:
        by: what is learned from the original's words; see ``Recovery``.
        rewritten: by row number, rows that take the place of others (``own_samples.py``). Nobody is to learn their words, only what the
            original thinks of them.
    """
    own = rewritten or {}
    for members in bins:
        yield packed([own[number] if number in own else rows.view(number) for number in members], device=device, by=by,
                     unlabelled=[place for place, number in enumerate(members) if number in own])


def packed(rows: Sequence[EncodedRow], *, device: torch.device, by: str = "text", unlabelled: Sequence[int] = ()) -> Packed:
    """Rows in a line, what several begin with once.

    Args:
        by: as in ``batches_of``.
        unlabelled: rows whose words by the original are no labels, whatever ``by`` says.
    """
    ids = [np.asarray(row.ids) for row in rows]
    masks = [np.array(row.trained, dtype=np.bool_) for row in rows]
    # A token is foretold one place before it. Who learns nothing is there to be read to its end.
    shared = shared_beginnings(ids, [int(mask[1:].argmax()) if mask[1:].any() else len(mask) - 1 for mask in masks])
    documents = Documents([len(row) for row in ids], shared=shared, device=device)
    starts = np.cumsum([0, *map(len, ids)])
    learned = sum(int(mask[1:].sum()) for mask in masks)
    n_bytes = sum(row.n_bytes for row in rows)
    said = [(place, row.by_original) for place, row in enumerate(rows) if by != "text" and row.by_original is not None]
    for place, words in said:
        if by == "logits" or place in unlabelled:
            masks[place][words.at: words.at + words.words] = False
            n_bytes -= words.n_bytes
    labels = [np.append(np.where(mask[1:], row[1:], IGNORE), IGNORE) for row, mask in zip(ids, masks, strict=True)]
    labels_W = torch.from_numpy(np.concatenate(labels)).long()
    return Packed(
        ids_1T=torch.from_numpy(np.concatenate(ids)).long().to(device)[documents.own_T].unsqueeze(0),
        labels_T=labels_W.to(device)[documents.own_T],
        documents=documents,
        labels=int((labels_W != IGNORE).sum()),
        n_bytes=n_bytes,
        learned=learned,
        soft=_soft([(int(starts[place]), row.drawn) for place, row in enumerate(rows) if row.drawn is not None], documents, device),
        mirror=mirror_of([(int(starts[place]), words) for place, words in said], documents, device=device) if said else None,
    )


def _soft(drawn: Sequence[tuple[int, Drawn]], documents: Documents, device: torch.device) -> SoftLabels | None:
    """Where each row begins in the line of all, with its drawn tokens, as places of the bin: a token is foretold one place before it."""
    if not drawn:
        return None
    which_W = np.full(len(documents.places_W), -1, dtype=np.int64)
    count = 0
    for start, one in drawn:
        first = start + one.at - 1
        which_W[first: first + len(one.tokens)] = np.arange(count, count + len(one.tokens))
        count += len(one.tokens)
    tokens = np.concatenate([one.tokens for _, one in drawn])
    return SoftLabels(torch.from_numpy(which_W).to(device)[documents.own_T], torch.from_numpy(tokens).long().to(device))
