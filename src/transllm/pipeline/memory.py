"""What memory this process holds, and giving back what it does not use."""

from __future__ import annotations

import gc
import threading

import psutil
import torch

from transllm.model.pages import give_back_freed


class PeakMemory:
    """The largest resident memory of this process inside a ``with``, sampled; the system's own high-water mark cannot be reset."""

    def __init__(self) -> None:
        self.gib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.gib = max(self.gib, process.memory_info().rss / 2**30)
            if self._done.wait(0.2):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()


def give_back_memory() -> None:
    """Let the system have what was freed: glibc keeps it in every thread's arena, torch on the accelerator, and what comes next, which may
    be another library's or process's, would come on top."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    give_back_freed()
