"""What a recipe will cost before it runs: steps, tokens, time, memory and disk of each stage. Loads no weights.

Formulae (N: parameters that a token is multiplied by, new rows included; A: the adapter's; L layers of width H;
T: mean number of positions attended to, half the sequence length; V: vocabulary with the new sub-words):

- forward, FLOPs a token: ``2 (N + A) + 4 L H T``. The last term is the attention's two products.
- training, FLOPs a token: forward, and backward ``2 N + 4 A + 8 L H T``: frozen weights take a gradient through them but none
  for them; with ``embeddings: all`` another ``2 V H`` for the head's. Gradient checkpointing adds a second forward.
- time = FLOPs / (devices * measured matrix product * share reached). A training loop reaches 30 to 70 % of a large matrix
  product's speed; answering in batches 8 to 30 %, being bound by memory. Both ends are given.
- memory of training: the weights in the precision that computes; 16 bytes for each trained number (float32 value, gradient
  and two Adam moments); activations of ``micro_tokens`` tokens: ``(10 H + 4 I) L`` numbers a token (I: the feed-forward width), or
  ``H L`` and one layer with gradient checkpointing; logits in parts (low) or at once (high).
- disk: a full model for extend and for merge; an adapter and, while it runs, a checkpoint three times its size for each training stage.

Figures are estimates of the right size, not promises: answers' lengths are unknown before they are written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from transllm.model.precision import compute_dtype, default_device, measure_tflops
from transllm.pipeline.shape import Shape, shape_of
from transllm.recipe.schema import Recipe, TrainStage

TRAINING_SHARE = (0.3, 0.7)
ANSWERING_SHARE = (0.08, 0.3)
_ANSWER_TOKENS = (100, 400)
_PROMPT_TOKENS = 50
_SENTENCE_TOKENS = 40
_DOCUMENT_TOKENS = 300
_MARKERS = 3
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: its name, optimiser steps and tokens (None where it has none), seconds from-to, peak memory from-to in GiB on a
    device, disk in GiB while it runs, and what to know."""

    name: str
    steps: int | None
    tokens: int | None
    seconds: tuple[float, float]
    memory_gib: tuple[float, float]
    disk_gib: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost of a recipe.

    Attributes:
        shape: the model's.
        trained: numbers that train (adapter and embedding rows).
        stages: in order.
        tflops: speed of a matrix product on one device, in 10¹² FLOPs a second.
        devices: how many.
        assumptions: a sentence each.
    """

    shape: Shape
    trained: int
    stages: tuple[StagePlan, ...]
    tflops: float
    devices: int
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> tuple[float, float]:
        """Of all stages, from-to."""
        return sum(stage.seconds[0] for stage in self.stages), sum(stage.seconds[1] for stage in self.stages)

    @property
    def memory_gib(self) -> tuple[float, float]:
        """Peak of all stages on one device, from-to."""
        return max(stage.memory_gib[0] for stage in self.stages), max(stage.memory_gib[1] for stage in self.stages)

    @property
    def disk_gib(self) -> float:
        """All stages' folders, without caches of models and data."""
        return sum(stage.disk_gib for stage in self.stages)


def plan(recipe: Recipe, *, config: Path | None = None, parameters: float | None = None, device_tflops: float | None = None,
         devices: int = 1) -> Plan:
    """Size a recipe.

    Args:
        recipe: what to size.
        config: a ``config.json`` in place of the model's own.
        parameters: the model's size in parameters, where no config can be had.
        device_tflops: matrix-product speed of one device in 10¹² FLOPs a second; None: measured here, in two seconds.
        devices: how many such devices train side by side, each with all weights.

    Raises:
        ModelError: the model's config cannot be read.
    """
    shape = shape_of(recipe.model, recipe.training.lora, folder=recipe.folder, config=config, parameters=parameters)
    if device_tflops is None:
        dtype = compute_dtype(recipe.training.precision, default_device())
        tflops, where = measure_tflops(dtype), f"measured on this machine in {str(dtype).removeprefix('torch.')}"
        width = dtype.itemsize
    else:
        tflops, where = device_tflops, "as given"
        width = 4 if recipe.training.precision == "float32" else 2
    estimate = _Estimate(recipe, shape, tflops * devices * 1e12, width, devices)
    return Plan(shape, estimate.trained, tuple(estimate.stages()), tflops, devices, (
        f"The model's shape comes from {shape.origin}.",
        f"A matrix product runs at {tflops:.3g} TFLOPS a device ({where}); training reaches {TRAINING_SHARE[0]:.0%} to "
        f"{TRAINING_SHARE[1]:.0%} of it, answering {ANSWERING_SHARE[0]:.0%} to {ANSWERING_SHARE[1]:.0%}.",
        f"Answers are {_ANSWER_TOKENS[0]} to {_ANSWER_TOKENS[1]} tokens long (less where the recipe's limit is); prompts {_PROMPT_TOKENS}.",
        "The time of prepare, of downloads and of start-up is not counted; disk is without caches of models and data.",
    ))


class _Estimate:
    """The formulae of the module's docstring, for one recipe on one kind of device."""

    def __init__(self, recipe: Recipe, shape: Shape, flops: float, width: int, devices: int) -> None:
        self.recipe, self.shape, self.flops, self.width, self.devices = recipe, shape, flops, width, devices
        matrices = 1 if shape.tied else 2
        self.new = (recipe.extend.at_most + _MARKERS) * shape.hidden
        old = shape.vocabulary * shape.hidden if recipe.training.embeddings == "all" else 0
        self.trained = shape.lora_parameters + matrices * (old + self.new)
        self.multiplied = shape.matrix_parameters + self.new
        self.model_gib = (shape.parameters + matrices * self.new) * _BYTES.get(recipe.model.dtype, 2) / _GIB
        self.compute_gib = (shape.parameters + matrices * self.new) * width / _GIB

    def stages(self) -> list[StagePlan]:
        """One plan a stage, in order."""
        recipe = self.recipe
        extend = StagePlan("extend", None, None, (5.0, 60.0 + self.model_gib * 20), (self.model_gib, 2 * self.model_gib), self.model_gib,
                           f"up to {recipe.extend.at_most:,} new sub-words")
        recover, bridge = recipe.recover, recipe.bridge
        chains = min(recover.count, bridge.count) if bridge.translator == "self" else 0
        prepare = StagePlan("prepare", None, None, (0.0, 0.0), (0.0, 0.0), 0.0, "reads, filters and cuts the text; not timed here")
        return [
            prepare, extend, self._training("pretrain", recipe.pretrain), self._training("bitext", recipe.bitext),
            self._answers("recover", round(recover.count * (1 + recover.sampled)), recover.max_new_tokens, recover.batch_size,
                          "answers of the original model"),
            self._answers("bridge", chains, recover.max_new_tokens + _PROMPT_TOKENS, bridge.batch_size, "chains, translated by the model"),
            self._training("finetune", recipe.finetune),
            StagePlan("merge", None, None, (5.0, 60.0 + self.model_gib * 40), (2 * self.model_gib, 3 * self.model_gib), self.model_gib),
            self._evaluate(),
        ]

    def _forward(self, positions: float) -> float:
        return 2 * (self.multiplied + self.shape.lora_parameters) + 4 * self.shape.layers * self.shape.hidden * positions

    def _training(self, name: str, stage: TrainStage) -> StagePlan:
        if stage.tokens == 0:
            return StagePlan(name, 0, 0, (0.0, 0.0), (0.0, 0.0), 0.0, "skipped: its budget is 0 tokens")
        shape, positions = self.shape, stage.sequence_length / 2
        forward = self._forward(positions)
        backward = 2 * self.multiplied + 4 * shape.lora_parameters + 8 * shape.layers * shape.hidden * positions
        if self.recipe.training.embeddings == "all":
            backward += 2 * (shape.vocabulary * shape.hidden + self.new)
        total = stage.tokens * (forward * (2 if self.recipe.training.gradient_checkpointing else 1) + backward)
        note = f"{stage.batch_tokens:,} tokens a step"
        if stage.micro_tokens * self.devices > stage.batch_tokens:
            note += f"; {self.devices} devices hold more than a step: lower micro_tokens to {stage.batch_tokens // self.devices:,}"
        adapter = 4 * self.trained / _GIB
        return StagePlan(name, math.ceil(stage.tokens / stage.batch_tokens), stage.tokens, self._seconds(total, TRAINING_SHARE),
                         self._training_memory(stage), 4 * adapter, note)

    def _training_memory(self, stage: TrainStage) -> tuple[float, float]:
        shape = self.shape
        layer = (10 * shape.hidden + 4 * shape.intermediate) * self.width
        checkpointed = shape.layers * shape.hidden * self.width + layer
        per_token = checkpointed if self.recipe.training.gradient_checkpointing else shape.layers * layer
        fixed = self.compute_gib + 16 * self.trained / _GIB + stage.micro_tokens * per_token / _GIB
        row = (shape.vocabulary + self.recipe.extend.at_most) * 8  # float32 logits and their gradient
        return fixed + min(512, stage.micro_tokens) * row / _GIB, fixed + stage.micro_tokens * row / _GIB

    def _answers(self, name: str, count: int, longest: int, batch: int, note: str) -> StagePlan:
        low, high = (min(length, longest) for length in _ANSWER_TOKENS)
        seconds = (self._seconds(count * (low + _PROMPT_TOKENS) * self._forward(low), ANSWERING_SHARE)[0],
                   self._seconds(count * (high + _PROMPT_TOKENS) * self._forward(high), ANSWERING_SHARE)[1])
        keys = 2 * self.shape.layers * self.shape.hidden * self.width / _GIB  # at most: fewer with grouped heads
        memory = (self.compute_gib + batch * low * keys / 4, self.compute_gib + batch * high * keys)
        return StagePlan(name, None, count * high, seconds, memory if count else (0.0, 0.0), count * 8 * high / _GIB, f"{count:,} {note}")

    def _evaluate(self) -> StagePlan:
        evaluate = self.recipe.evaluate
        models = 3 + sum(getattr(self.recipe, name).tokens > 0 for name in ("pretrain", "bitext", "finetune"))
        read = models * (2 * evaluate.documents * _DOCUMENT_TOKENS + evaluate.answers * _ANSWER_TOKENS[1])
        translated = models * 2 * evaluate.sentences * 2 * _SENTENCE_TOKENS
        chains = 2 * evaluate.query_count * (evaluate.max_new_tokens + _PROMPT_TOKENS)
        written = [self._seconds((translated + chains) * self._forward(_DOCUMENT_TOKENS), ANSWERING_SHARE)[end] for end in (0, 1)]
        reading = [self._seconds(read * self._forward(_DOCUMENT_TOKENS / 2), TRAINING_SHARE)[end] for end in (0, 1)]
        return StagePlan("evaluate", None, read + translated + chains, (written[0] + reading[0], written[1] + reading[1]),
                         (self.compute_gib, 1.5 * self.compute_gib + 0.5), 0.0, f"{models} models")

    def _seconds(self, flops: float, share: tuple[float, float]) -> tuple[float, float]:
        return flops / (self.flops * share[1]), flops / (self.flops * share[0])
