"""Models with an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from transllm.model import Adapted, attach
from transllm.recipe.schema import Training
from transllm.tokenizer import SpanTokenizer

Make = Callable[..., PreTrainedModel]


@pytest.fixture
def adapt(make_extended: Make, make_training: Callable[..., Training], tiny_spans: SpanTokenizer) -> Callable[..., Adapted]:
    def make(kind: str = "tied", *, dtype: torch.dtype = torch.float32, **settings: Any) -> Adapted:
        torch.manual_seed(3)
        adapted = attach(make_extended(kind), original_size=tiny_spans.original_size, size=tiny_spans.size,
                         training=make_training(**settings), dtype=dtype)
        adapted.peft.eval()
        return adapted

    return make
