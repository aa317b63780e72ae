"""What is learned when, and how fast: the plan of the steps and the learning rate of each.

Plan and rate are functions of the step alone, so that to go on is to know the step.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import overload

import numpy as np

from transllm.recipe.schema import HARMLESS, Training, TrainStage
from transllm.training.mirror import Recovery
from transllm.training.packing import Bins, pack
from transllm.training.rows import Rows


def learning_rate(step: int, steps: int, stage: TrainStage) -> float:
    """Linear warm-up, then a cosine down to ``min_learning_rate``; ``step`` counts from 0."""
    warmup = max(1, round(stage.warmup * steps))
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = stage.min_learning_rate
    return stage.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class Plan(Sequence[list[list[int]]]):
    """The bins of each optimiser step.

    Args:
        bins: of all steps.
        per_step: bins of a step; the last may have fewer.
    """

    def __init__(self, bins: Bins, per_step: int) -> None:
        self._bins, self._per_step = bins, per_step
        self.most = min(per_step, len(bins))
        """Bins of the largest step."""

    def __len__(self) -> int:
        return math.ceil(len(self._bins) / self._per_step)

    @overload
    def __getitem__(self, index: int) -> list[list[int]]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[list[int]]]: ...
    def __getitem__(self, index: int | slice) -> list[list[int]] | list[list[list[int]]]:
        if isinstance(index, slice):
            return [self[step] for step in range(*index.indices(len(self)))]
        start = range(len(self))[index] * self._per_step
        return self._bins[start: start + self._per_step]


def plan_steps(rows: Rows, stage: TrainStage, *, seed: int) -> Plan:
    """The bins of each optimiser step, for the whole budget; rows are repeated in a new order where the budget needs it.

    The plan does not know how many processes there are. Each computes it and takes its share of each step, so that a run can go on
    with another number of them.
    """
    lengths, left, epochs = rows.lengths, stage.tokens, 0
    parts: list[Bins] = []
    while left > 0:
        bins = pack(lengths, capacity=stage.micro_tokens, seed=seed + epochs)
        tokens = np.cumsum(np.add.reduceat(lengths[bins.rows], bins.ends - bins.sizes))
        enough = min(len(bins), int(np.searchsorted(tokens, left)) + 1)
        parts.append(bins.ordered(np.arange(enough)))
        left -= int(tokens[enough - 1])
        epochs += 1
    before = np.cumsum([0, *(len(part.rows) for part in parts)])
    ends = np.concatenate([part.ends + start for part, start in zip(parts, before, strict=False)])
    return Plan(Bins(np.concatenate([part.rows for part in parts]), ends), max(1, round(stage.batch_tokens / stage.micro_tokens)))


def settings_digest(rows: Rows, stage: TrainStage, training: Training, steps: int, seed: int, recovery: Recovery) -> str:
    """Digest of all that decides what the steps do; a checkpoint of another is not gone on from."""
    settings = {"stage": stage.model_dump(), "training": training.model_dump(exclude=set(HARMLESS)), "steps": steps, "seed": seed}
    if recovery.by != "text":
        settings["recovery"] = {"by": recovery.by, **recovery.logits.model_dump()}
    return f"{rows.digest}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]}"


def dropout_seed(seed: int, step: int, number: int) -> int:
    """What the generator starts from for the bin of this number of a step: a function of its place, so that the same is dropped whichever
    process computes it, and after a stop."""
    return random.Random(f"{seed}-{step}-{number}").getrandbits(63)
