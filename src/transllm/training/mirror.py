"""Recovery by logits: words of the original model are held against what it would say itself, place by place.

The original is inside: the same weights with the adapter off and the logits cut to the original vocabulary. So the teacher costs a forward
pass over what it said, and no memory. It reads an English conversation as it would have been written without us::

    recovery  <user> how are you <assistant> <RESPONSE> fine thanks END
    chain     <user> que tal <assistant> <EN> how are you <RESPONSE> fine thanks <ES> bien gracias END
    original  <user> how are you <assistant> fine thanks END

``fine`` and ``thanks`` (and the recovery row's END) are learned from its distribution at the same words, all else by labels.

Shapes: T tokens of a packed row, N places that are held against the original, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from transllm.lanes import Lanes
from transllm.model.adapter import Adapted
from transllm.model.attention import Documents
from transllm.recipe.schema import Logits
from transllm.training.beginnings import shared_beginnings
from transllm.training.rows import ByOriginal


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


@dataclass(frozen=True)
class Mirror:
    """What the original said in a bin, as it read it.

    Attributes:
        ids_1T: its conversations in a line.
        documents: where they lie.
        places_N: places of ``ids_1T`` whose next token is compared.
        student_N: the places in the bin that say the same token.
    """

    ids_1T: Tensor
    documents: Documents
    places_N: Tensor
    student_N: Tensor


def mirror_of(said: Sequence[tuple[int, ByOriginal]], bin_documents: Documents, *, device: torch.device) -> Mirror:
    """The mirror of a bin, from where each row with words of the original begins in the line of all its rows, and these words. It shares
    beginnings too."""
    ids = [np.asarray(words.ids) for _, words in said]
    shared = shared_beginnings(ids, [len(words.ids) - words.words - 1 for _, words in said])
    documents = Documents([len(row) for row in ids], shared=shared, device=device)
    places, student, end = [], [], 0
    for start, words in said:
        order = np.arange(words.words)
        end += len(words.ids)
        places.append(end - words.words - 1 + order)  # a token is foretold one place before it
        student.append(start + words.at - 1 + order)
    return Mirror(
        ids_1T=torch.from_numpy(np.concatenate(ids)).long().to(device)[documents.own_T].unsqueeze(0),
        documents=documents,
        places_N=documents.places_W[torch.from_numpy(np.concatenate(places)).long().to(device)],
        student_N=bin_documents.places_W[torch.from_numpy(np.concatenate(student)).long().to(device)])


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
    # Where all weights train there is none.
    if not any(mirrors) and (adapted.shares_trained or not adapted.sharded):
        return [None] * len(mirrors)

    def lane(mirror: Mirror | None) -> Tensor | None:
        with torch.no_grad():  # a thread's own
            if mirror is None:
                if adapted.sharded:
                    adapted.pass_by()
                return None
            return adapted.hidden(mirror.ids_1T, mirror.documents)[0].index_select(0, mirror.places_N)

    with _undisturbed(adapted):
        return list((run_lanes or map)(lane, mirrors))
