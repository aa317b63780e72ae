"""Embedding and head whose original rows are frozen and whose new rows train.

Splitting the matrix keeps the original model inside (its rows are never touched, its logits are the product with its own
matrix), and saves the gradient and optimiser state of all old rows: the gradient of the head is the largest of a small
model otherwise.

Shapes: V old rows, N new rows, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SplitEmbedding(nn.Module):
    """Looks ids up in the frozen old rows and the trained new rows.

    Args:
        old_VD: the original rows; trained too if ``train_old``.
        new_ND: rows of ids V to V + N, kept in float32 so that small updates are not lost to rounding.
        scale: what the model's family multiplies embeddings with (Gemma); None is nothing. The head does not see it.
    """

    scale: Tensor | None

    def __init__(self, old_VD: Tensor, new_ND: Tensor, *, train_old: bool = False, scale: Tensor | None = None) -> None:
        super().__init__()
        dtype = torch.float32 if train_old else old_VD.dtype
        self.old = nn.Parameter(old_VD.detach().to(dtype), requires_grad=train_old)
        self.new = nn.Parameter(new_ND.detach().to(torch.float32, copy=True))
        self.compute_dtype = old_VD.dtype
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

    The old part is one product with the original matrix, so its logits are the original head's, bit for bit.
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
        old = F.linear(hidden, self.rows.old.to(hidden.dtype))
        if self.rows.original_only:
            return old
        return torch.cat([old, F.linear(hidden, self.rows.new.to(hidden.dtype))], dim=-1)
