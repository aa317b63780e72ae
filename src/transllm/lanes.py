"""Several passes of a model at once on a processor, each on cores of its own.

Between two matrix products of a small model a processor's other cores wait: most of a layer's kernels are too small to share. Two
bins of a training step, or two parts of a batch of answers, keep all cores busy side by side; benchmarks/training_speed.py measures
what that gives.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_STAY = 0.1
"""Seconds that a lane stays on a core. What it finds in the new one's cache is gone, which costs a millisecond."""

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
    ids: list[int] = []

    def begin() -> None:
        torch.set_num_threads(max(1, threads // width))
        ids.append(threading.get_native_id())

    pool = ThreadPoolExecutor(width, "lane", initializer=begin)
    over = threading.Event()
    if threads == width and sys.platform == "linux":
        threading.Thread(target=_change_cores, args=(ids, over), name="change-cores", daemon=True).start()
    try:
        yield pool.map
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _change_cores(ids: Sequence[int], over: threading.Event) -> None:
    """Let lanes that have a core each change places now and then, so that all come forward alike.

    Cores are not: those of many laptops by design, those of a shared machine by what its other guests do, and a step is over when its last
    lane is. A lane is put on a core and let go at once, so that the system can still move it away from another program.
    """
    cores = sorted(os.sched_getaffinity(0))
    turn = 0
    while not over.wait(_STAY):
        turn += 1
        lanes_now = list(ids)
        if len(lanes_now) != len(cores):  # not all have begun, or the system has cores to choose from
            continue
        with contextlib.suppress(OSError):  # a lane has ended, or threads may not be moved here
            for place, lane in enumerate(lanes_now):
                os.sched_setaffinity(lane, {cores[(place + turn) % len(cores)]})
        for lane in lanes_now:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(lane, cores)
