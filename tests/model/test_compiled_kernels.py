"""A model whose small kernels are compiled: what it computes, and its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from transllm.model import Adapted, Documents, hidden_states
from transllm.model.attention import Shared
from transllm.native import Kernels, kernels

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.skipif(kernels() is None, reason="there is no C compiler here, so there are no compiled kernels to test")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_that_torch_finds(adapt: Callable[..., Adapted], request: pytest.FixtureRequest,
                                              monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    calls: list[str] = []
    call = Kernels._call
    monkeypatch.setattr(Kernels, "_call", lambda self, name, *arguments: (calls.append(name), call(self, name, *arguments))[1])
    documents, found = Documents([25, 20], shared=[Shared(1, of=0, tokens=5)]), []
    for compiled in (True, False):
        if not compiled:
            assert set(calls) == {"gate", "gate_back", "norm", "norm_back", "weigh", "rotate"}
            calls.clear()
            request.getfixturevalue("torch_only")
        adapted = adapt("tied", dtype=dtype)
        with torch.no_grad():
            for parameter in adapted.trainable().values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw.manual_seed(len(parameter))))
        adapted.quicken()
        states = hidden_states(adapted.base, torch.arange(40).unsqueeze(0) * 7 % 300, documents)
        gradients = torch.autograd.grad(states.float().square().sum(), [*adapted.trainable().values()], allow_unused=True)
        found.append([states, *(one for one in gradients if one is not None)])
    assert not calls
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).float().norm() <= (1e-5 if dtype == torch.float32 else 0.03) * theirs.float().norm()
