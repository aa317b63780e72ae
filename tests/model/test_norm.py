"""Our norm computes what the family's does, gradients too, and only where it does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from transllm.model.norm import use_our_norm


def _norm(kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    norm = kind(48, eps=1e-6)
    nn.init.uniform_(norm.weight, 0.2, 1.5, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    return norm.to(dtype).requires_grad_(False)


def _run(norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2, 5, 48, generator=draw).to(dtype).requires_grad_()
    y = norm(x)
    (gradient,) = torch.autograd.grad(y, x, torch.randn(2, 5, 48, generator=draw).to(dtype))
    return y.detach(), gradient


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen2RMSNorm])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_value_and_gradient_are_the_familys(kind: type[nn.Module], dtype: torch.dtype, tolerance: float) -> None:
    norm = _norm(kind, dtype)
    value, gradient = _run(norm, dtype)
    assert use_our_norm(norm) == 1
    ours, our_gradient = _run(norm, dtype)
    torch.testing.assert_close(ours, value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(our_gradient, gradient, rtol=tolerance, atol=tolerance)
    assert not torch.equal(our_gradient, gradient), "another way to the same gradient, or this test compares a thing with itself"


def test_without_gradients_it_is_the_familys_bit_for_bit() -> None:
    norm, x = _norm(LlamaRMSNorm, torch.bfloat16), torch.randn(3, 48, generator=torch.Generator().manual_seed(3)).bfloat16()
    before = norm(x)
    use_our_norm(norm)
    with torch.no_grad():
        assert torch.equal(norm(x), before)


def test_others_are_left_alone() -> None:
    for norm in (_norm(Gemma2RMSNorm, torch.float32),  # adds one to the weight
                 _norm(LlamaRMSNorm, torch.float32).requires_grad_(),  # its weight trains
                 nn.LayerNorm(48).requires_grad_(False)):
        assert use_our_norm(norm) == 0
        assert "forward" not in vars(norm)
