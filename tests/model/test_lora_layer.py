"""Our LoRA layer computes what peft's computes."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn

from transllm.model import lora
from transllm.model.lora import LoraLinear, use_our_layer


class _Block(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.config = {"model_type": "block"}
        self.inner = nn.Linear(6, 10, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


def _layer(*, bias: bool = False, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> LoraLinear:
    torch.manual_seed(1)
    model = get_peft_model(_Block(bias=bias).to(dtype).requires_grad_(False), use_our_layer(  # type: ignore[arg-type]
        LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules=["inner"])))
    layer = model.base_model.model.inner
    assert type(layer) is LoraLinear
    nn.init.normal_(layer.lora_B["default"].weight)
    return layer


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time the short way is taken."""
    calls: list[int] = []
    apply = lora._LoraProduct.apply
    monkeypatch.setattr(lora._LoraProduct, "apply", lambda *args: (calls.append(1), apply(*args))[1])
    return calls


def _both(layer: LoraLinear, x: Tensor) -> list[tuple[Tensor, ...]]:
    """Output and gradients (of x, A, B) of our forward and of peft's."""
    results = []
    for forward in (LoraLinear.forward, PeftLoraLinear.forward):
        one, inputs = copy.deepcopy(layer), x.clone().requires_grad_()
        torch.manual_seed(9)
        output = forward(one, inputs)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        results.append((output, inputs.grad, one.lora_A["default"].weight.grad, one.lora_B["default"].weight.grad))
    return results


@pytest.mark.parametrize("shape", [(7, 6), (2, 5, 6), (1, 1, 6)])
def test_output_and_gradients_are_pefts(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    calls = _counted(monkeypatch)
    ours, theirs = _both(_layer().train(), torch.randn(shape, generator=torch.Generator().manual_seed(2)))
    assert calls == [1]
    for left, right in zip(ours, theirs, strict=True):
        assert left.dtype == right.dtype == torch.float32
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_bfloat16_keeps_float32_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    layer = _layer(dtype=torch.bfloat16)
    ours, theirs = _both(layer, x)
    assert calls == [1]
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left.detach().float(), right.detach().float(), rtol=0.05, atol=0.05 * float(right.detach().abs().max()))


@pytest.mark.parametrize(("bias", "dropout"), [(True, 0.0), (False, 0.5)])
def test_bias_and_dropout_take_pefts_way(monkeypatch: pytest.MonkeyPatch, bias: bool, dropout: float) -> None:
    calls = _counted(monkeypatch)
    layer = _layer(bias=bias, dropout=dropout).train()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    for left, right in zip(*_both(layer, x), strict=True):
        assert torch.equal(left, right)
    assert calls == []
    if dropout:
        assert not torch.equal(layer(x), layer.eval()(x)), "dropout is at work"
        assert calls == [1], "in evaluation there is no dropout, and the short way is right again"


def test_off_and_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    layer = _layer().eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    adapted = layer(x)
    calls.clear()
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))
    layer.enable_adapters(True)
    layer.merge()
    torch.testing.assert_close(layer(x), adapted)
    assert calls == []
