"""Rotary positions of queries and keys in one pass each way, or in three where there is no kernel for it (``transllm.native``).

Families turn the halves of each head by signs, joins and sums of whole tensors, and autograd walks each of these back: on a processor that
takes as long as the products of queries and keys that it is for.

Shapes: (1, H, T, d) queries or keys of H heads; cosines and sines broadcast to that.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from transllm.native import serving

_NAME = "apply_rotary_pos_emb"
"""What most families of transformers call their function, each in a module of its own."""

_Rotate = Callable[..., tuple[Tensor, Tensor]]


class _Rotated(torch.autograd.Function):
    """``x cos + (-x₂, x₁) sin`` for the halves x₁, x₂ of each head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _turned(gradients[0], *ctx.saved_tensors, back=True), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    """Turned by the angle; ``back``: by the transpose of that, which is the gradient's way."""
    ready = serving(x, cos, sin)
    if ready and len(x) == 1 and _for_each_place(cos, x) and _for_each_place(sin, x):
        return ready.rotate(x, cos, sin, back=back)
    half = x.shape[-1] // 2
    first, second = slice(None, half), slice(half, None)
    result = x * cos
    for to, other, sign in ((first, second, -1), (second, first, 1)):
        result[..., to].addcmul_(x[..., other], sin[..., other if back else to], value=-sign if back else sign)
    return result


def _for_each_place(angles: Tensor, x: Tensor) -> bool:
    """Whether there is one line of them for each place of one row."""
    return angles.shape == (1, 1, *x.shape[2:]) and angles.is_contiguous()


def use_our_rotation(model: nn.Module) -> bool:
    """Let the layers of a model on a processor turn queries and keys so, while gradients are taken.

    The function is the family's, of all its models: without gradients, or on an accelerator, it stays as it is, bit for bit.

    Returns:
        whether there is one that computes this; measured.
    """
    found = False
    if next(model.parameters()).device.type == "cpu":
        for module in _families(model):
            own: _Rotate = getattr(module, _NAME)
            if not hasattr(own, "_transllm_own") and _same(own):
                setattr(module, _NAME, _wrapped(own))
            found |= hasattr(getattr(module, _NAME), "_transllm_own")
    return found


def _families(model: nn.Module) -> Iterator[ModuleType]:
    names = {type(module).__module__ for module in model.modules()}
    yield from (sys.modules[name] for name in sorted(names) if hasattr(sys.modules[name], _NAME))


def _same(own: _Rotate) -> bool:
    """Whether a family's function computes what ours does, and hands back the same gradients."""
    if list(inspect.signature(own).parameters) != ["q", "k", "cos", "sin", "unsqueeze_dim"]:
        return False
    draw = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, heads, 5, 8, generator=draw, dtype=torch.float64).requires_grad_() for heads in (3, 1))
    cos, sin = (torch.randn(1, 5, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    weights = [torch.randn(1, heads, 5, 8, generator=draw, dtype=torch.float64) for heads in (3, 1)]
    try:
        with torch.enable_grad():
            both = [rotate(q, k, cos, sin) for rotate in (own, _wrapped(own))]
            gradients = [torch.autograd.grad([*rotated], [q, k], weights) for rotated in both]
    except RuntimeError:  # it is for other shapes
        return False
    pairs = zip((*both[0], *gradients[0]), (*both[1], *gradients[1]), strict=True)
    return all(one.shape == other.shape and torch.allclose(one, other) for one, other in pairs)


def _wrapped(own: _Rotate) -> _Rotate:
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        whole = q.shape[-1] == k.shape[-1] == cos.shape[-1]  # some families turn a part of each head
        if not torch.is_grad_enabled() or q.device.type != "cpu" or cos.requires_grad or not whole:
            return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        angles = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotated.apply(q, *angles), _Rotated.apply(k, *angles)  # type: ignore[no-untyped-call]  # torch's own

    rotate._transllm_own = own  # type: ignore[attr-defined]
    return rotate
