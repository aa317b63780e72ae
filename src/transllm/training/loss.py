"""Cross entropy that never holds all logits: hidden states are projected only where there are labels, in chunks.

Gradients with respect to the hidden states and the head are taken chunk by chunk in the forward pass, so a chunk's
logits are the most that is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

IGNORE = -100
_CHUNK = 256
_CACHED_ROWS = 16


def final_logits(config: Any) -> Callable[[Tensor], Tensor]:
    """What the model's family does to its logits after the head: nothing, a soft cap (Gemma 2) or a scale (Cohere, Granite)."""
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    scale = scale / (getattr(config, "logits_scaling", None) or 1.0)

    def finish(logits: Tensor) -> Tensor:
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return finish


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, labels_N: Tensor, heavy: Mapping[int, float], project: Callable[[Tensor], Tensor],
                *trained: Tensor) -> Tensor:
        wanted = [hidden_ND.requires_grad, *(weight.requires_grad for weight in trained)]
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        hidden_gradient = torch.empty_like(hidden_ND)
        gradients = [torch.zeros_like(weight) for weight in trained]
        for start in range(0, len(labels_N), _CHUNK):
            chunk = hidden_ND[start: start + _CHUNK].detach().requires_grad_()
            labels = labels_N[start: start + _CHUNK]
            with torch.enable_grad():
                logits = project(chunk)
            gradient = torch.empty_like(logits) if any(wanted) else None
            total += _softmax_loss(logits.detach(), labels, gradient=gradient)
            if gradient is not None:
                for token, times in heavy.items():
                    places = (labels == token).nonzero().squeeze(-1)
                    gradient[places] = gradient[places] * times  # a few rows; weighing the whole matrix would pass over it once more
                chunk_gradient, *rest = torch.autograd.grad(logits, [chunk, *trained], gradient)
                hidden_gradient[start: start + _CHUNK] = chunk_gradient
                for weight, part in zip(gradients, rest, strict=True):
                    weight += part
        ctx.save_for_backward(hidden_gradient, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, *rest = ctx.saved_tensors
        scale = gradients[0]
        return hidden_gradient * scale.to(hidden_gradient.dtype), None, None, None, *(gradient * scale for gradient in rest)


def _softmax_loss(logits_NV: Tensor, labels_N: Tensor, *, gradient: Tensor | None) -> Tensor:
    """Sum of the cross entropies in float32, and their gradient (softmax minus one-hot) into ``gradient`` if one is given.

    One softmax serves both. It runs a few rows at a time, so that on a processor they stay in its cache: on whole matrices of
    50,000 columns memory, not arithmetic, sets the time. The kernel sums in float32 and rounds its results to the logits'
    precision, so a loss read off them is off by at most that rounding (in bfloat16 0.4 % of a probability: 0.004 nats, either
    way). Where no gradient is taken, the loss is exact.
    """
    if gradient is None:
        return nn.functional.cross_entropy(logits_NV.float(), labels_N, reduction="sum")
    rows = _CACHED_ROWS if logits_NV.device.type == "cpu" else len(logits_NV)
    for start in range(0, len(logits_NV), max(1, rows)):
        torch.softmax(logits_NV[start: start + rows], -1, out=gradient[start: start + rows])
    at_label = (torch.arange(len(labels_N), device=labels_N.device), labels_N)
    chosen = gradient[at_label]
    gradient[at_label] = chosen - 1  # not scatter_, which copies the whole matrix
    return -chosen.float().clamp_min(torch.finfo(torch.float32).tiny).log().sum()


def summed_cross_entropy(hidden_TD: Tensor, labels_T: Tensor, *, head: nn.Module, finish: Callable[[Tensor], Tensor],
                         heavy: Mapping[int, float] | None = None) -> Tensor:
    """Sum of the negative log likelihoods of all labels, in nats.

    Args:
        hidden_TD: hidden states of a packed row.
        labels_T: next tokens; IGNORE where nothing is learned.
        head: projection to logits; its trained parameters get gradients.
        finish: what follows the head, see ``final_logits``.
        heavy: tokens whose labels count so many times in the gradient. The sum counts all alike, so that it stays what bits per
            byte are made of.
    """
    places = (labels_T != IGNORE).nonzero().squeeze(-1)
    # Weights of a loaded model ask for gradients by default; what counts is whether any are being taken.
    trained: Sequence[Tensor] = [parameter for parameter in head.parameters() if parameter.requires_grad and torch.is_grad_enabled()]
    loss: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_TD.index_select(0, places), labels_T.index_select(0, places), heavy or {}, lambda chunk: finish(head(chunk)), *trained)
    return loss
