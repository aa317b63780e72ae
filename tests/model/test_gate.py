"""Gated layers and norms whose results are made again in the backward pass: the same gradients to the last bit, from less memory; with
compiled kernels, which round once where torch rounds at each step, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from transllm.model import Adapted, Documents
from transllm.model.again import again, made
from transllm.model.gate import use_our_gate
from transllm.model.lora import LoraLinear, drops

Adapt = Callable[..., Adapted]
IDS, LENGTHS = torch.arange(64).unsqueeze(0) * 7 % 300, [40, 24]


def _moved(adapted: Adapted) -> Adapted:
    with torch.no_grad():
        draw = torch.Generator().manual_seed(5)
        for parameter in adapted.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return adapted


def _gradients(adapted: Adapted) -> tuple[list[Tensor], int]:
    """Of what trains, and how many numbers were kept for them."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), drops(3):
        hidden = adapted.hidden(IDS, Documents(LENGTHS))
        total = hidden.float().square().sum()
    trained = list(adapted.trainable().values())
    gradients = torch.autograd.grad(total, trained, allow_unused=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in adapted.peft.parameters()}
    numbers = sum(tensor.untyped_storage().nbytes() // tensor.element_size() for place, tensor in kept.items() if place not in own)
    return [gradient for gradient in gradients if gradient is not None], numbers


@pytest.mark.parametrize(("kind", "settings"), [
    ("tied", {}), ("padded", {}), ("gemma", {}), ("sliding", {"dropout": 0.3}), ("tied", {"embeddings": "all"})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_the_same_and_less_is_kept(adapt: Adapt, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, kind: str,
                                                 settings: dict[str, Any], dtype: torch.dtype, compiled: bool) -> None:
    if not compiled:
        request.getfixturevalue("torch_only")
    found = []
    for lean in (False, True):
        adapted = _moved(adapt(kind, dtype=dtype, **settings))
        with monkeypatch.context() as patched:
            if not lean:
                patched.setattr("transllm.model.adapter.use_our_gate", lambda _: 0)
                patched.setattr("transllm.model.norm.made", lambda x, *_: x)
            assert adapted.quicken()["lean_gates"] == (2 if lean else 0)
            adapted.peft.train()
            found.append(_gradients(adapted))
    (plain, kept), (ours, fewer) = found
    assert len(plain) == len(ours) > 20
    if compiled:
        close = 1e-5 if dtype == torch.float32 else 0.03
        assert all((left - right).norm() <= close * left.norm() for left, right in zip(plain, ours, strict=True))
    else:
        assert all(torch.equal(left, right) for left, right in zip(plain, ours, strict=True))
    layer = 2 * IDS.shape[1]  # two layers, so many tokens
    # What the activation gave and the product, 48 numbers each; the outputs of both norms, 32 each, where they are ours.
    assert kept - fewer == layer * (2 * 48 + (2 * 32 if kind != "gemma" else 0))


def test_without_gradients_a_layer_is_its_own(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = _moved(adapt("tied"))
    adapted.quicken()
    calls: list[int] = []
    monkeypatch.setattr("transllm.model.gate._gated", lambda parts, x: calls.append(1))
    with torch.no_grad():
        adapted.hidden(IDS, Documents(LENGTHS))
    for module in adapted.base.modules():  # as where layers are compiled
        if isinstance(module, LoraLinear):
            module.short_way = False
    adapted.hidden(IDS, Documents(LENGTHS))
    assert not calls


def test_what_computes_something_else_is_left_alone(adapt: Adapt) -> None:
    class _Other(torch.nn.Module):
        """Its parts are named and shaped alike, and put together in another way."""

        def __init__(self, mlp: Any) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj, self.act_fn = mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * (1 + self.up_proj(x)))
            return y

    mlp = _moved(adapt("tied")).base.get_decoder().layers[0].mlp
    other = _Other(mlp)
    assert use_our_gate(other) == 0 and "forward" not in vars(other)
    mlp.down_proj = mlp.down_proj.base_layer  # a layer that has no adapter
    assert use_our_gate(mlp) == 0
    assert use_our_gate(adapt("tied", train="rows").base) == 0


def test_a_tensor_carries_how_it_was_made_and_no_history() -> None:
    left, right = torch.ones(3, requires_grad=True), torch.full((3,), 2.0)
    product = made(left * right, lambda _, *of: torch.mul(*of), left, right)
    origin = again(product)
    assert origin is not None and torch.equal(origin.make(None, *origin.of), product) and not any(one.requires_grad for one in origin.of)
    assert again(product + 1) is None and again(left) is None


@pytest.mark.parametrize("kind", ["tied", "gemma"])
def test_what_the_activation_gave_is_made_once_for_two(adapt: Adapt, torch_only: None, kind: str) -> None:
    """For the layer after it and for the gate itself."""
    adapted = _moved(adapt(kind))
    adapted.quicken()
    calls: list[int] = []
    layers = [module.act_fn for module in adapted.peft.modules() if hasattr(module, "act_fn")]
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    total = adapted.hidden(IDS, Documents(LENGTHS)).square().sum()
    assert len(layers) == 2 and len(calls) == 2
    total.backward()
    assert len(calls) == 4
