"""A contender's side of the race: train so many steps when told to, report, and sleep until the next word. Needs nothing but Python.

A contender is one process that loads model and data once. After each optimiser step its trainer calls ``step_done()``. That returns
at once while steps of the turn are left, else it reports the turn and sleeps on standard input until the driver gives the next. So
contenders take turns of a few steps each, and what else happens on the machine meets all alike. The end of the input ends it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

IGNORE = -100


class Turns:
    """Counts what is trained, and reports a turn as one line of JSON on what was standard output when this was made.

    Args:
        warm: steps of the first turn, which begins when the process does: loading, generated code and first allocations are in it.
    """

    def __init__(self, warm: int) -> None:
        # Whatever libraries print goes to the log; only reports go to the driver.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.flops = 0
        """Of one step, where it is known: the floor's."""
        self.matrix_flops = 0.0
        """A second, of one large product, where the floor was to measure it."""
        self.attention_seconds = 0.0
        """Of the turn, as if all cores had done nothing else meanwhile; where it is known: ours, with compiled kernels."""
        self._begin(warm)

    def count(self, tokens: int, labels: int) -> None:
        """What the step that is running trains on: tokens without padding, and those that are predicted."""
        self._tokens += tokens
        self._labels += labels

    def step_done(self) -> None:
        """An optimiser step is done."""
        self._left -= 1
        if self._left > 0:
            return
        turn = {"steps": self._steps, "tokens": self._tokens, "labels": self._labels, "seconds": time.perf_counter() - self._started,
                "cpu_seconds": time.process_time() - self._cpu, "peak_gib": peak_gib(), "threads": _threads(), "flops": self.flops,
                "matrix_flops": self.matrix_flops, "attention_seconds": self.attention_seconds}
        print(json.dumps(turn), file=self._out, flush=True)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # no trainer writes a last checkpoint
        self._begin(int(line))

    def _begin(self, steps: int) -> None:
        self._steps = self._left = steps
        self._tokens = self._labels = 0
        self.attention_seconds = 0.0
        self._started, self._cpu = time.perf_counter(), time.process_time()


def asked() -> dict[str, Any]:
    """What the driver asks of this contender: the JSON that is its one argument."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    return settings


def peak_gib() -> float:
    """The most memory that this process ever held (VmHWM; on CUDA, what its allocator held)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) / 2**20 if found else float("nan")


def _threads() -> int:
    return int(importlib.import_module("torch").get_num_threads())
