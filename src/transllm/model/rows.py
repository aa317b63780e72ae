"""Embedding and head whose original rows are frozen and whose new rows train.

Splitting the matrix keeps the original model inside (its rows are never touched, its logits are the product with its own
matrix), and saves the gradient and optimiser state of all old rows: the gradient of the head is the largest of a small
model otherwise.

Shapes: V old rows, N new rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transllm.native import serving

_PANEL = 512
"""Columns that a processor projects at once in float32: their part of the matrix stays in its cache (a loss with its gradient takes 0.89 of
the time that it takes with one product for 50,000 columns, 2 % of a step; docs/benchmarks.md)."""

_SHARE, _MANY = 2048, 64
"""Columns at least that a core projects at a time where several do, and tokens at least for which it does so."""


class SplitEmbedding(nn.Module):
    """Looks ids up in the frozen old rows and the trained new rows.

    Args:
        old_VD: the original rows; trained too if ``train_old``.
        new_ND: rows of ids V to V + N, kept in float32 so that small updates are not lost to rounding.
        scale: what the model's family multiplies embeddings with (Gemma); None is nothing. The head does not see it.
        dtype: precision that computes, and of old rows that are frozen; None: that of ``old_VD``.
    """

    scale: Tensor | None

    def __init__(self, old_VD: Tensor, new_ND: Tensor, *, train_old: bool = False, scale: Tensor | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.compute_dtype = dtype or old_VD.dtype
        self.old = nn.Parameter(old_VD.detach().to(torch.float32 if train_old else self.compute_dtype), requires_grad=train_old)
        self.new = nn.Parameter(new_ND.detach().to(torch.float32, copy=True))
        self.original_only = False
        self.register_buffer("scale", scale, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The whole matrix, as other libraries expect to see it. (V + N, D)"""
        return torch.cat([self.old.to(self.compute_dtype), self.new.to(self.compute_dtype)])

    def forward(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., D)."""
        first_new = self.old.shape[0]
        is_new = ids >= first_new
        hidden = F.embedding(ids.masked_fill(is_new, 0), self.old).to(self.compute_dtype)
        rows = F.embedding((ids - first_new).clamp_min(0), self.new).to(self.compute_dtype)
        hidden = torch.where(is_new.unsqueeze(-1), rows, hidden)
        return hidden if self.scale is None else hidden * self.scale.to(self.compute_dtype)


class SplitHead(nn.Module):
    """Projects on old and new rows; cut to the original vocabulary while ``original_only``.

    The old part is the product with the original matrix; cut, it is the original head's own, bit for bit.
    """

    def __init__(self, rows: SplitEmbedding) -> None:
        super().__init__()
        self.rows = rows

    @property
    def weight(self) -> Tensor:
        """The whole matrix. (V + N, D)"""
        return self.rows.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V + N), or (..., V) while cut."""
        rows = self.rows
        if rows.original_only:
            return self.original(hidden)
        logits: Tensor = _Project.apply(hidden.reshape(-1, hidden.shape[-1]), rows.old, rows.new, None)  # type: ignore[no-untyped-call]
        return logits.view(*hidden.shape[:-1], -1)

    def into(self, most: int, *, like: Tensor) -> Callable[[Tensor], Tensor]:
        """The same projection, of ``most`` rows (n, D) at most, whose results all lie in one memory: the next overwrites the last."""
        rows = self.rows
        if rows.original_only:
            return self.original
        block = like.new_empty(most, len(rows.old) + len(rows.new))
        return lambda hidden_nD: cast(Tensor, _Project.apply(hidden_nD, rows.old, rows.new, block))  # type: ignore[no-untyped-call]

    def original(self, hidden: Tensor) -> Tensor:
        """The old columns only. (..., D) -> (..., V)"""
        return F.linear(hidden, self.rows.old.to(hidden.dtype))


def _in_panels(hidden_nD: Tensor, matrix_VD: Tensor, most: int, work: Callable[[slice], Tensor]) -> list[Tensor]:
    """``work`` on all rows of a matrix, so many at most at a time; what it gave, in order.

    A processor's cores take panels, each by itself: torch's product is one core's work in some shapes (back from 49,152 columns to 512
    hidden states of 576 numbers: 102 ms on two cores, 57 in panels).
    """
    rows, threads = len(matrix_VD), torch.get_num_threads()
    ready = serving(hidden_nD) if threads > 1 and len(hidden_nD) >= _MANY else None
    if ready is not None:
        most = min(most, max(_SHARE, -(-rows // (2 * threads))))
    panels = [slice(start, min(start + most, rows)) for start in range(0, rows, most)]
    return [work(panel) for panel in panels] if ready is None else ready.each(work, panels)


class _Project(torch.autograd.Function):
    """Both products written side by side into one matrix: joining them afterwards would copy the largest tensor of all."""

    @staticmethod
    def forward(ctx: Any, hidden_nD: Tensor, old_VD: Tensor, new_ND: Tensor, block: Tensor | None) -> Tensor:
        old, new = old_VD.to(hidden_nD.dtype), new_ND.to(hidden_nD.dtype)
        shape = len(hidden_nD), len(old) + len(new)
        # ``data``: for autograd a tensor of its own, where a slice would be a view of what the next chunk overwrites.
        logits = hidden_nD.new_empty(shape) if block is None else block[: len(hidden_nD)].data
        most = _PANEL if logits.device.type == "cpu" and logits.dtype == torch.float32 else len(old)
        _in_panels(hidden_nD, old, most, lambda panel: torch.mm(hidden_nD, old[panel].T, out=logits[:, panel]))
        torch.mm(hidden_nD, new.T, out=logits[:, len(old):])
        ctx.save_for_backward(hidden_nD, old, new)
        ctx.dtypes = old_VD.dtype, new_ND.dtype
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_nD, old, new = ctx.saved_tensors
        old_part, new_part = gradients[0].split([len(old), len(new)], dim=1)
        wanted, to_hidden = ctx.needs_input_grad, None
        if wanted[0]:
            first, *more = _in_panels(hidden_nD, old, len(old), lambda panel: old_part[:, panel] @ old[panel])
            if more:
                first = torch.stack([first, *more]).sum(0, dtype=torch.promote_types(first.dtype, torch.float32)).to(first.dtype)
            to_hidden = first.addmm_(new_part, new)
        return (to_hidden,
                (old_part.T @ hidden_nD).to(ctx.dtypes[0]) if wanted[1] else None,
                (new_part.T @ hidden_nD).to(ctx.dtypes[1]) if wanted[2] else None, None)
