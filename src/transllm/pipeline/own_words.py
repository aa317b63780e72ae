"""What the model that *bitext* left says at each word of the translations that it made: drawn tokens, for *finetune* to learn.

A translation that a model wrote and learns as text makes it surer of what it happened to choose, and by and by it translates worse
(docs/results). Learned from its distribution it changes nothing that *bitext* taught, in a chain as in a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transllm.model import Documents, choose_attention, compute_dtype, default_device, hidden_states, load_merged, place
from transllm.pipeline.stage import Context
from transllm.training import DRAWS, Drawn, EncodedRow, final_logits

_ROWS = 256
_BATCH_TOKENS = 2048
_PLACES = 256


@dataclass(frozen=True, slots=True)
class Reading:
    """A translation in a row, as the model after *bitext* reads it.

    Attributes:
        ids: ``<EN> sentence <XX> translation``, up to the last token that is learned so.
        count: how many these are, the last of ``ids``.
        at: place of the first of them in the row.
    """

    ids: Sequence[int]
    count: int
    at: int


@dataclass(frozen=True, slots=True)
class Mixed:
    """A row of the mixture.

    Attributes:
        kind: chain, recovery ...
        row: what is learned.
        reading: the part of it that is to be learned from a distribution, or None.
    """

    kind: str
    row: EncodedRow
    reading: Reading | None = None


def with_own_words(mixed: Iterable[Mixed], context: Context) -> Iterator[Mixed]:
    """The same rows in the same order, those that have a reading with what was drawn for it. The model is loaded if there is any."""
    left, model = iter(mixed), None
    while some := list(islice(left, _ROWS)):
        readings = [one.reading for one in some if one.reading is not None]
        if readings and model is None:
            model = _Model(context)
        drawn = model.draw(readings) if model is not None else iter(())
        for one in some:
            yield one if one.reading is None else replace(one, row=replace(one.row, drawn=Drawn(one.reading.at, next(drawn))))


class _Model:
    """The model after *bitext*, and the random numbers of a run."""

    def __init__(self, context: Context) -> None:
        device = default_device()
        dtype = compute_dtype(context.recipe.training.precision, device)
        model, _ = load_merged(context.run / "extend", context.run / "bitext", dtype=dtype)
        self._model = place(model, device).eval()
        choose_attention(self._model)
        self._size = context.spans.size
        self._finish = final_logits(self._model.config)
        self._random = torch.Generator(device).manual_seed(context.recipe.seed)

    @torch.inference_mode()
    def draw(self, readings: Sequence[Reading]) -> Iterator[NDArray[np.int32]]:
        """For each, (count, DRAWS) tokens."""
        start = 0
        while start < len(readings):
            tokens, end = 0, start
            while end < len(readings) and (end == start or tokens + len(readings[end].ids) <= _BATCH_TOKENS):
                tokens += len(readings[end].ids)
                end += 1
            yield from self._batch(readings[start:end])
            start = end

    def _batch(self, readings: Sequence[Reading]) -> Sequence[NDArray[np.int32]]:
        head: Any = self._model.get_output_embeddings()
        device = self._model.device
        lengths = [len(reading.ids) for reading in readings]
        ids = torch.tensor([token for reading in readings for token in reading.ids], device=device)
        hidden_TD = hidden_states(self._model, ids.unsqueeze(0), Documents(lengths, device=device))[0]
        # A token is foretold one place before it.
        states_SD = torch.cat([row[-reading.count - 1: -1] for row, reading in zip(hidden_TD.split(lengths), readings, strict=True)])
        drawn = torch.cat([torch.multinomial(self._finish(head(part))[:, : self._size].float().softmax(-1), DRAWS, replacement=True,
                                             generator=self._random) for part in states_SD.split(_PLACES)])
        return [part.to(torch.int32).cpu().numpy() for part in drawn.split([reading.count for reading in readings])]
