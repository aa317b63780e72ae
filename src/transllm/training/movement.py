"""What should train moves, what should not stays: looked at in the first steps of each sitting.

Nothing else would tell: with an optimiser that holds other tensors than the model, or a weight that was frozen by mistake, the loss
still goes down a little.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from transllm import processes
from transllm.errors import TrainingError
from transllm.model.adapter import Adapted

_TINY = 1e-7  # Adam's step is as long as the learning rate for gradients above its epsilon of 1e-8; below, nothing need move


class Movement:
    """Checks the first two steps.

    A tensor with a gradient must change in that very step. One whose gradient is zero can be right in the first step (LoRA's A,
    whose B starts at zero), but not in the second; rows of new tokens that have not occurred yet and experts that were not chosen may
    come later. Frozen weights are compared before and after the first step, by the sum of their bits: one pass over them each.
    Where processes share what trains, each looks at its part, which may be empty or have no gradient, and all tell each other.

    Args:
        adapted: what trains.
    """

    def __init__(self, adapted: Adapted) -> None:
        self._trained, self._shared = adapted.trainable(), adapted.shares_trained
        rows = [*adapted.head.rows.parameters(), *adapted.base.get_input_embeddings().parameters()]
        self._may_wait = {name for name, parameter in self._trained.items() if "expert" in name or any(parameter is row for row in rows)}
        self._frozen = {name: parameter for name, parameter in adapted.peft.named_parameters() if not parameter.requires_grad}
        self._frozen_bits = _bits(self._frozen.values())
        self._trained_bits: Tensor | None = None
        self._pending = {name for name, parameter in self._trained.items() if parameter.numel()}
        self._steps = 0

    def before(self) -> None:
        """The gradients are there, the optimiser has not stepped yet."""
        if self._steps < 2:
            self._trained_bits = _bits(self._trained.values())

    def after(self) -> None:
        """The optimiser has stepped, the gradients are still there.

        Raises:
            TrainingError: something stood still, or moved, that should not.
        """
        if self._trained_bits is None:
            return
        self._steps += 1
        moved = (_bits(self._trained.values()) != self._trained_bits).tolist()
        self._trained_bits = None
        largest = _largest_gradients(self._trained.values())
        stood = [value > _TINY and not did for value, did in zip(largest, moved, strict=True)]
        if self._shared:
            largest, stood = processes.summed(*largest), list(map(bool, processes.summed(*stood)))
        stuck = [name for name, did in zip(self._trained, stood, strict=True) if did]
        if stuck:
            raise TrainingError(f"{some(stuck)} had a gradient in step {self._steps} but did not change: the optimiser does not hold what "
                                "the model trains, or the learning rate is lost in rounding. Raise the learning rate; if that is no "
                                "remedy, please report it.")
        self._pending -= {name for name, value in zip(self._trained, largest, strict=True) if value > 0}
        unconnected = [name for name in sorted(self._pending) if self._trained[name].grad is None]
        idle = unconnected or (sorted(self._pending - self._may_wait) if self._steps == 2 else [])
        if idle:
            raise TrainingError(f"{some(idle)} should train, but had no gradient in the first "
                                f"{'step' if self._steps == 1 else 'two steps'}: the loss does not depend on it. Leave it out of "
                                "'training.lora.targets', or report it as a bug.")
        if self._steps == 1:
            self._compare_frozen()

    def _compare_frozen(self) -> None:
        changed = (_bits(self._frozen.values()) != self._frozen_bits).tolist()
        names = [name for name, differs in zip(self._frozen, changed, strict=True) if differs]
        if names:
            raise TrainingError(f"{some(names)} should be frozen, but changed in the first step, so the original model would be lost. "
                                "Nothing was saved. This is a bug; please report it.")


def _bits(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of each tensor's bits as whole numbers, with wrap-around: any single change changes it. (n,) int64"""
    sums = [_sum(tensor) for tensor in tensors]
    return torch.stack([value.cpu() for value in sums]) if sums else torch.zeros(0, dtype=torch.int64)


def _sum(tensor: Tensor) -> Tensor:
    flat = processes.part(tensor).contiguous().view(-1)
    for kind in (torch.int64, torch.int32, torch.int16, torch.uint8):
        ratio = max(1, kind.itemsize // flat.element_size())
        if int(flat.numel()) % ratio == 0 and int(flat.storage_offset()) % ratio == 0:
            return flat.view(kind).sum(dtype=torch.int64)
    raise AssertionError("every tensor is made of bytes")


def _largest_gradients(parameters: Iterable[nn.Parameter]) -> list[float]:
    """The largest absolute gradient of each; 0 where there is none."""
    gradients = [None if parameter.grad is None else processes.part(parameter.grad) for parameter in parameters]
    return [0.0 if gradient is None or not gradient.numel() else float(gradient.abs().max()) for gradient in gradients]


def some(names: list[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
