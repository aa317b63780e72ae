"""Rows and adapters of the tests of the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from transllm.model import Adapted, attach
from transllm.recipe.schema import Training
from transllm.tokenizer import SpanTokenizer
from transllm.training import EncodedRow, Rows, write_rows


@pytest.fixture(scope="module")
def rows(tiny_spans: SpanTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Rows of 16 tokens of a few old and all new ids, so that every bin of 64 is full and every step sees 128 tokens."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(60):
        ids = torch.randint(0, 20, (16,), generator=generator)
        ids[3::5] = tiny_spans.original_size + number % (tiny_spans.size - tiny_spans.original_size)
        made.append(EncodedRow(ids.tolist(), [False, *[place % 7 != 2 for place in range(15)]], 40))
    return write_rows(made, tmp_path_factory.mktemp("rows"))


@pytest.fixture
def adapt(make_extended: Callable[..., PreTrainedModel], make_training: Callable[..., Training],
          tiny_spans: SpanTokenizer) -> Callable[..., Adapted]:
    def make(kind: str = "tied", *, dtype: torch.dtype = torch.float32, **settings: Any) -> Adapted:
        torch.manual_seed(3)
        adapted = attach(make_extended(kind), original_size=tiny_spans.original_size, size=tiny_spans.size,
                         training=make_training(**settings), dtype=dtype)
        adapted.quicken()
        return adapted

    return make


@pytest.fixture
def moved(adapt: Callable[..., Adapted]) -> Adapted:
    """An adapter that is no longer at its start, so that adapter on and off differ."""
    adapted = adapt()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for parameter in adapted.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted
