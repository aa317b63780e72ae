"""The gated layer ``down(act(gate(x)) * up(x))`` that keeps its two factors and nothing else for the backward pass.

Autograd keeps what the activation gave, and the layer after it the product: a quarter of all that a step holds. Both are made again from
the factors, when the layer after it has the product's gradient, so that those of the factors are computed with it: in one pass for SiLU,
where there are kernels for it (``transllm.native``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from transllm.model.again import made
from transllm.model.lora import LoraLinear
from transllm.native import serving

Activation = Callable[[Tensor], Tensor]


class _Ahead:
    """The gradients of both factors, from where the product is made again, which is when they can be had in the same pass."""

    held: tuple[Tensor, Tensor, Tensor] | None = None

    def take(self, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """Those that belong to this gradient of the product, once."""
        held, self.held = self.held, None
        return held[1:] if held is not None and held[0].data_ptr() == gradient.data_ptr() and held[0].shape == gradient.shape else None


class _Gated(torch.autograd.Function):
    """``act(gate) * up``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Activation, is_silu: bool, ahead: _Ahead) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act, ctx.is_silu, ctx.ahead = act, is_silu, ahead
        return _product(gate, up, act, is_silu)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        of_factors = ctx.ahead.take(gradients[0]) or _with_gradients(gradients[0], gate, up, ctx.act, ctx.is_silu)[1:]
        return *of_factors, None, None, None


def _product(gate: Tensor, up: Tensor, act: Activation, is_silu: bool) -> Tensor:
    ready = serving(gate, up) if is_silu else None
    return ready.gate(gate, up) if ready else act(gate) * up


def _with_gradients(gradient: Tensor, gate: Tensor, up: Tensor, act: Activation, is_silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The product, and the gradients of gate and up from that of the product."""
    ready = serving(gate, up) if is_silu else None
    if ready:
        return ready.gate_back(gradient, gate, up)
    if is_silu:
        opened, of_gate = act(gate), torch.ops.aten.silu_backward(gradient * up, gate)
    else:
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            opened = act(leaf)
        (of_gate,) = torch.autograd.grad(opened, leaf, gradient * up)
        opened = opened.detach()
    return opened * up, of_gate, gradient * opened


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
    ahead = _Ahead()
    product: Tensor = _Gated.apply(gate, up, parts.act, parts.is_silu, ahead)  # type: ignore[no-untyped-call]  # torch's own

    def make(gradient: Tensor | None, gate: Tensor, up: Tensor) -> Tensor:
        if gradient is None:
            return _product(gate, up, parts.act, parts.is_silu)
        product, of_gate, of_up = _with_gradients(gradient, gate, up, parts.act, parts.is_silu)
        ahead.held = gradient, of_gate, of_up
        return product

    return cast(Tensor, parts.down(made(product, make, gate, up)))


@torch.no_grad()
def _same(module: nn.Module, parts: _Parts) -> bool:
    """Whether the module computes this, to the last bit where torch computes; that kernels compute the same is proved elsewhere."""
    weight: Tensor = parts.gate.base_layer.weight  # type: ignore[assignment]
    draw = torch.Generator().manual_seed(1)
    probe = torch.randn(2, weight.shape[1], generator=draw).to(weight)
    training = module.training
    module.eval()  # dropout would draw
    try:
        ours, theirs = _gated(parts._replace(is_silu=False), probe), module(probe)
    finally:
        module.train(training)
    return isinstance(theirs, Tensor) and theirs.shape == ours.shape and torch.equal(ours, theirs)


def _wrap(module: nn.Module, parts: _Parts) -> None:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not parts.down.short_way:
            return cast(Tensor, own(x))
        return _gated(parts, x)

    module.forward = forward
