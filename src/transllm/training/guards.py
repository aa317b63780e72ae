"""What stops, or tells of, a training that goes wrong: a loss that is not a number, a leap of the loss, weights that stand still."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transllm.errors import TrainingError
from transllm.files import write_json
from transllm.model.adapter import Adapted
from transllm.progress import Progress
from transllm.recipe.schema import Training
from transllm.training.movement import Movement, some
from transllm.training.packing import Packed, batches_of
from transllm.training.rows import Rows
from transllm.training.state import State, set_random_numbers
from transllm.training.step import LossModule, StepDone

NOT_A_NUMBER, SPIKE = "not_a_number.json", "loss_spike.json"
_Z = 8.0  # deviations above the median; batches of mixed rows scatter more than a bell curve does
_LEAST = 20  # losses before anything is called a leap
_FLOOR = 0.01  # of the median: a deviation is taken to be at least so much, or a very steady loss would leap at nothing


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step computes.

    Attributes:
        step: its number, from 1.
        rows: the rows of each of this process's bins.
        lengths: their tokens.
        bins: the bins as the model takes them.
    """

    step: int
    rows: Sequence[Sequence[int]]
    lengths: Sequence[Sequence[int]]
    bins: Sequence[Packed]


def batch_of(rows: Rows, members: Sequence[Sequence[int]], *, step: int, device: torch.device) -> Batch:
    """Build the bins of a step."""
    lengths = [[int(rows.offsets[row + 1] - rows.offsets[row]) for row in rows_of_bin] for rows_of_bin in members]
    return Batch(step, members, lengths, list(batches_of(rows, members, device=device)))


class Guards:
    """The guards of one sitting.

    Args:
        module: the loss, as it was before ``accelerate`` wrapped it.
        folder: where a batch that went wrong is saved, for ``transllm inspect batch --failed``.
        name: the stage's.
        movement: whether this process's optimiser moves the weights from their ``.grad`` (DeepSpeed's engine does not).
    """

    def __init__(self, adapted: Adapted, module: LossModule, *, training: Training, folder: Path, progress: Progress, name: str,
                 movement: bool) -> None:
        self._adapted, self._module, self._training, self._folder = adapted, module, training, folder
        self._progress, self._name = progress, name
        self._movement = Movement(adapted) if movement else None

    def before_update(self, batch: Batch, done: StepDone, state: State) -> dict[str, Any] | None:
        """The gradients are there; the optimiser has not seen them.

        Returns:
            a line for the log if the loss has leapt.

        Raises:
            TrainingError: loss or gradient is not finite, or the loss has leapt and the recipe says to stop there.
        """
        if not math.isfinite(done.nats) or not math.isfinite(done.norm):
            self._not_a_number(batch, done, state)
        if self._movement is not None:
            self._movement.before()
        return self._leap(batch, done, state)

    def after_update(self) -> None:
        """The optimiser has stepped; the gradients are still there.

        Raises:
            TrainingError: a weight stood still, or moved, that should not.
        """
        if self._movement is not None:
            self._movement.after()

    def _not_a_number(self, batch: Batch, done: StepDone, state: State) -> None:
        """Find the bin and the weights by computing the step's bins again, one by one, with the same random numbers."""
        parameters = self._adapted.trainable()
        spoilt = [name for name, parameter in self._adapted.peft.named_parameters() if not parameter.isfinite().all()]
        for parameter in parameters.values():
            parameter.grad = None
        set_random_numbers(state.random)
        found = []
        for packed in batch.bins:
            loss = self._module(packed)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            names = [name for name, gradient in zip(parameters, gradients, strict=True)
                     if gradient is not None and not gradient.isfinite().all()]
            found.append((float(loss.detach()), names))
        file = self._save(NOT_A_NUMBER, batch, loss=str(done.loss), gradient_norm=str(done.norm), weights=spoilt,
                          found=[{"loss": str(loss), "gradients": names} for loss, names in found])
        bad = [number for number, (loss, names) in enumerate(found) if not math.isfinite(loss) or names]
        if spoilt:
            why = f"Weights were not numbers before the step: {some(spoilt)}."
        elif bad:
            loss, names = found[bad[0]]
            why = (f"It begins in bin {bad[0] + 1} of {len(found)} ({len(batch.rows[bad[0]])} rows, loss {loss:g}); "
                   f"gradients that are not finite: {some(names) if names else 'none'}.")
        else:
            why = "Computed again, the same step is finite: suspect the machine, or a step that differs from run to run."
        raise TrainingError(f"The loss is not a number in step {batch.step} (loss {done.loss:g}, gradient norm {done.norm:g}). {why} The "
                            f"step's tokens and labels are in {file}; look at them with {self._inspect()}, or lower the learning rate.")

    def _leap(self, batch: Batch, done: StepDone, state: State) -> dict[str, Any] | None:
        """Compare a step's loss with the median of the last ones, in robust deviations (1.48 times the median absolute one)."""
        if len(state.losses) < _LEAST:
            return None
        median = statistics.median(state.losses)
        deviation = 1.4826 * statistics.median(abs(loss - median) for loss in state.losses)
        z = (done.loss - median) / max(deviation, _FLOOR * median)
        if z < _Z:
            return None
        said = f"The loss of step {batch.step} leapt to {done.loss:.3f}, from {median:.3f} in the middle of the steps before (z {z:.0f})."
        if self._training.stop_on_spike:
            file = self._save(SPIKE, batch, loss=done.loss, median=median, z=round(z, 1))
            raise TrainingError(f"{said} Its tokens and labels are in {file}; look at them with {self._inspect()}. Lower the learning "
                                "rate, or go on with --set training.stop_on_spike=false.")
        self._progress.say(f"warning: {said}")
        return {"step": batch.step, "event": "loss_spike", "step_loss": done.loss, "median": median, "z": round(z, 1),
                "rows": [list(rows) for rows in batch.rows]}

    def _inspect(self) -> str:
        return f"'transllm inspect batch {self._folder.parent} {self._name} --failed'"

    def _save(self, name: str, batch: Batch, **facts: Any) -> Path:
        """Write a step's batch, in a form that anything reads."""
        bins = [{"rows": list(rows), "lengths": list(lengths), "ids": packed.ids_1T[0].tolist(), "labels": packed.labels_T.tolist()}
                for rows, lengths, packed in zip(batch.rows, batch.lengths, batch.bins, strict=True)]
        write_json(self._folder / name, {"step": batch.step, **facts, "bins": bins})
        return self._folder / name
