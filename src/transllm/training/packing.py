"""Pack rows into bins of a fixed number of tokens, best fit first, and cut the bins into steps.

No row is split and none is dropped; the order is a function of the seed alone, so that position = step.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from transllm.errors import TrainingError
from transllm.model.attention import Documents
from transllm.training.loss import IGNORE
from transllm.training.rows import Rows

# Rows are sorted within windows of so many, so that packing a large corpus needs little memory and stays nearly random.
_WINDOW = 4096


@dataclass(frozen=True)
class Packed:
    """One bin as the model takes it.

    Attributes:
        ids_1T: token ids of all documents in a line.
        labels_T: the next token where it is trained, else IGNORE.
        documents: where documents lie.
        labels: how many labels there are.
        n_bytes: bytes of text that the labels stand for.
    """

    ids_1T: Tensor
    labels_T: Tensor
    documents: Documents
    labels: int
    n_bytes: int


def pack(lengths: Sequence[int], *, capacity: int, seed: int) -> list[list[int]]:
    """Row numbers of each bin, in training order.

    Args:
        lengths: tokens of each row.
        capacity: tokens of a bin.

    Raises:
        TrainingError: a row is longer than a bin.
    """
    longest = max(lengths, default=0)
    if longest > capacity:
        raise TrainingError(f"A row of {longest} tokens does not fit in 'micro_tokens' = {capacity}. Raise it, or lower 'sequence_length'.")
    shuffle = random.Random(seed)
    order = list(range(len(lengths)))
    shuffle.shuffle(order)
    bins: list[list[int]] = []
    for start in range(0, len(order), _WINDOW):
        bins.extend(_best_fit(sorted(order[start: start + _WINDOW], key=lambda row: -lengths[row]), lengths, capacity))
    for rows in bins:
        shuffle.shuffle(rows)
    shuffle.shuffle(bins)
    return bins


def _best_fit(order: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Each row, longest first, goes into the fullest bin that still has room."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for row in order:
        place = bisect.bisect_left(room, (lengths[row], -1))
        if place < len(room):
            free, number = room.pop(place)
        else:
            free, number = capacity, len(bins)
            bins.append([])
        bins[number].append(row)
        bisect.insort(room, (free - lengths[row], number))
    return bins


def batches_of(rows: Rows, bins: Sequence[Sequence[int]], *, device: torch.device) -> Iterator[Packed]:
    """Build bins one at a time."""
    for members in bins:
        spans = [slice(int(rows.offsets[number]), int(rows.offsets[number + 1])) for number in members]
        yield packed([rows.ids[span] for span in spans], [rows.trained[span] for span in spans],
                     n_bytes=sum(int(rows.n_bytes[number]) for number in members), device=device)


def packed(ids: Sequence[ArrayLike], trained: Sequence[ArrayLike], *, n_bytes: int, device: torch.device) -> Packed:
    """Rows in a line; for each row its ids, and which of them are learned."""
    rows = [np.asarray(row) for row in ids]
    masks = [np.asarray(mask, dtype=np.bool_) for mask in trained]
    labels = [np.append(np.where(mask[1:], row[1:], IGNORE), IGNORE) for row, mask in zip(rows, masks, strict=True)]
    labels_T = torch.from_numpy(np.concatenate(labels)).long()
    return Packed(
        ids_1T=torch.from_numpy(np.concatenate(rows)).long().unsqueeze(0).to(device),
        labels_T=labels_T.to(device),
        documents=Documents([len(row) for row in rows], device=device),
        labels=int((labels_T != IGNORE).sum()),
        n_bytes=n_bytes,
    )
