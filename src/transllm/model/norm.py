"""RMS normalisation in one pass each way, or in four where there are no kernels for it (``transllm.native``).

Families write their norm in small steps, and autograd walks them back one by one in float32: on a processor that takes as
long as a matrix product. The weight is frozen here, so the input's gradient is all there is to compute.

Shapes: (..., D) hidden states.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from transllm.model.again import made
from transllm.native import serving


class _RmsNorm(torch.autograd.Function):
    """``weight * (x / rms(x))`` and the quotient, which is rounded to x's precision first, as Llama's family does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # of the quotient there is no gradient, and none is to be made
        ready = serving(x, weight_D)
        if ready:
            output, normed, inverse = ready.norm(x, weight_D, eps)
            ctx.save_for_backward(normed, inverse, weight_D)
            ctx.mark_non_differentiable(normed)
            return output, normed
        wide = x.to(torch.float32, copy=True)
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]
        inverse = mean_square.add_(eps).rsqrt_()
        normed = wide.mul_(inverse).to(x.dtype)
        ctx.save_for_backward(normed, inverse, weight_D)
        ctx.mark_non_differentiable(normed)
        return normed * weight_D, normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        normed, inverse, weight_D = ctx.saved_tensors
        ready = serving(gradients[0], weight_D)
        if ready:
            return ready.norm_back(gradients[0], normed, inverse, weight_D), None, None
        scaled = gradients[0] * weight_D
        along = torch.linalg.vecdot(scaled, normed).unsqueeze(-1) / -normed.shape[-1]
        return scaled.addcmul_(normed, along).mul_(inverse.to(normed.dtype)), None, None


def _weigh(normed: Tensor, weight_D: Tensor) -> Tensor:
    ready = serving(normed, weight_D)
    return ready.weigh(normed, weight_D) if ready else normed * weight_D


def use_our_norm(model: nn.Module) -> int:
    """Let the norms of a frozen model that compute what ``_RmsNorm`` does use it while gradients are taken.

    Which do is measured: a family can add one to the weight, leave it out or normalise otherwise under the same name. Without
    gradients every norm stays its own, bit for bit.

    Returns:
        how many norms there are.
    """
    changed = 0
    for module in model.modules():
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weights = list(module.parameters(recurse=False))
        if "RMSNorm" not in type(module).__name__ or eps is None or len(weights) != 1:
            continue
        frozen_on_processor = not weights[0].requires_grad and weights[0].device.type == "cpu"
        if frozen_on_processor and _same(module, weights[0], float(eps)):
            _wrap(module, weights[0], float(eps))
            changed += 1
    return changed


@torch.no_grad()
def _same(module: nn.Module, weight_D: Tensor, eps: float) -> bool:
    probe = torch.linspace(-2, 3, 2 * len(weight_D), dtype=torch.float32).view(2, -1).to(weight_D.dtype)
    ours: Tensor = _RmsNorm.apply(probe, weight_D, eps)[0]  # type: ignore[no-untyped-call]  # torch's own
    theirs: Tensor = module(probe)
    return theirs.shape == ours.shape and torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-3)


def _wrap(module: nn.Module, weight_D: Tensor, eps: float) -> None:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return cast(Tensor, own(x))
        output, normed = _RmsNorm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]
        return made(output, lambda _, *of: _weigh(*of), normed, weight_D)

    module.forward = forward
