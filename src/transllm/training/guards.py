"""What stops, or tells of, a training that goes wrong: a loss that is not a number, a leap of the loss, weights that stand still."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transllm import processes
from transllm.errors import Ended, TrainingError
from transllm.files import write_json
from transllm.model.adapter import Adapted
from transllm.model.lora import drops
from transllm.progress import Progress
from transllm.recipe.schema import Training
from transllm.training.loss import IGNORE
from transllm.training.mirror import hear
from transllm.training.movement import Movement, some
from transllm.training.packing import batches_of
from transllm.training.rows import EncodedRow, Rows
from transllm.training.schedule import dropout_seed
from transllm.training.state import State
from transllm.training.step import LossModule, Share, StepDone

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
        shares: the bins as the model takes them.
    """

    step: int
    rows: Sequence[Sequence[int]]
    lengths: Sequence[Sequence[int]]
    shares: Sequence[Share]


def batch_of(rows: Rows, bins: Sequence[Sequence[int]], *, step: int, seed: int, even: bool, device: torch.device,
             by: str = "text", rewritten: Mapping[int, EncodedRow] | None = None) -> Batch:
    """Build this process's bins of a step.

    Args:
        bins: those of all processes.
        even: all processes pass as many bins, because they lend each other weights in each pass; one that has fewer passes another's.
        by, rewritten: see ``batches_of``.
    """
    rank, world = processes.rank(), processes.world()
    own = list(range(rank, len(bins), world))
    numbers = own + ([0] if even and len(own) < math.ceil(len(bins) / world) else [])
    members = [bins[number] for number in numbers]
    lengths = [[int(rows.offsets[row + 1] - rows.offsets[row]) for row in rows_of_bin] for rows_of_bin in members]
    shares = [Share(packed, dropout_seed(seed, step, number), counts=place < len(own))
              for place, (number, packed) in enumerate(zip(
                  numbers, batches_of(rows, members, device=device, by=by, rewritten=rewritten), strict=True))]
    return Batch(step, members, lengths, shares)


class Guards:
    """The guards of one sitting.

    Args:
        module: the loss.
        folder: where a batch that went wrong is saved, for ``transllm inspect batch --failed``.
        name: the stage's.
    """

    def __init__(self, adapted: Adapted, module: LossModule, *, training: Training, folder: Path, progress: Progress, name: str) -> None:
        self._adapted, self._module, self._training, self._folder = adapted, module, training, folder
        self._progress, self._name = progress, name
        self._movement = Movement(adapted)

    def before_update(self, batch: Batch, done: StepDone, state: State) -> dict[str, Any] | None:
        """The gradients are there; the optimiser has not seen them.

        Returns:
            a line for the log if the loss has leapt.

        Raises:
            TrainingError: loss or gradient is not finite, or the loss has leapt and the recipe says to stop there.
        """
        if not all(map(math.isfinite, (done.nats, done.divergence, done.norm))):
            self._not_a_number(batch, done)
        self._movement.before()
        return self._leap(batch, done, state)

    def after_update(self) -> None:
        """The optimiser has stepped; the gradients are still there.

        Raises:
            TrainingError: a weight stood still, or moved, that should not.
        """
        self._movement.after()

    def _not_a_number(self, batch: Batch, done: StepDone) -> None:
        """Find the bin and the weights by computing the step's bins again, one by one, with the same random numbers.

        Every process does so with its own; the first that finds something tells.
        """
        parameters = self._adapted.trainable()
        spoilt = _not_finite(self._adapted.peft.named_parameters())
        found = []
        heard = hear(self._adapted, [share.batch.mirror for share in batch.shares], run_lanes=None)
        shared = self._adapted.shares_trained
        for share, states in zip(batch.shares, heard, strict=True):
            # A backward pass adds up the gradients of all processes where they share them: one computes a bin, the others keep it company.
            for turn in range(processes.world()) if shared else [processes.rank()]:
                for parameter in parameters.values():
                    parameter.grad = None
                torch.manual_seed(share.seed)
                mine = turn == processes.rank()
                with drops(share.seed):
                    loss = self._module(share.batch, states).whole if mine else self._adapted.pass_by().sum() * 0.0
                    loss.backward()
                names = _not_finite((name, parameter.grad) for name, parameter in parameters.items())
                if mine:
                    found.append((float(loss.detach()), names))
        bad = [number for number, (loss, names) in enumerate(found) if not math.isfinite(loss) or names]
        finders = processes.summed(*(bool(spoilt or bad) and rank == processes.rank() for rank in range(processes.world())))
        if processes.rank() != (finders.index(1.0) if any(finders) else 0):
            raise Ended
        file = self._save(NOT_A_NUMBER, batch, loss=str(done.loss), gradient_norm=str(done.norm), weights=spoilt,
                          found=[{"loss": str(loss), "gradients": names} for loss, names in found])
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
            if not processes.is_main():
                raise Ended
            file = self._save(SPIKE, batch, loss=done.loss, median=median, z=round(z, 1))
            raise TrainingError(f"{said} Its tokens and labels are in {file}; look at them with {self._inspect()}. Lower the learning "
                                "rate, or go on with --set training.stop_on_spike=false.")
        self._progress.say(f"warning: {said}")
        return {"step": batch.step, "event": "loss_spike", "step_loss": done.loss, "median": median, "z": round(z, 1),
                "rows": [list(rows) for rows in batch.rows]}

    def _inspect(self) -> str:
        return f"'transllm inspect batch {self._folder.parent} {self._name} --failed'"

    def _save(self, name: str, batch: Batch, **facts: Any) -> Path:
        """Write a step's batch, in a form that anything reads: every row whole."""
        bins = []
        for rows, lengths, share in zip(batch.rows, batch.lengths, batch.shares, strict=True):
            documents = share.batch.documents
            labels = torch.full_like(documents.places_W, IGNORE).index_copy_(0, documents.own_T, share.batch.labels_T)
            bins.append({"rows": list(rows), "lengths": list(lengths), "ids": share.batch.ids_1T[0, documents.places_W].tolist(),
                         "labels": labels.tolist()})
        write_json(self._folder / name, {"step": batch.step, **facts, "bins": bins})
        return self._folder / name


def _not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Names of tensors that are not finite; where processes share some, in the part of any."""
    named = dict(tensors)
    wrong: Sequence[float] = [tensor is not None and not bool(processes.part(tensor).isfinite().all()) for tensor in named.values()]
    if any(tensor is not None and processes.is_shared(tensor) for tensor in named.values()):
        wrong = processes.summed(*wrong)
    return [name for name, one in zip(named, wrong, strict=True) if one]
