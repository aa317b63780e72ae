"""What is learned when, and how fast: the plan of the steps and the learning rate of each.

Plan and rate are functions of the step alone, so that to go on is to know the step.
"""

from __future__ import annotations

import hashlib
import json
import math
import random

from transllm.recipe.schema import HARMLESS, Training, TrainStage
from transllm.training.packing import pack
from transllm.training.rows import Rows


def learning_rate(step: int, steps: int, stage: TrainStage) -> float:
    """Linear warm-up, then a cosine down to ``min_learning_rate``; ``step`` counts from 0."""
    warmup = max(1, round(stage.warmup * steps))
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = stage.min_learning_rate
    return stage.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def plan_steps(rows: Rows, stage: TrainStage, *, seed: int) -> list[list[list[int]]]:
    """The bins of each optimiser step, for the whole budget; rows are repeated in a new order where the budget needs it.

    The plan does not know how many processes there are. Each computes it and takes its share of each step, so that a run can go on
    with another number of them.
    """
    per_step = max(1, round(stage.batch_tokens / stage.micro_tokens))
    lengths = rows.lengths.tolist()
    bins: list[list[int]] = []
    tokens, epoch = 0, 0
    while tokens < stage.tokens:
        for members in pack(lengths, capacity=stage.micro_tokens, seed=seed + epoch):
            bins.append(members)
            tokens += sum(lengths[row] for row in members)
            if tokens >= stage.tokens:
                break
        epoch += 1
    return [bins[start: start + per_step] for start in range(0, len(bins), per_step)]


def settings_digest(rows: Rows, stage: TrainStage, training: Training, steps: int, seed: int) -> str:
    """Digest of all that decides what the steps do; a checkpoint of another is not gone on from."""
    settings = {"stage": stage.model_dump(), "training": training.model_dump(exclude=set(HARMLESS)), "steps": steps, "seed": seed}
    return f"{rows.digest}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]}"


def dropout_seed(seed: int, step: int, number: int) -> int:
    """What the generator starts from for the bin of this number of a step: a function of its place, so that the same is dropped whichever
    process computes it, and after a stop."""
    return random.Random(f"{seed}-{step}-{number}").getrandbits(63)
