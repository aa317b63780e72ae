"""Keys and values of the tokens so far, in memory that is laid out ahead.

transformers' own cache copies all that it holds for each new token. Here a layer has room for a block of tokens more, and
copies only when that is full.

Shapes: B rows, K key-value heads, L tokens, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_BLOCK = 128


class _RoomyLayer(DynamicLayer):
    """A layer of full attention whose ``keys`` and ``values`` are views of the used part of larger buffers."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, K, n, d) states; returns all of them, (B, K, L, d)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        if self._buffers is None:
            self._buffers = _roomy(key_states, end), _roomy(value_states, end)
        elif end > self._buffers[0].shape[-2]:
            outgrown = self._buffers
            self._buffers = _roomy(key_states, end), _roomy(value_states, end)
            for buffer, old in zip(self._buffers, outgrown, strict=True):
                buffer[..., :start, :] = old[..., :start, :]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self._length = end
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        if self._buffers is not None:
            self._buffers = _rows(self._buffers[0], indices, self._length), _rows(self._buffers[1], indices, self._length)
            self.keys, self.values = (buffer[..., : self._length, :] for buffer in self._buffers)


def _roomy(like: Tensor, length: int) -> Tensor:
    return torch.empty(*like.shape[:-2], length + _BLOCK, like.shape[-1], dtype=like.dtype, device=like.device)


def _rows(buffer: Tensor, indices: Tensor, length: int) -> Tensor:
    """Some rows, with what is used of them: a beam search asks for them at each step, when most of the room is empty."""
    chosen = buffer.new_empty(len(indices), *buffer.shape[1:])
    torch.index_select(buffer[..., :length, :], 0, indices, out=chosen[..., :length, :])
    return chosen


def is_plain(cache: DynamicCache) -> bool:
    """Whether all layers are of full attention: only these may have hidden places between two texts."""
    return all(isinstance(layer, _RoomyLayer) for layer in cache.layers)


def make_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for a model. Layers that are not of plain full attention (sliding windows, states) keep transformers' own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
