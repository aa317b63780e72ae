"""The gated layer ``down(act(gate(x)) * up(x))`` that keeps its two factors and nothing else for the backward pass.

Autograd keeps what the activation gave, and the layer after it the product: a quarter of all that a step holds. Both are made again from
the factors, in two passes over them; what the activation gave then is computed once for both. SiLU's product, and the gradients of both
factors, are one pass each where there are kernels for it (``transllm.native``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from transllm.model.again import made
from transllm.model.lora import LoraLinear
from transllm.native import Kernels, kernels

Activation = Callable[[Tensor], Tensor]


class _Opened:
    """What the activation gave, from where it is made again to where it is wanted next."""

    held: Tensor | None = None

    def take(self) -> Tensor | None:
        """It, once."""
        opened, self.held = self.held, None
        return opened


class _Gated(torch.autograd.Function):
    """``act(gate) * up``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Activation, is_silu: bool, opened: _Opened) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act, ctx.is_silu, ctx.opened = act, is_silu, opened
        ready = _ready(gate, up, is_silu)
        return ready.gate(gate, up) if ready else act(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        opened: Tensor | None = ctx.opened.take()
        ready = _ready(gate, up, ctx.is_silu)
        if ready:
            return *ready.gate_back(gradients[0], gate, up), None, None, None
        if ctx.is_silu:
            opened = ctx.act(gate) if opened is None else opened
            gate_gradient = torch.ops.aten.silu_backward(gradients[0] * up, gate)
        else:
            with torch.enable_grad():
                leaf = gate.detach().requires_grad_()
                opened = ctx.act(leaf)
            (gate_gradient,) = torch.autograd.grad(opened, leaf, gradients[0] * up)
        return gate_gradient, gradients[0] * opened.detach(), None, None, None


def _ready(gate: Tensor, up: Tensor, is_silu: bool) -> Kernels | None:
    ready = kernels() if is_silu else None
    return ready if ready and ready.serve(gate, up) else None


class _Parts(NamedTuple):
    gate: LoraLinear
    up: LoraLinear
    down: LoraLinear
    act: nn.Module
    is_silu: bool


def use_our_gate(model: nn.Module) -> int:
    """Let the gated layers of a model that compute what is written above keep less while gradients are taken.

    Which do is measured, whatever their parts are called. Without gradients, and where layers are compiled, each stays its own.

    Returns:
        how many there are.
    """
    changed = 0
    for module in model.modules():
        parts = next((parts for parts in _candidates(module) if _same(module, parts)), None)
        if parts is not None:
            _wrap(module, parts)
            changed += 1
    return changed


def _candidates(module: nn.Module) -> Iterator[_Parts]:
    """What of the module could be which part, going by shapes."""
    children = list(module.children())
    layers = [child for child in children if isinstance(child, LoraLinear)]
    others = [child for child in children if not isinstance(child, LoraLinear)]
    if len(layers) != 3 or len(others) != 1 or list(others[0].parameters()):
        return
    for gate, up, down in permutations(layers):
        if gate.base_layer.weight.shape == up.base_layer.weight.shape == down.base_layer.weight.T.shape:
            yield _Parts(gate, up, down, others[0], _is_silu(others[0], gate.base_layer.weight))  # type: ignore[arg-type]


@torch.no_grad()
def _is_silu(act: nn.Module, weight: Tensor) -> bool:
    """Whether an activation is SiLU, in the weight's precision."""
    probe = torch.linspace(-9, 9, 1000, dtype=weight.dtype, device=weight.device)
    return torch.equal(act(probe), nn.functional.silu(probe))


def _gated(parts: _Parts, x: Tensor) -> Tensor:
    gate, up = parts.gate(x), parts.up(x)
    opened = _Opened()
    product: Tensor = _Gated.apply(gate, up, parts.act, parts.is_silu, opened)  # type: ignore[no-untyped-call]  # torch's own

    def make(gate: Tensor, up: Tensor) -> Tensor:
        ready = _ready(gate, up, parts.is_silu)
        if ready:
            return ready.gate(gate, up)
        opened.held = parts.act(gate)
        return opened.held * up

    return cast(Tensor, parts.down(made(product, make, gate, up)))


@torch.no_grad()
def _same(module: nn.Module, parts: _Parts) -> bool:
    weight: Tensor = parts.gate.base_layer.weight  # type: ignore[assignment]
    draw = torch.Generator().manual_seed(1)
    probe = torch.randn(2, weight.shape[1], generator=draw).to(weight)
    training = module.training
    module.eval()  # dropout would draw
    try:
        ours, theirs = _gated(parts, probe), module(probe)
    finally:
        module.train(training)
    return isinstance(theirs, Tensor) and theirs.shape == ours.shape and bool((ours - theirs).norm() <= 0.01 * theirs.norm())


def _wrap(module: nn.Module, parts: _Parts) -> None:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not parts.down.short_way:
            return cast(Tensor, own(x))
        return _gated(parts, x)

    module.forward = forward
