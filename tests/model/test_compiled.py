"""Compiled layers compute the same, serve all lengths with one graph, and go again where they do not pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from transllm.model import Adapted, Documents
from transllm.model import compiled as module

Adapt = Callable[..., Adapted]


def _gradients(adapted: Adapted, lengths: list[int]) -> list[torch.Tensor]:
    ids = torch.arange(sum(lengths)).unsqueeze(0) % 300
    hidden = adapted.hidden(ids, Documents(lengths))
    trained = [parameter for name, parameter in adapted.trainable().items() if "lora_" in name]
    return list(torch.autograd.grad(hidden.square().sum(), trained))


def _timed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """What the clock says is not this test's business; what follows from it is."""
    given = iter(seconds)
    monkeypatch.setattr(module, "_seconds", lambda steps: (module._run(steps), next(given))[1])


@pytest.mark.parametrize(("seconds", "kept"), [((1.0, 0.5), True), ((1.0, 0.97), False)])
def test_it_stays_where_it_is_faster(adapt: Adapt, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], kept: bool) -> None:
    adapted = adapt("tied")
    adapted.quicken()
    expected = _gradients(adapted, [9, 5])
    _timed(monkeypatch, *seconds)
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    steps = [lambda lengths=lengths: _gradients(adapted, lengths) for lengths in ([9, 5], [27, 3, 20], [70])]
    found = module.compile_layers(adapted.base, steps, backend=backend)  # type: ignore[arg-type]
    assert found == {"compiled": kept, "compiled_seconds": seconds[1], "plain_seconds": seconds[0]}
    made = len(graphs)
    assert made > 0, "something was compiled"
    for left, right in zip(_gradients(adapted, [9, 5]), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    _gradients(adapted, [2, 2, 100])
    assert len(graphs) == made, "another length needs no other graph"
    compiled = [layer._compiled_call_impl is not None for layer in adapted.base.get_decoder().layers]
    assert compiled == [kept] * len(compiled)
    module._undo(adapted.base, list(adapted.base.get_decoder().layers))  # the attention is everybody's


def test_a_training_goes_on_as_it_began(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = adapt("tied")
    adapted.quicken()
    steps = [lambda: _gradients(adapted, [9, 5])]
    _timed(monkeypatch)  # nothing may be measured
    layers = list(adapted.base.get_decoder().layers)
    for before in (False, True):
        found = module.compile_layers(adapted.base, steps, before=before, backend=lambda graph, _: graph)  # type: ignore[arg-type]
        assert found == {"compiled": before}
        assert [layer._compiled_call_impl is not None for layer in layers] == [before] * len(layers)
    module._undo(adapted.base, layers)


def test_a_compiler_that_fails_is_told_and_training_goes_on(adapt: Adapt) -> None:
    adapted = adapt("tied")
    adapted.quicken()

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    found = module.compile_layers(adapted.base, [lambda: _gradients(adapted, [5, 4])], backend=broken)  # type: ignore[arg-type]
    assert found["compiled"] is False and "no compiler here" in found["compile_error"]
    _gradients(adapted, [5, 4])
