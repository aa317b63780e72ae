"""random: rows drawn from a normal distribution with the matrix's own mean and standard deviation, as in the paper.

The measure of all other methods: it knows nothing of the new pieces.

Shapes: V old rows, N new rows, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transllm.model.initial.start import Known, Start


def random(known: Known) -> Start:
    """Every piece drawn anew. An untied head is drawn after the embedding, not with the same numbers."""
    generator = torch.Generator().manual_seed(known.seed)
    return Start(list(known.pieces), lambda old_VD: normal_rows(old_VD, len(known.pieces), generator))


def normal_rows(old_VD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows whose every dimension has the mean and the standard deviation of that dimension of the old rows. (V, D) -> (N, D) float32"""
    std_D, mean_D = torch.std_mean(old_VD.float(), dim=0)
    noise_ND = torch.randn(count, old_VD.shape[1], generator=generator)
    return mean_D + std_D * noise_ND.to(old_VD.device)
