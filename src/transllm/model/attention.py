"""Attention inside each document of a packed row, without a mask over the whole row.

A packed row is one sequence of tokens of many documents, ``(1, T)``. Documents are gathered into a few padded groups of like
length, attention runs causally inside each, and the results are scattered back. Short documents so cost what they
are worth, and no product crosses a boundary. It is registered with transformers under the name ``PACKED``; the documents
travel as the keyword argument ``documents``. On processors it also avoids the fused kernel's backward, which is slow
in bfloat16.

Shapes: T tokens, H heads, K key-value heads, d head size; a group has n documents of L slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from transllm.errors import ModelError

PACKED = "transllm_packed"

# A group holds documents of at most this many times the length of its shortest: padding costs attention only, and
# fewer groups cost fewer kernel launches.
_SPREAD = 2.0


class _Group(NamedTuple):
    start: int
    members: int
    length: int


class Documents:
    """Where the documents of a packed row lie.

    Args:
        lengths: tokens of each document, in the row's order; their sum is the row's length.
        device: where the row lies.
    """

    def __init__(self, lengths: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError("a packed row holds at least one document, and none is empty")
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        gather: list[Tensor] = []
        back = torch.empty(starts[-1], dtype=torch.long)
        self.groups: list[_Group] = []
        slots = 0
        while order:
            shortest = lengths[order[0]]
            members = [i for i in order if lengths[i] <= max(_SPREAD * shortest, 32)]
            order = order[len(members):]
            longest = lengths[members[-1]]
            self.groups.append(_Group(slots, len(members), longest))
            for i in members:
                # Slots past a document's end repeat its last token: causality hides them from all real tokens.
                offsets = torch.arange(longest).clamp_max(lengths[i] - 1)
                gather.append(starts[i] + offsets)
                back[starts[i]: starts[i] + lengths[i]] = torch.arange(slots, slots + lengths[i])
                slots += longest
        self.gather = torch.cat(gather).to(device)
        self.back = back.to(device)
        is_real = torch.zeros(slots, dtype=torch.bool)
        is_real[back] = True
        self.real = is_real.to(device)
        self.positions_1T = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0).to(device)


class _Move(torch.autograd.Function):
    """Index rows both ways: the backward of a gather is a gather too, since each token has one real slot."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, forward_index: Tensor, backward_index: Tensor, real: Tensor | None) -> Tensor:
        ctx.save_for_backward(backward_index, real)
        return rows.index_select(0, forward_index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        backward_index, real = ctx.saved_tensors
        gradient = gradients[0].index_select(0, backward_index)
        if real is not None:
            gradient = gradient * real.unsqueeze(-1)
        return gradient, None, None, None


def _move(rows: Tensor, forward_index: Tensor, backward_index: Tensor, real: Tensor | None) -> Tensor:
    return cast(Tensor, _Move.apply(rows, forward_index, backward_index, real))  # type: ignore[no-untyped-call]  # torch's own


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in each layer.

    Args:
        query: (1, H, T, d). key, value: (1, K, T, d).
        documents: the row's documents.
        sliding_window: tokens that a token sees back, itself included.

    Returns:
        (1, T, H, d) and no weights.

    Raises:
        ModelError: the model asks for a kind of attention that this function does not do.
    """
    unsupported = [name for name in ("softcap", "s_aux", "head_mask") if kwargs.get(name) is not None]
    if documents is None or unsupported or query.shape[0] != 1:
        raise ModelError(f"Packed attention cannot serve this model ({', '.join(unsupported) or 'no documents given'}).")
    heads, tokens, size = query.shape[1:]
    kv_heads = key.shape[1]
    scale = scaling if scaling is not None else size**-0.5

    def to_slots(states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1).reshape(tokens, -1)
        return _move(rows, documents.gather, documents.back, None)

    query_slots, key_slots, value_slots = to_slots(query * scale), to_slots(key), to_slots(value)
    outputs = []
    for start, count, length in documents.groups:
        span = slice(start, start + count * length)

        def split(slots: Tensor, n: int, span: slice = span, count: int = count, length: int = length) -> Tensor:
            return slots[span].view(count, length, n, size).transpose(1, 2)

        if query.device.type != "cpu" and sliding_window is None:
            # Elsewhere the fused kernel is fast both ways and holds no (L, L) matrix.
            context = nn.functional.scaled_dot_product_attention(
                split(query_slots, heads), split(key_slots, kv_heads), split(value_slots, kv_heads),
                dropout_p=dropout if module.training else 0.0, is_causal=True, scale=1.0, enable_gqa=heads != kv_heads)
            outputs.append(context.transpose(1, 2).reshape(count * length, heads * size))
            continue
        # All query heads of one key-value head share its product: (n K, H/K L, d) x (n K, d, L).
        q = split(query_slots, heads).reshape(count * kv_heads, heads // kv_heads * length, size)
        k = split(key_slots, kv_heads).reshape(count * kv_heads, length, size)
        v = split(value_slots, kv_heads).reshape(count * kv_heads, length, size)
        scores = torch.bmm(q, k.transpose(1, 2)).view(-1, length, length)
        scores = scores + _causal_mask(length, sliding_window, scores.dtype, scores.device)
        weights = nn.functional.dropout(scores.softmax(-1), dropout, module.training)
        context = torch.bmm(weights.view(count * kv_heads, -1, length), v)
        outputs.append(context.view(count, heads, length, size).transpose(1, 2).reshape(count * length, heads * size))
    slots = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    output = _move(slots, documents.back, documents.gather, documents.real)
    return output.view(1, tokens, heads, size), None


def _causal_mask(length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    distance = torch.arange(length, device=device).unsqueeze(1) - torch.arange(length, device=device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)


AttentionInterface.register(PACKED, packed_attention)


def hidden_states(model: PreTrainedModel, ids_1T: Tensor, documents: Documents) -> Tensor:
    """Last hidden states of a packed row. (1, T) -> (1, T, D)

    Positions restart in each document, which also tells transformers' own attention where documents end.
    """
    extra: dict[str, Any] = {"documents": documents} if model.config._attn_implementation == PACKED else {}
    output = model.get_decoder()(input_ids=ids_1T, position_ids=documents.positions_1T, use_cache=False, **extra)
    return cast(Tensor, output.last_hidden_state)


@torch.no_grad()
def enable_packed(model: PreTrainedModel) -> bool:
    """Use packed attention if this model gives the same hidden states with it; else keep its own, which packs by positions.

    Measured on two documents, because what a family does inside its attention cannot be read off its configuration.

    Returns:
        Whether it is on.
    """
    before = model.config._attn_implementation
    rows = int(model.config.get_text_config().vocab_size)
    ids_1T = (torch.arange(40, device=model.device) * 7 % rows).unsqueeze(0)
    documents = Documents([13, 27], device=model.device)
    training = model.training
    model.eval()
    expected = hidden_states(model, ids_1T, documents).float()
    model.set_attn_implementation(PACKED)
    try:
        difference = (hidden_states(model, ids_1T, documents).float() - expected).abs().max() / expected.abs().max()
        same = bool(difference < (0.05 if model.dtype != torch.float32 else 1e-3))
    except ModelError:
        same = False
    if not same:
        model.set_attn_implementation(before)
    model.train(training)
    return same
