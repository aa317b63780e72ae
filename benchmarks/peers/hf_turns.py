"""Turns for trainers that are made from transformers' Trainer: a callback ends steps, and the trainer's own step counts its batch."""

from __future__ import annotations

import functools
from typing import Any

from transformers import Trainer, TrainerCallback

from peers.turns import IGNORE, Turns


class Paced(TrainerCallback):
    """Sleeps between turns after an optimiser step, so that fetching the next batch is a part of the next step's time."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._turns.step_done()


def count_batches(turns: Turns, *, pad_id: int) -> None:
    """Count each batch where it is trained: a data loader is a batch ahead, so a collator would count too early.

    Args:
        pad_id: the pad token, which is nothing else in the extended model's tokenizer.
    """
    trainer: Any = Trainer
    own = trainer.training_step

    @functools.wraps(own)
    def counted(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        turns.count(int((inputs["input_ids"] != pad_id).sum()), int((inputs["labels"][..., 1:] != IGNORE).sum()))
        return own(self, model, inputs, *rest, **more)

    trainer.training_step = counted
