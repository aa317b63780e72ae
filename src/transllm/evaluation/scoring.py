"""Score text with a model: bits per byte of documents, and the divergence from the original model on its own answers.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from transllm.evaluation.metrics import bits_per_byte
from transllm.model import Documents, hidden_states
from transllm.training.loss import final_logits, summed_cross_entropy
from transllm.training.packing import packed
from transllm.training.rows import EncodedRow

_BATCH_TOKENS = 2048
SCORED_BYTES = 1000
"""Documents are scored on their first so many bytes: whole ones would cost minutes and say the same."""


def document_rows(texts: Iterable[str], *, encode: Callable[[list[str]], list[list[int]]], start: int, end: int,
                  longest: int) -> Iterator[EncodedRow]:
    """Rows of plain documents: a start token, the text, an end token; long ones are cut into rows, none is dropped.

    Args:
        encode: texts to ids.
        start: the token before each row, which says the language; not learned.
        end: the token after a document.
        longest: tokens of a row.
    """
    for text in texts:
        ids = [*encode([text])[0], end]
        share = len(text.encode()) / len(ids)
        for place in range(0, len(ids), longest - 1):
            piece = ids[place: place + longest - 1]
            yield EncodedRow([start, *piece], [False] + [True] * len(piece), round(share * len(piece)))


def text_bits_per_byte(model: PreTrainedModel, texts: Sequence[str], *, encode: Callable[[list[str]], list[list[int]]], start: int,
                       head: nn.Module | None = None) -> float:
    """Bits per byte of texts, each after a start token: comparable across vocabularies.

    Args:
        model: a decoder with packed attention enabled (or one that packs by positions).
        encode: texts to ids, in the vocabulary that this model reads them with.
        start: the token before each text; every byte of the text is scored.
        head: the projection; None is the model's own.
    """
    rows = [EncodedRow([start, *ids], [False] + [True] * len(ids), len(text.encode()))
            for text, ids in zip(texts, encode(list(texts)), strict=True)]
    return rows_bits_per_byte(model, rows, head=head)


@torch.no_grad()
def rows_bits_per_byte(model: PreTrainedModel, rows: Sequence[EncodedRow], *, head: nn.Module | None = None) -> float:
    """Bits per byte of the trained part of rows, each given what stands before it in its row.

    Args:
        model: a decoder with packed attention enabled (or one that packs by positions).
        head: the projection; None is the model's own.
    """
    head = head or model.get_output_embeddings()
    finish = final_logits(model.config)
    nats, n_bytes = 0.0, 0
    training = model.training
    model.eval()
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for part in _batches([len(row.ids) for row in ordered]):
        chosen = ordered[part]
        batch = packed(chosen, device=model.device)
        hidden = hidden_states(model, batch.ids_1T, batch.documents)
        nats += float(summed_cross_entropy(hidden[0], batch.labels_T, head=head, finish=finish))
        n_bytes += batch.n_bytes
    model.train(training)
    return bits_per_byte(nats, n_bytes)


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model is from the original on the original's own answers.

    Attributes:
        kl: mean KL(original || model) in nats a token, over the original vocabulary.
        same: share of positions where both would write the same next token.
    """

    kl: float
    same: float


@torch.no_grad()
def divergence(original: PreTrainedModel, model: PreTrainedModel, answers: Sequence[tuple[list[int], list[int]]], *, vocabulary: int,
               opening: Sequence[int]) -> Divergence:
    """Compare two models on answers that the original wrote.

    Args:
        original: its logits are the reference.
        model: the model to measure.
        answers: (prompt ids, answer ids with the end of turn).
        vocabulary: ids below are compared; the model's probability is renormalised over them.
        opening: what the model writes before an English answer (its marker), which the original does not.
    """
    kl, same, count = 0.0, 0, 0
    lengths = [len(answer) for _, answer in answers]
    found = _answer_logits(model, [[*prompt, *opening, *answer] for prompt, answer in answers], lengths, vocabulary)
    expected = _answer_logits(original, [[*prompt, *answer] for prompt, answer in answers], lengths, vocabulary)
    for own, reference in zip(found, expected, strict=True):
        kl += float((reference.exp() * (reference - own)).sum())
        same += int((reference.argmax(-1) == own.argmax(-1)).sum())
        count += len(own)
    return Divergence(kl / count, same / count)


def held_out_texts(rows: Sequence[dict[str, str]], count: int) -> list[str]:
    """Beginnings of held-out documents, mixed over sources, the same ones every time."""
    order = sorted(rows, key=lambda row: row["key"])
    random.Random(0).shuffle(order)
    texts = []
    for row in order[:count]:
        raw = row["text"].encode()[:SCORED_BYTES]
        texts.append(raw.decode("utf-8", "ignore"))
    return texts


def _answer_logits(model: PreTrainedModel, rows: Sequence[list[int]], answers: Sequence[int], vocabulary: int) -> Iterator[torch.Tensor]:
    """For each row, log probabilities over the original vocabulary at each place of its answer, the row's end. (answer, vocabulary)

    Hidden states are computed for many rows at once, logits for one row at a time: those of all would not fit in memory.
    """
    finish = final_logits(model.config)
    left = iter(answers)
    for part in _batches([len(ids) for ids in rows]):
        batch = rows[part]
        lengths = [len(ids) for ids in batch]
        ids_T = torch.tensor([token for ids in batch for token in ids], device=model.device)
        hidden_TD = hidden_states(model, ids_T.unsqueeze(0), Documents(lengths, device=model.device))[0]
        for row_LD in hidden_TD.split(lengths):
            logits = finish(model.get_output_embeddings()(row_LD[-next(left) - 1: -1]))
            yield logits[:, :vocabulary].float().log_softmax(-1)


def _batches(lengths: Sequence[int]) -> Iterator[slice]:
    """Runs of neighbouring rows of at most ``_BATCH_TOKENS`` tokens."""
    start = tokens = 0
    for place, length in enumerate(lengths):
        if place > start and tokens + length > _BATCH_TOKENS:
            yield slice(start, place)
            start, tokens = place, 0
        tokens += length
    if lengths:
        yield slice(start, len(lengths))
