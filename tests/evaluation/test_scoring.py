"""Scores of text against what a plain forward pass of each text by itself says, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from transllm.evaluation import scoring
from transllm.evaluation.scoring import divergence, rows_bits_per_byte, text_bits_per_byte
from transllm.model import enable_packed
from transllm.tokenizer import SpanTokenizer
from transllm.training import EncodedRow

TEXTS = ["Green apples fall from the tall tree.", "No.", "A river runs to the sea and the sea is wide, said the man to the other man."]


@pytest.fixture
def plain(make_extended: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The reference: transformers' own forward."""
    return make_extended().double()


@pytest.fixture
def model(make_extended: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """What is scored: the same weights, packed."""
    return packed(make_extended())


def packed(model: PreTrainedModel) -> PreTrainedModel:
    enable_packed(model.double())
    return model


def log_probabilities(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """(T, V), of one row by itself."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits.double().log_softmax(-1)


def nats(model: PreTrainedModel, row: EncodedRow) -> float:
    scores = log_probabilities(model, row.ids)
    return -sum(float(scores[place - 1, row.ids[place]]) for place in range(1, len(row.ids)) if row.trained[place])


@pytest.mark.parametrize("batch_tokens", [1, 20, 2048])
def test_bits_per_byte_is_that_of_each_text_by_itself(model: PreTrainedModel, plain: PreTrainedModel, tiny_spans: SpanTokenizer,
                                                      monkeypatch: pytest.MonkeyPatch, batch_tokens: int) -> None:
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", batch_tokens)
    start = tiny_spans.markers.english
    found = text_bits_per_byte(model, TEXTS, encode=tiny_spans.encode_english_batch, start=start)
    rows = [EncodedRow([start, *ids], [False] + [True] * len(ids), 0) for ids in tiny_spans.encode_english_batch(TEXTS)]
    expected = sum(nats(plain, row) for row in rows) / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert found == pytest.approx(expected, rel=1e-5)


def test_only_the_trained_part_of_a_row_is_scored(model: PreTrainedModel, plain: PreTrainedModel, tiny_spans: SpanTokenizer) -> None:
    rows = []
    for text in TEXTS:
        ids = [tiny_spans.markers.english, *tiny_spans.encode_english(text)]
        half = len(ids) // 2
        rows.append(EncodedRow(ids, [False] * half + [True] * (len(ids) - half), len(ids) - half))
    expected = sum(nats(plain, row) for row in rows) / math.log(2) / sum(row.n_bytes for row in rows)
    assert rows_bits_per_byte(model, rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 2048])
def test_divergence_is_kl_over_the_answers_places(model: PreTrainedModel, plain: PreTrainedModel,
                                                  make_chat_model: Callable[..., PreTrainedModel], tiny_spans: SpanTokenizer,
                                                  monkeypatch: pytest.MonkeyPatch, batch_tokens: int) -> None:
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", batch_tokens)
    original, plain_original = make_chat_model().double(), make_chat_model().double()
    for one in (original, plain_original):
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in one.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
    answers = [(tiny_spans.encode_english(one), tiny_spans.encode_english(two)) for one, two in zip(TEXTS, reversed(TEXTS), strict=True)]
    vocabulary, opening = tiny_spans.original_size, [tiny_spans.markers.response]
    found = divergence(packed(original), model, answers, vocabulary=vocabulary, opening=opening)
    kl, same, count = 0.0, 0, 0
    for prompt, answer in answers:
        reference = log_probabilities(plain_original, prompt + answer)[len(prompt) - 1: -1, :vocabulary].log_softmax(-1)
        own = log_probabilities(plain, prompt + opening + answer)[len(prompt): -1, :vocabulary].log_softmax(-1)
        kl += float((reference.exp() * (reference - own)).sum())
        same += int((reference.argmax(-1) == own.argmax(-1)).sum())
        count += len(answer)
    assert found.kl == pytest.approx(kl / count, rel=1e-4)
    assert found.same == pytest.approx(same / count)
    assert found.kl > 0


def test_a_model_does_not_diverge_from_itself(model: PreTrainedModel, tiny_spans: SpanTokenizer) -> None:
    answers = [(tiny_spans.encode_english(TEXTS[0]), tiny_spans.encode_english(TEXTS[2]))]
    found = divergence(model, model, answers, vocabulary=tiny_spans.original_size, opening=())
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert found.same == 1
