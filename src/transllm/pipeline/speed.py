"""How fast a recipe's work goes: as calibrated here, or by the rate of a device. Figures come from-to, alike where they were measured.

Formulae for a device (N: parameters that a token is multiplied by, new rows included; A: the adapter's; L layers of width H; T: mean
number of positions attended to; V: vocabulary with the new sub-words):

- forward, FLOPs a token: ``2 (N + A) + 4 L H T``. The last term is the attention's two products.
- training, FLOPs a token: forward, and backward ``2 N + 4 A + 8 L H T``: frozen weights take a gradient through them but none
  for them; with ``embeddings: all`` another ``2 V H`` for the head's, with ``train: full`` another ``2 N`` in all, and no A. Gradient
  checkpointing adds a second forward.
- a share of the device's matrix rate is reached, from-to: 30 to 50 % of a data sheet's in training, 30 to 70 % of a measured one.
- writing reads all weights and the cache once a token: bytes / memory bandwidth where that is known, else 8 to 30 % of the matrix rate.
"""

from __future__ import annotations

from typing import Protocol

from transllm.pipeline.calibrate import Calibration
from transllm.pipeline.devices import Device
from transllm.pipeline.shape import Shape
from transllm.pipeline.workload import Learning, Writing
from transllm.recipe.schema import Recipe

Span = tuple[float, float]

_ANSWERING = (0.08, 0.3)  # share of the matrix rate; being bound by memory it reaches less than training
_BANDWIDTH = (0.3, 0.7)  # share of a memory's rate
_READING = 0.45  # of training a token: forward is 2 N of 4 N FLOPs and more, and keeps nothing


class Speed(Protocol):
    """What a plan asks of a device. Spans are (quickest, slowest)."""

    def training(self, work: Learning) -> Span:
        """Seconds a token, forward and backward."""

    def saved(self, work: Learning) -> float:
        """Bytes a token that are kept for the backward pass."""

    def lanes(self, work: Learning) -> int:
        """Bins at once."""

    def update(self, trained: int) -> float:
        """Seconds of an optimiser's update of so many numbers."""

    def reading(self) -> Span:
        """Seconds a token that is only scored."""

    def prefill(self, stage: str) -> Span:
        """Seconds a token of a prompt."""

    def step(self, stage: str, work: Writing) -> Span:
        """Seconds of the next token of a whole batch."""

    def setup(self) -> float:
        """Seconds to put the adapter on."""


class Measured:
    """A calibration's figures.

    Args:
        found: the calibration.
        tflops: of a matrix product here.
    """

    def __init__(self, found: Calibration, tflops: float) -> None:
        self._found, self.tflops = found, tflops

    def training(self, work: Learning) -> Span:
        """Seconds a token, forward and backward."""
        return self._found.training[work.name], self._found.training[work.name]

    def saved(self, work: Learning) -> float:
        """Bytes a token that are kept for the backward pass."""
        return self._found.saved[work.name]

    def lanes(self, work: Learning) -> int:
        """Bins at once."""
        return min(self._found.lanes, work.bins_a_step)

    def update(self, trained: int) -> float:
        """Seconds of an optimiser's update of so many numbers."""
        return self._found.update * trained

    def reading(self) -> Span:
        """Seconds a token that is only scored."""
        times = list(self._found.training.values())
        seconds = _READING * min(times) if times else min(self._found.prefill.values(), default=0.0)
        return seconds, seconds

    def prefill(self, stage: str) -> Span:
        """Seconds a token of a prompt."""
        return self._found.prefill[stage], self._found.prefill[stage]

    def step(self, stage: str, work: Writing) -> Span:
        """Seconds of the next token of a whole batch."""
        return self._found.step[stage], self._found.step[stage]

    def setup(self) -> float:
        """Seconds to put the adapter on."""
        return self._found.setup


class Stated:
    """The formulae of ``plan``'s docstring.

    Args:
        device: its rate, and the shares of it that are reached.
        new: parameters of new rows.
        width: bytes of a number that is computed with.
    """

    def __init__(self, shape: Shape, recipe: Recipe, device: Device, *, new: int, width: int) -> None:
        self._shape, self._recipe, self._device, self._new, self._width = shape, recipe, device, new, width
        self._multiplied = shape.matrix_parameters + new
        self._adapter = shape.lora_parameters if recipe.training.train == "lora" else 0
        self.answering = _ANSWERING

    def training(self, work: Learning) -> Span:
        """Seconds a token, forward and backward."""
        shape, positions = self._shape, work.row / 2
        forward = self._forward(positions)
        backward = 2 * self._multiplied + 4 * self._adapter + 8 * shape.layers * shape.hidden * positions
        if self._recipe.training.train == "full":
            backward += 2 * (shape.matrix_parameters - shape.vocabulary * shape.hidden)
        if self._recipe.training.trains_old_rows:
            backward += 2 * (shape.vocabulary * shape.hidden + self._new)
        return self._seconds(forward * (2 if self._recipe.training.gradient_checkpointing else 1) + backward, self._device.training)

    def saved(self, work: Learning) -> float:
        """Bytes a token that are kept for the backward pass: as where layers are shared out, and nothing is made again (model/again.py)."""
        shape = self._shape
        layer = (10 * shape.hidden + 4 * shape.intermediate) * self._width
        return shape.layers * shape.hidden * self._width + layer if self._recipe.training.gradient_checkpointing else shape.layers * layer

    def lanes(self, work: Learning) -> int:
        """Bins at once."""
        return 1

    def update(self, trained: int) -> float:
        """Seconds of an optimiser's update: it reads and writes 28 bytes a number."""
        return 28 * trained / (_BANDWIDTH[0] * (self._device.bandwidth_gbs or 50.0) * 1e9)

    def reading(self) -> Span:
        """Seconds a token that is only scored."""
        return self._seconds(self._forward(150), self._device.training)

    def prefill(self, stage: str) -> Span:
        """Seconds a token of a prompt."""
        return self.reading()

    def step(self, stage: str, work: Writing) -> Span:
        """Seconds of the next token of a whole batch."""
        rows = min(work.batch, work.rows)
        flops = rows * self._forward(work.context)
        if self._device.bandwidth_gbs is None:
            return self._seconds(flops, _ANSWERING)
        keys = rows * work.context * self._shape.layers * self._shape.key_values
        moved = (self._multiplied + keys) * self._width / (self._device.bandwidth_gbs * 1e9)
        computed = self._seconds(flops, self._device.training)
        return max(moved / _BANDWIDTH[1], computed[0]), max(moved / _BANDWIDTH[0], computed[1])

    def setup(self) -> float:
        """Seconds to put the adapter on; next to nothing on a large device."""
        return 0.0

    def _forward(self, positions: float) -> float:
        return 2 * (self._multiplied + self._adapter) + 4 * self._shape.layers * self._shape.hidden * positions

    def _seconds(self, flops: float, share: Span) -> Span:
        rate = self._device.tflops * 1e12
        return flops / (rate * share[1]), flops / (rate * share[0])
