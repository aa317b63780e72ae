"""Attention inside each document of a packed row, without a mask over the whole row.

A packed row is one sequence of tokens of many documents, ``(1, T)``. Documents are gathered into a few padded groups of like
length, attention runs causally inside each, and the results are scattered back. Short documents so cost what they
are worth, and no product crosses a boundary. Documents that begin alike can share their beginning: the row then holds it once, and all
layers but attention's scores compute it once. It is registered with transformers under the name ``PACKED``; the documents
travel as the keyword argument ``documents``. On processors it also avoids the fused kernel's backward, which is slow
in bfloat16.

Shapes: T tokens, H heads, K key-value heads, d head size; a group has n documents of L slots.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from transllm.errors import ModelError
from transllm.model.rounding import to_round
from transllm.native import Extent, Heads, Kernels, kernels

PACKED = "transllm_packed"

# A group holds documents of at most this many times the length of its shortest: padding costs attention only, and
# fewer groups cost fewer kernel launches.
_SPREAD = 1.5

# A processor's softmax and products take half the time on lines of whole vector registers, so groups are as long as a multiple of this.
_ALIGN = 32

# Documents up to a length, and the queries of a block for them: small blocks skip more of what causality hides, and cost more calls.
_BLOCKS = ((256, 64), (10**9, 128))

# Weights of documents up to this length are kept for the backward; of longer ones they are computed anew, as their size is L² a head.
_KEPT = 1024


class _Group(NamedTuple):
    start: int
    members: int
    length: int


class Shared(NamedTuple):
    """The first so many ``tokens`` of a ``document`` are those of another one, ``of``, and the row holds them there only."""

    document: int
    of: int
    tokens: int


class _Copies(NamedTuple):
    """Slots beside a token's real one: ``slots`` hold the tokens ``places[which]``, each of ``places`` comes once."""

    slots: Tensor
    which: Tensor
    places: Tensor


class Documents:
    """Where the documents of a packed row lie.

    Of all their tokens in a line (W), beginnings repeated, the row holds those of ``own_T``; ``line[own_T]`` is what it holds of any
    such line, and the token at place w of the line lies at ``places_W[w]`` of the row.

    Args:
        lengths: tokens of each document, in the row's order.
        shared: beginnings that the row does not hold again, each after that of its ``of``. Without any, the lengths' sum is the row's.
        device: where the row lies.

    Raises:
        ValueError: a document is empty or has nothing of its own, or shares what the other does not have.
    """

    def __init__(self, lengths: Sequence[int], *, shared: Sequence[Shared] = (), device: torch.device | str = "cpu") -> None:
        self.lengths, self._shared = list(lengths), list(shared)
        if not lengths or min(lengths) < 1:
            raise ValueError("a packed row holds at least one document, and none is empty")
        begins = [0] * len(lengths)  # the first token that is a document's own
        for one in shared:
            if not 0 < one.tokens < lengths[one.document] or lengths[one.of] < one.tokens:
                raise ValueError(f"document {one.document} cannot share {one.tokens} tokens with document {one.of}")
            begins[one.document] = one.tokens
        ends = torch.tensor([length - begin for length, begin in zip(lengths, begins, strict=True)]).cumsum(0).tolist()
        places = [torch.arange(end - length + begin, end) for end, length, begin in zip(ends, lengths, begins, strict=True)]
        for one in shared:
            places[one.document] = torch.cat([places[one.of][: one.tokens], places[one.document]])
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        gather: list[Tensor] = []
        copied: list[Tensor] = []
        back = torch.empty(ends[-1], dtype=torch.long)
        self.groups: list[_Group] = []
        slots = 0
        while order:
            shortest = lengths[order[0]]
            members = [i for i in order if lengths[i] <= max(_SPREAD * shortest, 32)]
            order = order[len(members):]
            longest = -(-lengths[members[-1]] // _ALIGN) * _ALIGN
            self.groups.append(_Group(slots, len(members), longest))
            for i in members:
                # Slots past a document's end repeat its last token: causality hides them from all real tokens.
                gather.append(places[i][torch.arange(longest).clamp_max(lengths[i] - 1)])
                back[places[i][begins[i]:]] = torch.arange(slots + begins[i], slots + lengths[i])
                copied.append(torch.arange(slots, slots + begins[i]))
                slots += longest
        self.gather = torch.cat(gather).to(device)
        self.back = back.to(device)
        is_real = torch.zeros(slots, dtype=torch.bool)
        is_real[back] = True
        self.real = is_real.to(device)
        self.positions_1T = torch.cat([torch.arange(begin, n) for begin, n in zip(begins, lengths, strict=True)]).unsqueeze(0).to(device)
        is_own = torch.cat([torch.arange(n) >= begin for begin, n in zip(begins, lengths, strict=True)])
        self._begins = begins
        self.places_W, self.own_T = torch.cat(places).to(device), is_own.nonzero().squeeze(-1).to(device)
        self.copies: _Copies | None = None
        if shared:
            again = torch.cat(copied)
            tokens, which = torch.cat(gather)[again].unique(return_inverse=True)
            self.copies = _Copies(again.to(device), which.to(device), tokens.to(device))

    @functools.cached_property
    def rounded(self) -> Documents:
        """The row with tokens more at its end, a document of their own, that give it a round length (``rounding.py``)."""
        more = to_round(len(self.own_T), self.own_T.device)
        return Documents([*self.lengths, more], shared=self._shared, device=self.own_T.device)

    @functools.cached_property
    def extent(self) -> Extent:
        """The same for a processor's own attention."""
        return Extent(torch.tensor(self.lengths), torch.tensor(self._begins), self.places_W, self.copies is not None)

    @functools.cached_property
    def borders(self) -> Tensor:
        """Where documents begin and the last ends, of a row without shared beginnings. (documents + 1,), int32"""
        ends = torch.tensor([0, *self.lengths]).cumsum(0)
        return ends.to(self.places_W.device, torch.int32)


class _ToSlots(torch.autograd.Function):
    """Tokens into their slots. The backward is a gather too, since each token has one real slot, and a few have copies."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gather: Tensor, back: Tensor, *copies: Tensor) -> Tensor:
        ctx.save_for_backward(back, *copies)
        return rows.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        back, *copies = ctx.saved_tensors
        return _sum_of_slots(gradients[0], back, _Copies(*copies) if copies else None), *[None] * (2 + len(copies))


class _FromSlots(torch.autograd.Function):
    """Each token from its real slot; to all others no gradient goes back."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, gather: Tensor, back: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(gather, real)
        return slots.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gather, real = ctx.saved_tensors
        return gradients[0].index_select(0, gather) * real.unsqueeze(-1), None, None, None


def _sum_of_slots(slots: Tensor, back: Tensor, copies: _Copies | None) -> Tensor:
    """For each token what its slots hold together, padding left out. (slots, D) -> (T, D)

    In float32 at least: what all documents of a row begin with has as many slots as there are documents.
    """
    rows = slots.index_select(0, back)
    if copies is not None:
        wide = torch.promote_types(rows.dtype, torch.float32)
        first, others = rows.index_select(0, copies.places).to(wide), slots.index_select(0, copies.slots).to(wide)
        rows.index_copy_(0, copies.places, first.index_add_(0, copies.which, others).to(rows.dtype))
    return rows


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
    scale = scaling if scaling is not None else query.shape[-1]**-0.5
    if sliding_window is not None and sliding_window >= max(documents.lengths):
        sliding_window = None  # it hides nothing, and a mask takes torch's fast kernels away
    rows = [states.transpose(1, 2).reshape(query.shape[2], -1) for states in (query, key, value)]  # [0] would cost a copy on the way back
    shape = Heads(query.shape[1], key.shape[1], query.shape[-1])
    dropout = dropout if module.training else 0.0
    if query.device.type == "cpu" and not dropout:
        ready = kernels()
        output: Tensor
        if ready and ready.serve_attention(rows[0], shape.size):
            output = _NativeAttention.apply(*rows, ready, documents, shape, scale, sliding_window)  # type: ignore[no-untyped-call]  # torch's
        else:
            output = _Attention.apply(*rows, documents, shape, scale, sliding_window)  # type: ignore[no-untyped-call]
    else:
        output = _fused_attention(rows, documents, shape, scale, sliding_window, dropout)
    return output.view(1, -1, shape.query, shape.size), None


def _fused_attention(rows: Sequence[Tensor], documents: Documents, shape: Heads, scale: float, window: int | None,
                     dropout: float) -> Tensor:
    """torch's kernel, group by group: on accelerators it is fast both ways and holds no (L, L) matrix. (T, H d) -> (T, H d)"""
    slots: list[Tensor] = [_ToSlots.apply(part, documents.gather, documents.back, *(documents.copies or ()))  # type: ignore[no-untyped-call]
                           for part in rows]
    sizes = [group.members * group.length for group in documents.groups]
    outputs = []
    # Split, not sliced: the gradients of all groups are then joined once, not added up as wide as all slots for each.
    for (_, count, length), *states in zip(documents.groups, *(part.split(sizes) for part in slots), strict=True):
        q, k, v = (state.view(count, length, -1, shape.size).transpose(1, 2) for state in states)
        mask = None if window is None else _causal_mask(length, length, window, q.dtype, q.device)
        context = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=shape.query != shape.key)
        outputs.append(context.transpose(1, 2).reshape(count * length, -1))
    return cast(Tensor, _FromSlots.apply(torch.cat(outputs), documents.gather, documents.back, documents.real))  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    """Attention of all documents with a backward of its own: torch's for processors takes most of a layer's time in bfloat16.

    Queries go in blocks, each against the keys that it may see and no more: half the products of a whole square. Within a block all
    query heads of one key-value head share its products: (n K, H/K B, d) x (n K, d, keys).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, documents: Documents, shape: Heads, scale: float,
                window: int | None) -> Tensor:
        gathered = [rows.index_select(0, documents.gather) for rows in (query, key, value)]
        context = torch.empty_like(gathered[0])
        saved: list[Tensor] = []
        for group in documents.groups:
            q_rows, k, v = _of_group(gathered, group, shape)
            context_rows = _by_place(context, group, shape)
            saved += [k, v]
            for block in _blocks(group.length, window):
                q = _by_key_head(q_rows[:, block.start: block.stop]).mul_(scale)
                weights = _weights(q, k, block, window)
                _put(context_rows[:, block.start: block.stop], torch.bmm(weights, v[:, block.first: block.stop]))
                saved += [q, weights] if group.length <= _KEPT else [q]
        ctx.save_for_backward(*saved)
        ctx.documents, ctx.shape, ctx.scale, ctx.window = documents, shape, scale, window
        return context.index_select(0, documents.back)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        documents, shape = ctx.documents, ctx.shape
        gradient = gradients[0].index_select(0, documents.gather)
        gradient *= documents.real.unsqueeze(-1)
        moved = [gradient.new_empty(len(gradient), width * shape.size) for width in (shape.query, shape.key, shape.key)]
        saved = iter(ctx.saved_tensors)
        for group in documents.groups:
            k, v = next(saved), next(saved)
            k_gradient, v_gradient = torch.zeros_like(k), torch.zeros_like(v)
            g_rows, q_gradient_rows = (_by_place(rows, group, shape) for rows in (gradient, moved[0]))
            for block in _blocks(group.length, ctx.window):
                seen = slice(block.first, block.stop)
                q = next(saved)
                weights = next(saved) if group.length <= _KEPT else _weights(q, k, block, ctx.window)
                g = _by_key_head(g_rows[:, block.start: block.stop])
                v_gradient[:, seen].baddbmm_(weights.transpose(1, 2), g)
                score_gradient = torch._softmax_backward_data(torch.bmm(g, v[:, seen].transpose(1, 2)), weights, -1, weights.dtype)
                _put(q_gradient_rows[:, block.start: block.stop], torch.bmm(score_gradient, k[:, seen]).mul_(ctx.scale))
                k_gradient[:, seen].baddbmm_(score_gradient.transpose(1, 2), q)
            for rows, own in zip(moved[1:], (k_gradient, v_gradient), strict=True):
                _put(_by_place(rows, group, shape), own)
        return *(_sum_of_slots(rows, documents.back, documents.copies) for rows in moved), None, None, None, None


class _NativeAttention(torch.autograd.Function):
    """The same in blocks that stay in the processor's cache: no weights are kept, and none are ever in memory."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, ready: Kernels, documents: Documents, heads: Heads, scale: float,
                window: int | None) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        context, log_sums = ready.attention(query, key, value, documents.extent, heads, scale=scale, window=window)
        ctx.save_for_backward(query, key, value, context, log_sums)
        ctx.kernels, ctx.settings = ready, {"extent": documents.extent, "heads": heads, "scale": scale, "window": window}
        return context

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.attention_back(gradients[0], *ctx.saved_tensors, **ctx.settings), None, None, None, None, None


class _Block(NamedTuple):
    """Queries from ``start`` to ``stop``, which see the keys from ``first`` to ``stop``."""

    start: int
    stop: int
    first: int


def _blocks(length: int, window: int | None) -> list[_Block]:
    size = next(size for longest, size in _BLOCKS if length <= longest)
    back = length if window is None else window - 1
    return [_Block(start, min(start + size, length), max(0, start - back)) for start in range(0, length, size)]


def _of_group(gathered: Sequence[Tensor], group: _Group, shape: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Query by place; key and value by key head."""
    query, key, value = (_by_place(rows, group, shape) for rows in gathered)
    return query, _by_key_head(key), _by_key_head(value)


def _by_place(rows: Tensor, group: _Group, shape: Heads) -> Tensor:
    """A group's part of (slots, H d) or (slots, K d), as a view (n, L, K, H/K or 1, d)."""
    part = rows[group.start: group.start + group.members * group.length]
    return part.view(group.members, group.length, shape.key, -1, shape.size)


def _by_key_head(places: Tensor) -> Tensor:
    """(n, B, K, H/K, d) -> (n K, H/K B, d), a copy"""
    members, _, heads, _, size = places.shape
    return places.permute(0, 2, 3, 1, 4).reshape(members * heads, -1, size)


def _put(places: Tensor, heads: Tensor) -> None:
    """The way back of ``_by_key_head``, into ``places``."""
    members, length, key_heads, shared, size = places.shape
    places.copy_(heads.view(members, key_heads, shared, length, size).permute(0, 3, 1, 2, 4))


def _weights(q: Tensor, k: Tensor, block: _Block, window: int | None) -> Tensor:
    """Softmax of the scores of a block's queries. (n K, H/K B, d) -> (n K, H/K B, keys)"""
    scores = torch.bmm(q, k[:, block.first: block.stop].transpose(1, 2))
    size, seen = block.stop - block.start, block.stop - block.first
    by_query = scores.view(-1, size, seen)
    if window is None:  # only the last square hides anything
        by_query = by_query[..., seen - size:]
    by_query += _causal_mask(size, by_query.shape[-1], window, scores.dtype, scores.device)
    return torch.softmax(scores, -1)


def _causal_mask(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to scores of the last ``queries`` of ``keys`` places. (queries, keys)"""
    distance = torch.arange(keys - queries, keys, device=device).unsqueeze(1) - torch.arange(keys, device=device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)


AttentionInterface.register(PACKED, packed_attention)
