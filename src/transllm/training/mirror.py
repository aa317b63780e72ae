"""Recovery by logits: answers of the original model are held against what it would say itself, place by place.

The original is inside: the same weights with the adapter off and the logits cut to the original vocabulary. So the teacher costs a forward
pass over the recovery rows, and no memory. It reads a row as it would have been written without us, without the marker that opens the
answer::

    student   <user> how are you <assistant> <RESPONSE> fine thanks END
    learns                                   ^^^^^^^^^^ by its label: the original does not know it
                                                        ^^^^ ^^^^^^ ^^^ from the original's distribution at ...
    teacher   <user> how are you <assistant> fine thanks END
                                 ^^^^^^^^^^^ ^^^^ ^^^^^^ ... these places

Shapes: T tokens of a packed row, N places that are held against the original, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transllm.lanes import Lanes
from transllm.model.adapter import Adapted
from transllm.model.attention import Documents
from transllm.recipe.schema import Logits


@dataclass(frozen=True, slots=True)
class Recovery:
    """What is learned from the original's answers.

    Attributes:
        by: their words, the original's distribution at each of them, or both.
        logits: how the distributions are compared.
        stop_ids: what ends an answer that the student writes itself.
    """

    by: Literal["text", "logits", "both"] = "text"
    logits: Logits = field(default_factory=Logits)
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A recovery row whose answer the student wrote. As long as the row that it stands for: what is left at its end is not trained.

    Attributes:
        ids, trained: as in ``EncodedRow``.
        n_bytes: of the labels' text, which is none: nobody is to learn the student's words, only what the original thinks of them.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    n_bytes: int = 0


@dataclass(frozen=True)
class Mirror:
    """A bin's recovery rows as the original reads them.

    Attributes:
        ids_1T: the rows without their openings, in a line.
        documents: where they lie.
        places_N: places of ``ids_1T`` whose next token is compared.
        student_N: the places in the bin that say the same token.
        more: how many of them have no label of their own.
    """

    ids_1T: Tensor
    documents: Documents
    places_N: Tensor
    student_N: Tensor
    more: int


def mirror_of(rows: Sequence[tuple[int, NDArray[Any], NDArray[np.bool_], bool]], *, starts: NDArray[np.int64],
              device: torch.device) -> Mirror:
    """The mirror of a bin.

    Args:
        rows: of each recovery row its number in the bin, ids, mask of what is trained, and whether its words are labels too.
        starts: where each row of the bin begins.
    """
    ids, places, student = [], [], []
    more = start = 0
    for number, row, mask, labelled in rows:
        opening = int(mask.argmax())
        said = np.flatnonzero(mask)[1:]  # a token at t is foretold at t - 1; the original has one token less before it
        ids.append(np.delete(row, opening))
        places.append(start + said - 2)
        student.append(starts[number] + said - 1)
        more += 0 if labelled else len(said)
        start += len(row) - 1
    return Mirror(
        ids_1T=torch.from_numpy(np.concatenate(ids)).long().unsqueeze(0).to(device),
        documents=Documents([len(row) for row in ids], device=device),
        places_N=torch.from_numpy(np.concatenate(places)).long().to(device),
        student_N=torch.from_numpy(np.concatenate(student)).long().to(device), more=more)


@contextlib.contextmanager
def _undisturbed(adapted: Adapted) -> Iterator[None]:
    """The original as it answers: adapter off, nothing dropped at random."""
    training = adapted.peft.training
    adapted.peft.eval()
    try:
        with adapted.original():
            yield
    finally:
        adapted.peft.train(training)


def hear(adapted: Adapted, mirrors: Sequence[Mirror | None], *, run_lanes: Lanes | None) -> list[Tensor | None]:
    """The original's hidden states at the places of each bin (N, D); None for a bin without any.

    All bins of a step before the student sees the first: whether the adapter is on is one switch for all lanes.
    """
    # Weights that processes lend each other come and go with a pass: all processes must make as many, with or without a mirror.
    if not adapted.sharded and not any(mirrors):
        return [None] * len(mirrors)

    def lane(mirror: Mirror | None) -> Tensor | None:
        with torch.no_grad():  # a thread's own
            if mirror is None:
                if adapted.sharded:
                    adapted.hidden(torch.zeros(1, 1, dtype=torch.long, device=adapted.device), Documents([1], device=adapted.device))
                return None
            return adapted.hidden(mirror.ids_1T, mirror.documents)[0].index_select(0, mirror.places_N)

    with _undisturbed(adapted):
        return list((run_lanes or map)(lane, mirrors))
