"""The LoRA layer that training runs: peft's, with its forward and backward written as six products and nothing else.

peft computes ``W x + s B (A x)`` with separate kernels for the cast, the scale and the sum. On a processor these cost as much
as the products. Here both branches accumulate into one result, forward and backward, and only ``x`` and ``A x`` are kept.
Weights of the adapter stay float32 and are cast for each product, so an update smaller than bfloat16's step is not lost.

Shapes: n tokens, i inputs, o outputs, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn


class _LoraProduct(torch.autograd.Function):
    """``x W' + s (x A') B'`` for a frozen W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_oi: Tensor, a_ri: Tensor, b_or: Tensor, scale: float) -> Tensor:
        x_ni = x.reshape(-1, x.shape[-1])
        a, b = a_ri.to(x.dtype), (b_or * scale).to(x.dtype)
        inner_nr = x_ni @ a.T
        result_no = (x_ni @ weight_oi.T).addmm_(inner_nr, b.T)
        ctx.save_for_backward(x_ni, weight_oi, a, b, inner_nr)
        ctx.scale, ctx.shape = scale, x.shape
        return result_no.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x_ni, weight_oi, a, b, inner_nr = ctx.saved_tensors
        gradient_no = gradients[0].reshape(-1, weight_oi.shape[0])
        inner_gradient_nr = gradient_no @ b
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (gradient_no @ weight_oi).addmm_(inner_gradient_nr, a).view(ctx.shape)
        a_gradient = (inner_gradient_nr.T @ x_ni).float()
        b_gradient = (gradient_no.T @ inner_nr).float() * ctx.scale
        return x_gradient, None, a_gradient, b_gradient, None


class LoraLinear(PeftLoraLinear):
    """peft's LoRA layer; the plain case (one adapter, on, not merged, no dropout, no bias) takes the short way."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., i) -> (..., o)."""
        name = str(self.active_adapters[0]) if len(self.active_adapters) == 1 else ""
        plain = (
            name in self.lora_A and not self.disable_adapters and not self.merged and not kwargs
            and self.base_layer.bias is None
            and (not self.training or isinstance(self.lora_dropout[name], nn.Identity))
        )
        if not plain:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        product: Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]  # torch's own
            x, self.base_layer.weight, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])
        return product


def use_our_layer(config: LoraConfig) -> LoraConfig:
    """Tell peft to build ``LoraLinear`` for every ``nn.Linear``. The saved adapter is an ordinary one."""
    config._register_custom_module({nn.Linear: LoraLinear})
    return config
