"""Rows of a round length: products of sizes that come again, and nothing else that could be told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from transllm.model import Adapted, Documents, hidden_states
from transllm.model.attention import Shared
from transllm.model.rounding import to_round


@pytest.mark.parametrize(("count", "more"), [(1, 31), (31, 1), (32, 0), (33, 31), (1024, 0)])
def test_how_many_are_added(count: int, more: int) -> None:
    assert to_round(count, torch.device("cpu")) == more and to_round(count, torch.device("cuda")) == 0


def test_a_layer_sees_round_lengths_and_a_caller_its_own(adapt: Callable[..., Adapted]) -> None:
    adapted = adapt("tied")
    adapted.quicken()
    seen: list[int] = []
    adapted.base.get_decoder().layers[0].register_forward_pre_hook(
        lambda layer, inputs, named: seen.append((inputs or (named["hidden_states"],))[0].shape[1]), with_kwargs=True)
    whole = torch.arange(70).unsqueeze(0) * 7 % 300
    states = hidden_states(adapted.base, whole[:, :61], Documents([40, 25], shared=[Shared(1, of=0, tokens=4)]))
    assert seen == [64] and states.shape[1] == 61
    alone = hidden_states(adapted.base, whole[:, :40], Documents([40]))
    with torch.no_grad():  # products of another size may differ in the last bit, and the original is to be the original
        hidden_states(adapted.base, whole[:, :40], Documents([40]))
    assert seen == [64, 64, 40]
    torch.testing.assert_close(states[:, :40], alone, rtol=1e-4, atol=1e-5)
    trained = [parameter for name, parameter in adapted.trainable().items() if "lora_B" in name]
    (gradient,) = torch.autograd.grad(states.square().sum(), trained[:1])
    assert gradient.isfinite().all() and gradient.any()
