"""A tiny chat model with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from transllm.model import LoadedModel
from transllm.tokenizer import SpanTokenizer


@pytest.fixture(scope="session")
def tiny_chat(make_chat_model: Callable[..., PreTrainedModel], tiny_spans: SpanTokenizer) -> LoadedModel:
    return LoadedModel(make_chat_model(), tiny_spans.original, "tiny")
