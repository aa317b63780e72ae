"""One optimiser step's loss and gradient, however its bins are shared by lanes and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transllm import processes
from transllm.lanes import Lanes
from transllm.model.adapter import Adapted
from transllm.training.loss import final_logits, summed_cross_entropy
from transllm.training.packing import Packed


class LossModule(nn.Module):
    """The model with its loss, as one module.

    Args:
        heavy: tokens whose labels count so many times in the gradient; see ``summed_cross_entropy``.
    """

    def __init__(self, adapted: Adapted, heavy: Mapping[int, float]) -> None:
        super().__init__()
        self.peft = adapted.peft
        self._adapted = [adapted]  # in a list: its parameters are peft's, they must not be registered twice
        self._finish = final_logits(adapted.base.config)
        self._heavy = heavy

    def forward(self, batch: Packed) -> Tensor:
        adapted = self._adapted[0]
        hidden_1TD = adapted.hidden(batch.ids_1T, batch.documents)
        return summed_cross_entropy(hidden_1TD[0], batch.labels_T, head=adapted.head, finish=self._finish, heavy=self._heavy)


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step's figures over all processes.

    Attributes:
        nats: sum of the losses of all labels.
        labels: how many labels there are.
        n_bytes: bytes of text that they stand for.
        norm: of the gradient, before it is clipped.
    """

    nats: float
    labels: int
    n_bytes: int
    norm: float

    @property
    def loss(self) -> float:
        """Mean nats a label."""
        return self.nats / max(1, self.labels)


@dataclass(frozen=True, slots=True)
class Share:
    """A bin that a process computes.

    Attributes:
        seed: of what is dropped at random in it.
        counts: False for a bin that is another process's: it is passed through for company only.
    """

    batch: Packed
    seed: int
    counts: bool = True


def gradients(module: nn.Module, mine: Sequence[Share], adapted: Adapted, *, run_lanes: Lanes | None, clip: float) -> StepDone:
    """Forward and backward of one optimiser step; the gradients are in ``.grad`` afterwards.

    The gradient is of the mean over all labels of the step, however bins, lanes and processes share them. Processes add theirs up once a
    step, not in each backward pass as DistributedDataParallel does: they may so have unlike numbers of bins, or none.

    Args:
        mine: this process's bins of the step.
        run_lanes: runs several bins at once; None: one after the other.
        clip: the gradient's norm at most.
    """
    counted = [share.batch for share in mine if share.counts]
    labels, n_bytes = map(int, processes.summed(sum(batch.labels for batch in counted), sum(batch.n_bytes for batch in counted)))
    nats = torch.zeros((), device=adapted.device)
    parameters = list(adapted.trainable().values())
    if run_lanes is None:
        for share in mine:
            torch.manual_seed(share.seed)
            loss = module(share.batch) * float(share.counts)
            nats += loss.detach()
            (loss / labels).backward()
    else:
        def lane(share: Share) -> tuple[Tensor, Sequence[Tensor | None]]:
            loss = module(share.batch)
            return loss.detach(), torch.autograd.grad(loss / labels, parameters, allow_unused=True)

        for loss, found in run_lanes(lane, mine):  # in order, so that the sum is the same each time
            nats += loss
            for parameter, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    (total,) = processes.summed(float(nats))  # first: where a process has ended this says so, and no accelerator waits for it
    _add_up(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    return StepDone(total, labels, n_bytes, float(norm))


def _add_up(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of all processes; one that had no bin adds nothing."""
    if processes.world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    processes.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])
