"""Which trained weight gets which learning rate and decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from transllm.errors import TrainingError
from transllm.model.adapter import Adapted
from transllm.recipe.schema import Training, TrainStage


def parameter_groups(adapted: Adapted, stage: TrainStage, training: Training) -> list[dict[str, Any]]:
    """The optimiser's groups: ``params``, ``weight_decay``, and ``rate_factor``, which the schedule's rate is multiplied by.

    Matrices decay, whether of an adapter or of the model. Rows do not: decay would pull rare tokens to zero. Nor do vectors (norms,
    biases, DoRA's lengths), which do not start near zero. Where all weights train, rows are never in a group with others: processes
    may share the others out, and fused AdamW takes a group of one kind only.

    Raises:
        TrainingError: the head has a rate of its own, but is the embedding.
    """
    rows = {id(parameter): name.split(".")[0] for name, parameter in adapted.row_parameters().items()}
    if training.head_learning_rate is not None and "head" not in rows.values():
        raise TrainingError("training.head_learning_rate is set, but this model's head is its embedding (they are tied). Take it out; "
                            "training.new_rows_learning_rate is the rate of both.")
    embedding_rate = training.new_rows_learning_rate or stage.learning_rate
    rates = {"embedding": embedding_rate, "head": training.head_learning_rate or embedding_rate}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in adapted.trainable().items():
        if id(parameter) in rows:
            kind = rates[rows[id(parameter)]] / stage.learning_rate, 0.0, adapted.train == "full"
        else:
            kind = training.lora.b_factor if "lora_B" in name else 1.0, stage.weight_decay if parameter.ndim > 1 else 0.0, False
        groups.setdefault(kind, []).append(parameter)
    return [{"params": params, "rate_factor": factor, "weight_decay": decay} for (factor, decay, _), params in groups.items()]


def make_optimizer(adapted: Adapted, stage: TrainStage, training: Training) -> torch.optim.AdamW:
    """AdamW on all that trains."""
    return torch.optim.AdamW(parameter_groups(adapted, stage, training), lr=stage.learning_rate, betas=(0.9, 0.99), fused=True)
