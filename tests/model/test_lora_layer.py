"""Our LoRA layer computes what peft's computes."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

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
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_are_pefts(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool) -> None:
    calls = _counted(monkeypatch)
    ours, theirs = _both(_layer(bias=bias).train(), torch.randn(shape, generator=torch.Generator().manual_seed(2)))
    assert calls == [1]
    for left, right in zip(ours, theirs, strict=True):
        assert left.dtype == right.dtype == torch.float32
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)  # sums in another order


def test_bfloat16_keeps_float32_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    layer = _layer(dtype=torch.bfloat16)
    ours, theirs = _both(layer, x)
    assert calls == [1]
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left.detach().float(), right.detach().float(), rtol=0.05, atol=0.05 * float(right.detach().abs().max()))


def test_dropout_is_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    layer = _layer(dropout=0.25).train()
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    for left, right in zip(*_both(layer, x), strict=True):  # both draw the same numbers from torch's generator
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert calls == [1]
    assert not torch.equal(layer(x), layer(x)) and torch.equal(layer.eval()(x), layer(x))


def test_what_is_dropped_is_the_bins_and_the_layers() -> None:
    """Whichever thread computes a bin, and whatever was drawn before."""
    layer, x = _layer(dropout=0.25).train(), torch.randn(40, 6, generator=torch.Generator().manual_seed(2))

    def output(seed: int) -> Tensor:
        torch.rand(int(torch.randint(9, ())))
        with lora.drops(seed):
            return layer(x).detach()

    with ThreadPoolExecutor(3) as pool:
        first, other, again = pool.map(output, [5, 6, 5])
    assert torch.equal(first, again) and not torch.equal(first, other)
    layer.number = 1
    assert not torch.equal(output(5), first)


def test_small_kernels_are_the_same_in_the_inputs_precision() -> None:
    layer = _layer(bias=True, dtype=torch.bfloat16)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = layer(x)
    layer.short_way = False
    found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.detach().abs().max()))


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


class _Siblings(nn.Module):
    """Three layers on one input, one that reads what they give, and one that reads the first input's sum with it."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.config = {"model_type": "block"}
        self.q, self.k, self.v = nn.Linear(6, 8, bias=bias), nn.Linear(6, 4, bias=bias), nn.Linear(6, 4, bias=bias)
        self.o = nn.Linear(4, 6, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.q(x)[..., :4] * self.k(x) + self.v(x)
        y: Tensor = self.o(mixed)
        return y


def _family(*, bias: bool, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    model = get_peft_model(_Siblings(bias=bias).to(dtype).requires_grad_(False), use_our_layer(  # type: ignore[arg-type]
        LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules=["q", "k", "v", "o"])))
    lora.number_layers(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("bias", [False, True])
def test_siblings_together_are_siblings_alone(monkeypatch: pytest.MonkeyPatch, bias: bool, dropout: float) -> None:
    alone, together = _family(bias=bias, dropout=dropout), _family(bias=bias, dropout=dropout)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert lora.join_siblings(together, lambda: together(x)) == 1
    calls = _counted(monkeypatch)
    results = []
    for model in (alone, together):
        inputs = x.clone().requires_grad_()
        with lora.drops(3):
            output = model(inputs)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        results.append([output, *torch.autograd.grad(output.square().sum(), [inputs, *trained])])
    assert len(calls) == 4 + 2, "three layers are one product"
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)  # sums in another order


def test_siblings_off_are_the_frozen_layers_bit_for_bit() -> None:
    model = _family(bias=False, dtype=torch.bfloat16)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
        before = model(x)
    with torch.no_grad():
        lora.join_siblings(model, lambda: model(x))
        assert not torch.equal(model(x), before), "the adapter is on"
        with model.disable_adapter():  # type: ignore[operator]
            assert torch.equal(model(x), before)


def test_siblings_follow_their_weights_and_keep_nothing_of_another_input() -> None:
    alone, together = _family(bias=False), _family(bias=False)
    draw = torch.Generator().manual_seed(2)
    first, second = torch.randn(4, 6, generator=draw), torch.randn(4, 6, generator=draw)
    with torch.no_grad():
        lora.join_siblings(together, lambda: together(first))
        together.base_model.model.q(first)  # the others never come for theirs
        torch.testing.assert_close(together(second), alone(second))
        for model in (alone, together):
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.mul_(1.5)
        torch.testing.assert_close(together(second), alone(second))
        torch.testing.assert_close(together(first), alone(first))


def test_a_layer_used_twice_has_no_siblings() -> None:
    model = _family(bias=False)
    x = torch.randn(2, 6)
    with torch.no_grad():
        assert lora.join_siblings(model, lambda: (model(x), model(x))) == 0


def test_passes_share_the_copies_of_adapters_that_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy for all passes and threads inside, taken anew after each change, though fused optimisers leave torch's version as it is."""
    made: list[int] = []
    copy = lora._Stacked._copy
    monkeypatch.setattr(lora._Stacked, "_copy", lambda self: (made.append(self.a_ri.data_ptr()), copy(self))[1])
    layer, x = _layer().train(), torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    trained = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    optimizer = torch.optim.AdamW(trained, lr=0.5, fused=True)
    for step in range(3):
        with lora.unchanged(), ThreadPoolExecutor(2) as pool:
            outputs = [layer(x), layer(x), *pool.map(layer, [x, x])]
            assert len(made) == step + 1
        torch.testing.assert_close(outputs[0], PeftLoraLinear.forward(layer, x), rtol=1e-4, atol=1e-5)
        assert all(torch.equal(outputs[0], other) for other in outputs[1:])
        optimizer.zero_grad()
        outputs[0].square().sum().backward()
        optimizer.step()
    assert len(set(made)) == 1, "a copy stays where it is"
    layer(x), layer(x)
    assert len(made) == 5, "outside, each pass makes its own"


def test_copies_follow_what_an_adapter_is_multiplied_by() -> None:
    layer, x = _layer().train(), torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    for scale in (2.0, 0.5):
        layer.scaling["default"] = scale
        with lora.unchanged():
            torch.testing.assert_close(layer(x), PeftLoraLinear.forward(layer, x), rtol=1e-4, atol=1e-5)
