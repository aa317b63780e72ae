"""What a training compiles computes the same, is kept where it is faster, and goes on as it began."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from transllm.model import Adapted, compiled
from transllm.recipe.schema import Logits, TrainStage
from transllm.training import Rows
from transllm.training.compiling import compile_divergence, compile_what_pays
from transllm.training.loss import divergence_kernel
from transllm.training.schedule import plan_steps
from transllm.training.step import LossModule

OLD, NEW = 50, 7


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def _eager(graph: Any, _: Any) -> Any:
    return graph


def _timed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """What the clock says is not this test's business; what follows from it is."""
    given = iter(seconds)
    monkeypatch.setattr(compiled, "_seconds", lambda steps: (compiled._run(steps), next(given))[1])


def _found(kernel: Callable[..., Tensor], rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    student, teacher = (3 * torch.randn(rows, width, generator=draw, dtype=torch.float64).to(dtype) for width in (OLD + NEW, OLD))
    gradient = torch.full_like(student, float("nan"))
    return kernel(student, teacher, gradient), gradient


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++, which is not installed")
@pytest.mark.filterwarnings("ignore")  # what torch warns of while it traces is its own
def test_the_compiled_kernel_is_the_kernel() -> None:
    plain = divergence_kernel("mixed", temperature=1.5, share=0.3)
    made = torch.compile(plain)
    for rows in (16, 5, 9):
        for left, right in zip(_found(made, rows, torch.float64), _found(plain, rows, torch.float64), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_one_graph_serves_full_chunks_and_one_all_others(adapt: Callable[..., Adapted], monkeypatch: pytest.MonkeyPatch) -> None:
    module, graphs = LossModule(adapt(), {}, Logits(divergence="reverse")), []
    plain = module.kernel
    _timed(monkeypatch, 1.0, 0.5)
    steps = [partial(lambda rows: _found(module.kernel, rows, torch.float32), rows) for rows in (256, 85)]
    found = compile_divergence(module, steps, backend=lambda graph, _: (graphs.append(graph), graph)[1])  # type: ignore[arg-type]
    assert found == {"compiled": True, "compiled_seconds": 0.5, "plain_seconds": 1.0} and module.kernel is not plain
    for rows in (256, 13, 200, 2):
        _found(module.kernel, rows, torch.float32)
    assert len(graphs) == 2


def test_a_kernel_that_is_no_faster_goes_again(adapt: Callable[..., Adapted], monkeypatch: pytest.MonkeyPatch) -> None:
    module = LossModule(adapt(), {})
    plain = module.kernel
    _timed(monkeypatch, 1.0, 0.99)
    found = compile_divergence(module, [lambda: _found(module.kernel, 4, torch.float32)], backend=_eager)  # type: ignore[arg-type]
    assert found["compiled"] is False and module.kernel is plain


@pytest.mark.parametrize("mirrored", [False, True])
def test_layers_and_divergence_are_tried_apart_and_a_resumed_training_asks_nothing(
        adapt: Callable[..., Adapted], rows: Rows, monkeypatch: pytest.MonkeyPatch, mirrored: bool) -> None:
    monkeypatch.setattr(compiled, "_compile", lambda model, layers, backend: None)  # layers are tests/model/test_compiled.py's
    monkeypatch.setattr(torch, "compile", lambda kernel, **_: partial(kernel))
    adapted = adapt()
    module, plan = LossModule(adapted, {}), plan_steps(rows, TrainStage(tokens=512, batch_tokens=128, micro_tokens=64), seed=1)
    _timed(monkeypatch, 1.0, 2.0, 1.0, 0.5)
    found = compile_what_pays(adapted, module, rows, plan, mirrored=mirrored, before={})
    assert {what: one["compiled"] for what, one in found.items()} == ({"layers": False, "divergence": True} if mirrored else
                                                                       {"layers": False})
    again = compile_what_pays(adapted, LossModule(adapted, {}), rows, plan, mirrored=mirrored,
                              before={what: one["compiled"] for what, one in found.items()})
    assert again == {what: {"compiled": one["compiled"]} for what, one in found.items()}
    assert all(parameter.grad is None for parameter in adapted.trainable().values()), "a trial leaves no trace"
