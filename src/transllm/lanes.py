"""Several passes of a model at once on a processor, each on cores of its own.

Between two matrix products of a small model a processor's other cores wait: most of a layer's kernels are too small to share. Two
bins of a training step, or two parts of a batch of answers, keep all cores busy side by side; benchmarks/training_speed.py measures
what that gives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from transllm.model.lora import LoraLinear

Lanes = Callable[..., Iterator[Any]]
"""``map``, with several calls at once."""


@contextlib.contextmanager
def lanes(width: int) -> Iterator[Lanes]:
    """Gives a ``map`` that runs ``width`` calls at once; the cores are shared out evenly.

    Results come in order, whatever ends first, and one by one: the gradients of a step's bins need not all be held until the last is done.
    """
    threads = torch.get_num_threads()
    if width < 2:
        yield map
        return
    pool = ThreadPoolExecutor(width, "lane", initializer=lambda: torch.set_num_threads(max(1, threads // width)))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def lanes_for(model: nn.Module, *, bins: int) -> int:
    """How many of a step's bins to compute at once: one for each core, and one alone on an accelerator.

    One alone too where the model drops out at random: lanes would draw from one generator in an order that no resumed run repeats. Our
    LoRA layers draw for each bin by itself.
    """
    on_processor = all(parameter.device.type == "cpu" for parameter in model.parameters())
    by_bin = {dropout for layer in model.modules() if isinstance(layer, LoraLinear) and layer.plain()
              for dropout in layer.lora_dropout.values()}
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout) and module not in by_bin]
    dropouts += [float(getattr(module, "attention_dropout", 0.0) or 0.0) for module in model.modules()]
    return min(bins, torch.get_num_threads()) if on_processor and not any(dropouts) else 1
