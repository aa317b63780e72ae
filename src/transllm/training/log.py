"""The lines of a training stage's ``log.jsonl``, which trackers get too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import psutil
import torch

from transllm.files import JsonLines, read_jsonl, write_text
from transllm.training.state import State
from transllm.training.trackers import Trackers

_LN2 = math.log(2)


class TrainLog:
    """A stage's log. Lines behind ``step`` are cut off when it is opened: their steps will be done again.

    Args:
        path: the file; None: nothing is written, for processes other than the main one.
        step: the last step that is done.
        trackers: get the numbers of each line.
    """

    def __init__(self, path: Path | None, *, step: int, trackers: Trackers) -> None:
        self._trackers = trackers
        self._file = None if path is None else JsonLines(_cut(path, step))

    def write(self, line: dict[str, Any]) -> None:
        """Append a line."""
        if self._file is not None:
            self._file.write(line)
        self._trackers.log(line)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.__exit__(*exception)
        self._trackers.finish()


# Measured before the step that comes next, so it is measured again where training goes on there.
_HELD_OUT = {"held_out_bits_per_byte"}


def _cut(path: Path, step: int) -> Path:
    kept = [line for line in read_jsonl(path) if line["step"] < step or (line["step"] == step and not _HELD_OUT & line.keys())]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return path


def line_of(state: State, *, steps: int, rate: float, norm: float, matrix_flops: float) -> dict[str, Any]:
    """A line about all steps since the one before.

    Args:
        rate: the learning rate of the last of them.
        norm: of its gradient, before it was clipped.
        matrix_flops: what all processes' machines do in a second in large matrix products.
    """
    recent = state.take_recent()
    seconds = max(1e-9, recent.seconds)
    line = {
        "step": state.step, "steps": steps, "tokens": state.tokens, "loss": recent.loss,
        "bits_per_byte": recent.nats / _LN2 / max(1, recent.n_bytes), "learning_rate": rate, "gradient_norm": norm,
        "tokens_per_second": recent.tokens / seconds, "matrix_share": recent.flops / seconds / matrix_flops,
        "padding": 1 - state.tokens / state.room, "shared": recent.shared / max(1, recent.tokens), "seconds": round(state.seconds, 3),
        "memory_gib": psutil.Process().memory_info().rss / 2**30}
    if recent.mirrored:
        line["kl_to_original"] = recent.divergence / recent.mirrored
    if torch.cuda.is_available():
        line["device_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return line


def last_loss(path: Path) -> float:
    """Mean loss of the last tenth of the lines."""
    lines = [line for line in read_jsonl(path) if "loss" in line]
    last = lines[-max(1, len(lines) // 10):]
    return sum(float(line["loss"]) for line in last) / len(last)
