"""Compiled where that is faster than our own short ways: measured, and undone where it is not.

On a processor it is not (benchmarks/training_speed.py: compiled layers reach two thirds of the speed of ours), so only accelerators try.
Of a model the repeated layer is compiled once for all layers and all lengths of rows: layers differ in their weights only, and shapes are
symbols.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from transllm import processes
from transllm.model.attention import PACKED, packed_attention
from transllm.model.lora import LoraLinear

Steps = Sequence[Callable[[], object]]

_FASTER = 0.95
"""What is compiled stays if it takes at most so much of the time: less is noise, and compilation itself takes a minute."""


def compile_layers(model: PreTrainedModel, steps: Steps, *, before: bool | None = None, backend: str = "inductor") -> dict[str, Any]:
    """Compile the repeated layers and keep that if it pays; see ``compile_if_faster``.

    Args:
        model: the decoder inside an adapter.
        steps: forward and backward of some micro batches of unlike lengths.
        backend: torch.compile's.
    """
    layers = _repeated(model)
    return compile_if_faster(lambda: _compile(model, layers, backend), lambda: _undo(model, layers), steps, before=before)


def compile_if_faster(take: Callable[[], None], leave: Callable[[], None], steps: Steps, *, before: bool | None = None) -> dict[str, Any]:
    """Take the compiled way, and leave it again if it does not pay, for all processes together.

    Args:
        steps: what is timed; they must leave no trace.
        before: what was found when this training began: it goes on in the same way, whatever would be measured now.

    Returns:
        ``compiled``, and ``compiled_seconds``, ``plain_seconds`` of the steps, or ``compile_error``: why it could not be done.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    if before is False:
        return {"compiled": False}
    problem = ""
    plain = _seconds(steps) if before is None else math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what could not be traced runs as it is, and the times say whether that pays
        take()
        try:
            _run(steps)  # compiles
            compiled = _seconds(steps) if before is None else 0.0
        except (TorchDynamoException, InductorError, RuntimeError) as error:
            compiled, problem = math.inf, " ".join(f"{type(error).__name__}: {error}".split())[:300]
    plain, compiled = processes.summed(plain, compiled)
    kept = compiled <= _FASTER * plain and compiled < math.inf
    if not kept:
        leave()
    if problem:
        return {"compiled": False, "compile_error": problem}
    return {"compiled": kept} | ({"compiled_seconds": round(compiled, 4), "plain_seconds": round(plain, 4)} if before is None else {})


def _repeated(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers: its longest list of modules."""
    lists = [list(module) for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _compile(model: PreTrainedModel, layers: Sequence[nn.Module], backend: str) -> None:
    # Its groups differ from row to row: seen through, it would be compiled for each.
    AttentionInterface.register(PACKED, torch.compiler.disable(packed_attention))
    _take_short_way(model, False)  # an opaque function in each place would leave nothing to fuse
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def _undo(model: PreTrainedModel, layers: Sequence[nn.Module]) -> None:
    AttentionInterface.register(PACKED, packed_attention)
    _take_short_way(model, True)
    for layer in layers:
        layer._compiled_call_impl = None


def _take_short_way(model: PreTrainedModel, on: bool) -> None:
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.short_way = on


def _run(steps: Steps) -> None:
    for step in steps:
        step()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _seconds(steps: Steps) -> float:
    """The best of three."""
    found = []
    _run(steps)
    for _ in range(3):
        started = time.perf_counter()
        _run(steps)
        found.append(time.perf_counter() - started)
    return min(found)
