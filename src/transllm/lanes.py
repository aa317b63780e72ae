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
