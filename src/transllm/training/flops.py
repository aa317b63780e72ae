"""How much arithmetic training is, to compare its speed with what the machine can do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transllm.model.adapter import Adapted


class Flops:
    """FLOPs of forward and backward of a model with its adapter, the usual count.

    A weight that a token is multiplied by costs 4 (2 forward, 2 for the gradient that goes through it), a trained one 6. The head
    costs so a label, since only labels are projected. Attention costs 12 a pair of positions, layer and width. What is computed a
    second time (gradient checkpointing) is not counted: it is a price, not work.
    """

    def __init__(self, adapted: Adapted) -> None:
        config: Any = adapted.base.config.get_text_config()
        heads = config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        active = (getattr(config, "num_experts_per_tok", None) or experts) / experts if experts else 1.0
        rows = {*adapted.head.rows.parameters(), *adapted.base.get_input_embeddings().parameters()}
        self._a_token: float = sum(_numbers(weight) * (6 if weight.requires_grad else 4) * (active if "expert" in name else 1.0)
                            for name, weight in adapted.peft.named_parameters() if weight.ndim > 1 and weight not in rows)
        self._a_label: int = sum(weight.numel() * (6 if weight.requires_grad else 4) for weight in adapted.head.rows.parameters())
        self._a_pair: int = 12 * config.num_hidden_layers * width

    def of(self, lengths: NDArray[np.int64], labels: int, *, shared: int = 0) -> float:
        """FLOPs of documents of these lengths with so many labels, of whose tokens so many were computed for other documents already."""
        pairs = float((lengths.astype(np.float64) ** 2).sum()) / 2  # each position attends to those before it
        return self._a_token * float(lengths.sum() - shared) + self._a_label * labels + self._a_pair * pairs


def _numbers(weight: Any) -> int:
    """How many numbers a weight has; a quantised one holds several in a byte and knows its shape."""
    quantised = getattr(weight, "quant_state", None)
    return math.prod(quantised.shape) if quantised is not None else weight.numel()
