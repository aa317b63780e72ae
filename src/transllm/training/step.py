"""One optimiser step's loss and gradient, however its bins are shared by lanes and processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from transllm import processes
from transllm.lanes import Lanes
from transllm.model.adapter import Adapted
from transllm.model.lora import LoraLinear, drops, unchanged
from transllm.recipe.schema import Logits
from transllm.training.loss import divergence_kernel, final_logits, summed_cross_entropy, summed_kl
from transllm.training.mirror import hear
from transllm.training.packing import Packed


class Loss(NamedTuple):
    """What a bin costs.

    Attributes:
        whole: what is minimised.
        nats: its labels' part, without gradient.
        divergence: from the original, in nats, without gradient.
    """

    whole: Tensor
    nats: Tensor
    divergence: Tensor


class LossModule(nn.Module):
    """The model with its loss, as one module.

    Args:
        heavy: tokens whose labels count so many times in the gradient; see ``summed_cross_entropy``.
        logits: how it is held against the original model, in bins that have a mirror.
        soft_weight: how many times labels with drawn tokens count.
    """

    def __init__(self, adapted: Adapted, heavy: Mapping[int, float], logits: Logits = Logits(),  # noqa: B008  # frozen
                 soft_weight: float = 1.0) -> None:
        super().__init__()
        self.peft = adapted.peft
        self._adapted = [adapted]  # in a list: its parameters are peft's, they must not be registered twice
        self._finish = final_logits(adapted.base.config)
        self._heavy = heavy
        self._weight = logits.weight
        self.kernel = divergence_kernel(logits.divergence, temperature=logits.temperature, share=logits.share)
        self._soft_weight = soft_weight

    def forward(self, batch: Packed, heard_ND: Tensor | None = None) -> Loss:
        """The bin's loss; ``heard_ND`` are the original's hidden states, where it has a mirror."""
        adapted = self._adapted[0]
        hidden_TD = adapted.hidden(batch.ids_1T, batch.documents)[0]
        nats = summed_cross_entropy(hidden_TD, batch.labels_T, head=adapted.head, finish=self._finish, heavy=self._heavy,
                                    soft=batch.soft, soft_weight=self._soft_weight)
        if batch.mirror is None or heard_ND is None:
            return Loss(nats, nats.detach(), torch.zeros_like(nats))
        divergence = summed_kl(hidden_TD.index_select(0, batch.mirror.student_N), heard_ND, head=adapted.head, finish=self._finish,
                               kernel=self.kernel)
        return Loss(nats + self._weight * divergence, nats.detach(), divergence.detach())


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step's figures over all processes.

    Attributes:
        nats: sum of the losses of all labels.
        labels: how many labels there are.
        n_bytes: bytes of text that they stand for.
        norm: of the gradient, before it is clipped.
        divergence: sum of the divergences from the original, in nats.
        mirrored: places at which the model was held against it.
        shared: tokens that were not computed again, since another row of their bin begins with them too.
    """

    nats: float
    labels: int
    n_bytes: int
    norm: float
    divergence: float = 0.0
    mirrored: int = 0
    shared: int = 0

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


@unchanged()
def gradients(module: nn.Module, mine: Sequence[Share], adapted: Adapted, *, run_lanes: Lanes | None, clip: float) -> StepDone:
    """Forward and backward of one optimiser step; the gradients are in ``.grad`` afterwards.

    The gradient is of the mean over all places of the step from which something is learned, however bins, lanes and processes share them.
    Processes add theirs up once a step, not in each backward pass as DistributedDataParallel does: they may so have unlike numbers of
    bins, or none.

    Args:
        mine: this process's bins of the step.
        run_lanes: runs several bins at once; None: one after the other.
        clip: the gradient's norm at most.
    """
    counted = [share.batch for share in mine if share.counts]
    labels, learned, mirrored, n_bytes, shared = map(int, processes.summed(
        sum(batch.labels for batch in counted), sum(batch.learned for batch in counted),
        sum(len(batch.mirror.student_N) for batch in counted if batch.mirror is not None), sum(batch.n_bytes for batch in counted),
        sum(batch.shared for batch in counted)))
    sums = torch.zeros(2, device=adapted.device)
    with processes.lending():  # by all or by none: with shared-out weights each pass is everybody's
        heard = hear(adapted, [share.batch.mirror for share in mine], run_lanes=run_lanes) if mirrored else [None] * len(mine)
    parameters = list(adapted.trainable().values())
    if run_lanes is None:
        for share, states in zip(mine, heard, strict=True):
            torch.manual_seed(share.seed)
            with processes.lending(), drops(share.seed):
                loss: Loss = module(share.batch, states)
                sums += torch.stack(loss[1:]) * float(share.counts)
                (loss.whole * (share.counts / learned)).backward()
    else:
        def lane(share: Share, states: Tensor | None) -> tuple[Tensor, Sequence[Tensor | None]]:
            with drops(share.seed):
                loss: Loss = module(share.batch, states)
                return torch.stack(loss[1:]), torch.autograd.grad(loss.whole / learned, parameters, allow_unused=True)

        for one, found in run_lanes(lane, mine, heard):  # in order, so that the sum is the same each time
            sums += one
            for parameter, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    nats, divergence = processes.summed(*sums.tolist())  # first: where a process has ended this says so, and no accelerator waits for it
    _add_up([parameter for parameter in parameters if not processes.is_shared(parameter)])  # the others' sums are made in backward
    return StepDone(nats, labels, n_bytes, _clip(parameters, clip), divergence, mirrored, shared)


def lanes_for(model: nn.Module, *, bins: int) -> int:
    """How many of a step's bins to compute at once: one for each core, and one alone on an accelerator.

    One alone too where the model drops out at random: lanes would draw from one generator in an order that no resumed run repeats. Our
    LoRA layers draw for each bin by itself.
    """
    on_processor = all(parameter.device.type == "cpu" for parameter in model.parameters())
    by_bin = {dropout for layer in model.modules() if isinstance(layer, LoraLinear) and layer.plain()
              for dropout in layer.lora_dropout.values()}
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout) and module not in by_bin]
    dropouts += [float(getattr(module, "attention_dropout", 0.0) or 0.0) for module in model.modules()]
    return min(bins, torch.get_num_threads()) if on_processor and not any(dropouts) else 1


def _add_up(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of all processes; one that had no bin adds nothing."""
    if processes.world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    processes.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])


def _clip(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Shorten the gradient to a norm; gives the one that it had, over the parts of all processes."""
    if not any(map(processes.is_shared, parameters)):
        return float(nn.utils.clip_grad_norm_(parameters, most))
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    shared, whole = ([processes.part(gradient) for gradient in found if processes.is_shared(gradient) == kind] for kind in (True, False))
    own, same = (float(nn.utils.get_total_norm(gradients)) for gradients in (shared, whole))
    norm = math.sqrt(processes.summed(own**2)[0] + same**2)
    for gradient in (*shared, *whole):
        gradient.mul_(min(1.0, most / (norm + 1e-6)))  # as torch does
    return norm
