"""The lines of a training stage's ``log.jsonl``."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import psutil

from transllm.files import read_jsonl, write_text
from transllm.training.state import State

_LN2 = math.log(2)


def line_of(state: State, *, steps: int, rate: float, norm: float) -> dict[str, Any]:
    """A line about all steps since the one before."""
    recent = state.take_recent()
    return {
        "step": state.step, "steps": steps, "tokens": state.tokens, "loss": recent.loss,
        "bits_per_byte": recent.nats / _LN2 / max(1, recent.n_bytes), "learning_rate": rate, "gradient_norm": norm,
        "tokens_per_second": recent.tokens / max(1e-9, time.monotonic() - recent.started), "seconds": round(state.seconds, 3),
        "memory_gib": psutil.Process().memory_info().rss / 2**30}


def last_loss(path: Path) -> float:
    """Mean loss of the last tenth of the lines."""
    lines = [line for line in read_jsonl(path) if "loss" in line]
    last = lines[-max(1, len(lines) // 10):]
    return sum(float(line["loss"]) for line in last) / len(last)


def cut_log(path: Path, step: int) -> None:
    """Remove lines that lie behind the checkpoint: their steps will be done again."""
    kept = [line for line in read_jsonl(path) if line["step"] < step or (line["step"] == step and "loss" in line)]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
