"""Weights that train are float32; the model computes with them as if they were stored in its own precision.

A bfloat16 number has 8 bits: an update below a 500th of a weight is rounded away, and late in training most are. So the float32
weight is what the optimiser changes and what is saved, and each use of it in the model rounds it anew. Its gradient passes the
rounding as it is.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Rounded(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype)


def keep_masters(model: nn.Module, dtype: torch.dtype) -> None:
    """Let all floating-point parameters of a model train, in float32, while its layers see them in ``dtype``.

    Not by autocast: that is a state of the thread and of the call, and lets norms give float32 to what expects ``dtype``. Here the model
    computes what it will compute once its weights are rounded and stored.
    """
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_floating_point():
                continue
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            if dtype != torch.float32:
                parametrize.register_parametrization(module, name, _Rounded(dtype), unsafe=True)  # unsafe: it changes the precision


def plain_name(name: str) -> str:
    """A parameter's name in the plain model."""
    return re.sub(r"parametrizations\.(\w+)\.original$", r"\1", name)
