"""Cross entropy that never holds all logits: hidden states are projected only where there are labels, in chunks.

Gradients with respect to the hidden states and the head are taken chunk by chunk in the forward pass, so a chunk's
logits are the most that is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = -100
_CHUNK = 512


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
    def forward(ctx: Any, hidden_ND: Tensor, labels_N: Tensor, project: Callable[[Tensor], Tensor], *trained: Tensor) -> Tensor:
        wanted = [hidden_ND.requires_grad, *(weight.requires_grad for weight in trained)]
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        hidden_gradient = torch.empty_like(hidden_ND)
        gradients = [torch.zeros_like(weight) for weight in trained]
        for start in range(0, len(labels_N), _CHUNK):
            chunk = hidden_ND[start: start + _CHUNK].detach().requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(project(chunk).float(), labels_N[start: start + _CHUNK], reduction="sum")
            total += loss.detach()
            if any(wanted):
                chunk_gradient, *rest = torch.autograd.grad(loss, [chunk, *trained])
                hidden_gradient[start: start + _CHUNK] = chunk_gradient
                for gradient, part in zip(gradients, rest, strict=True):
                    gradient += part
        ctx.save_for_backward(hidden_gradient, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, *rest = ctx.saved_tensors
        scale = gradients[0]
        return hidden_gradient * scale.to(hidden_gradient.dtype), None, None, *(gradient * scale for gradient in rest)


def summed_cross_entropy(hidden_TD: Tensor, labels_T: Tensor, *, head: nn.Module, finish: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of the negative log likelihoods of all labels, in nats.

    Args:
        hidden_TD: hidden states of a packed row.
        labels_T: next tokens; IGNORE where nothing is learned.
        head: projection to logits; its trained parameters get gradients.
        finish: what follows the head, see ``final_logits``.
    """
    places = (labels_T != IGNORE).nonzero().squeeze(-1)
    trained: Sequence[Tensor] = [parameter for parameter in head.parameters() if parameter.requires_grad]
    loss: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_TD.index_select(0, places), labels_T.index_select(0, places), lambda chunk: finish(head(chunk)), *trained)
    return loss
