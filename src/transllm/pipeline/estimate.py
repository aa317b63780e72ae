"""What each stage of a recipe costs, from how fast its device is and what it has to do.

Time on ``n`` devices: a step has ``b`` micro batches, ``ceil(b / n)`` one after the other on each device; once a step the gradients of
what trains are summed (``devices.Cluster``); weights that are lent travel while others compute, so the longer of both counts.
Everything but training runs on one device.

Memory on a device, in training (W: bytes of all weights as computed with; t: numbers that train; S: bytes a token kept for the backward;
m: micro_tokens; k: bins at once, one for each core, 1 on an accelerator):

- ``W + 16 t`` (float32 value, gradient, two moments), shared as the strategy says, and ``4 t (k - 1)`` for the other bins' gradients;
  where layers are shared, two that are lent, and where they train the gradient of one, as computed and in float32;
- ``k m S``, and the hidden states of the labels; S is counted in the calibration, else ``(10 H + 4 I) L`` numbers (I: the feed-forward
  width), or ``H L`` and one layer with gradient checkpointing;
- ``3 k · 512 V`` numbers of logits, their gradient and a copy: the loss takes 512 labels at a time;
- what torch and the libraries take and earlier stages leave, and what the allocator loses of all that comes and goes: a tenth on an
  accelerator. A processor's resident memory grows with the logarithm of the steps s, as the largest of many chance readings does: ever
  more of its lanes' tops coincide, and glibc keeps what they freed. ``1.2 + 0.15 ln s`` times what comes and goes lies between what
  models took with compiled kernels, which hardly grows, and with torch's (docs/architecture.md); 1.8 is taken for what writes. Blocks
  of logits over 32 MiB are no part of that: they were seen to take their own size and no more, when glibc still mapped and unmapped them
  one by one and since training keeps what it frees (``model.pages.keeping_freed``).

Disk: a full model for extend and for merge; ``4 t`` bytes an adapter, and its rows; checkpoints while a training stage runs, three of
``12 t`` at the moment when one is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transllm.pipeline.devices import STRATEGIES, Cluster, Strategy
from transllm.pipeline.shape import Shape
from transllm.pipeline.speed import Span, Speed
from transllm.pipeline.workload import Learning, Writing, bridging, document_tokens, evaluating, learning, recovering
from transllm.recipe.schema import Recipe
from transllm.training.loss import CHUNK

MARKERS = 3
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30
_WATCHED = 3 * 12  # held-out documents that a training stage scores, a dozen at a time
_RUNTIME = {"cpu": 0.4, "other": 0.8}  # GiB of Python and torch; of an accelerator's context and libraries
_LEFT = {"cpu": 0.25, "other": 0.0}  # GiB that the stages before leave in a process
_LOST = {"cpu": 1.8, "other": 1.1}
_GROWTH = (1.2, 0.15)
_MAPPED = 2**25  # bytes; of larger blocks nothing is lost
_NF4 = 0.516  # bytes a weight: 4 bits, a byte for 64 weights, 4 bytes for 256 of these
_START = 2.0  # seconds of a stage: tokenizers, manifest
_READ_GIBS = 0.5  # weights from a disk, GiB a second


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: its name, optimiser steps and tokens (None where it has none), seconds from-to (alike where nothing is unknown), peak
    memory in GiB on a device, disk in GiB that stays and that it takes for a while, what to know, and whether the memory is the
    host's, because the stage runs beside the accelerator."""

    name: str
    steps: int | None
    tokens: int | None
    seconds: Span
    memory_gib: float
    disk_gib: float
    scratch_gib: float = 0.0
    note: str = ""
    host: bool = False


class Sizes:
    """Numbers of a model after the extension.

    Attributes:
        new: parameters of new rows, in one matrix.
        trained: numbers that train.
        body: those of them that are the layers' own weights.
        parameters: all, new rows included.
    """

    def __init__(self, recipe: Recipe, shape: Shape) -> None:
        self.shape = shape
        self.matrices = 1 if shape.tied else 2
        self.new = (recipe.extend.at_most + MARKERS) * shape.hidden
        old = shape.vocabulary * shape.hidden if recipe.training.trains_old_rows else 0
        layers = shape.parameters - self.matrices * shape.vocabulary * shape.hidden
        self.body = layers if recipe.training.train == "full" else 0
        adapter = shape.lora_parameters if recipe.training.train == "lora" else 0
        self.trained = self.body + adapter + self.matrices * (old + self.new)
        self.parameters = shape.parameters + self.matrices * self.new
        self.frozen = shape.parameters - self.matrices * old - self.body
        self.vocabulary = shape.vocabulary + recipe.extend.at_most + MARKERS
        self.quantized = shape.layer_parameters * shape.layers if recipe.training.quantize == "nf4" else 0

    def frozen_bytes(self, width: int) -> float:
        """Of the frozen weights, as they lie on a device: layers that are quantised take 4 bits a weight and their scales."""
        return (self.frozen - self.quantized) * width + self.quantized * _NF4


class Estimate:
    """The formulae above, for one recipe at one speed."""

    def __init__(self, recipe: Recipe, sizes: Sizes, speed: Speed, cluster: Cluster, *, width: int, kind: str) -> None:
        self.recipe, self.sizes, self.speed, self.cluster, self.width = recipe, sizes, speed, cluster, width
        self.first, self.runtime, self.lost = _RUNTIME[kind], _RUNTIME[kind] + _LEFT[kind], _LOST[kind]
        self.host = kind != "cpu"
        self.works = {work.name: work for work in learning(recipe)}
        self.stored_gib = sizes.parameters * _BYTES.get(recipe.model.dtype, 2) / GIB
        self.compute_gib = sizes.parameters * width / GIB

    def stages(self) -> list[StagePlan]:
        """One plan a stage, in order."""
        recover, bridge = self.recipe.recover, bridging(self.recipe)
        chains = min(recover.count, self.recipe.bridge.count) if bridge.rows else 0
        times = "twice" if recover.answers == 1 else f"{recover.answers} times more"
        told = f"{recover.count:,} prompts" + (f", {recover.sampled:.0%} of them answered {times}" if recover.sampled else "")
        told += f", {recover.multi_turn:.0%} go on for up to {recover.most_turns} turns" if recover.multi_turn else ""
        return [
            StagePlan("prepare", None, None, (0.0, 0.0), 0.0, 0.0, note="reads, filters and cuts the text; not timed here"),
            self._extend(), self._training("pretrain"), self._training("bitext"),
            self._answers("recover", recovering(self.recipe), told),
            self._answers("bridge", [bridge] if bridge.rows else [], f"{chains:,} chains, {bridge.rows:,} sentences at least"),
            self._training("finetune"), self._merge(), self._evaluate(),
        ]

    def strategies(self) -> dict[Strategy, tuple[float, Span]]:
        """Peak memory and seconds of training under each, on as many devices."""
        if self.cluster.devices == 1 or not self.works:
            return {}
        found: dict[Strategy, tuple[float, Span]] = {}
        for name in STRATEGIES:
            cluster = Cluster(self.cluster.devices, self.cluster.nodes, name, self.cluster.bandwidth_gbs)
            times = [self._steps_seconds(work, cluster) for work in self.works.values()]
            found[name] = (max(self._training_memory(work, cluster) for work in self.works.values()),
                           (sum(one[0] for one in times), sum(one[1] for one in times)))
        return found

    def _extend(self) -> StagePlan:
        settings = self.recipe.extend
        learned = min(settings.sample_characters, 20_000_000) / 2e5 if settings.at_most else 0.0
        return StagePlan("extend", None, None, (8.0 + 20 * self.stored_gib, 15.0 + 40 * self.stored_gib + learned),
                         self.first + 0.5 + 1.2 * self.stored_gib, self.stored_gib, note=f"up to {settings.at_most:,} new sub-words",
                         host=self.host)

    def _merge(self) -> StagePlan:
        low, high = 4.0 + 15 * self.stored_gib, 10.0 + 40 * self.stored_gib
        exact = 4 * self.sizes.parameters / GIB
        return StagePlan("merge", None, None, (low, high), self.runtime + 2 * exact + self.stored_gib, self.stored_gib,
                         note="in float32, on the processor", host=self.host)

    def _training(self, name: str) -> StagePlan:
        work = self.works.get(name)
        if work is None:
            return StagePlan(name, 0, 0, (0.0, 0.0), 0.0, 0.0, note="skipped: its budget is 0 tokens")
        stage, devices = work.stage, self.cluster.devices
        note = f"{work.bins_a_step * stage.micro_tokens:,} tokens a step"
        if devices > work.bins_a_step:
            note += (f"; {devices - work.bins_a_step} devices have no part in it: "
                     f"lower micro_tokens to {max(1, stage.batch_tokens // devices):,}")
        low, high = self._steps_seconds(work, self.cluster)
        heard = work.mirrored * stage.tokens / devices  # by the original, for recovery by logits, or by the model after bitext
        extra = self._start() + (_WATCHED * min(document_tokens(self.recipe), 330) + heard) * self.speed.reading()[1]
        state = 4 * self.sizes.trained / GIB
        rows = 5 * stage.tokens / GIB
        return StagePlan(name, work.steps, stage.tokens, (low + extra, high + extra), self._training_memory(work, self.cluster),
                         state + rows, scratch_gib=3 * 3 * state, note=note)

    def _steps_seconds(self, work: Learning, cluster: Cluster) -> Span:
        """All steps of a stage: what its devices compute, and what they send."""
        sizes = self.sizes
        weights = (sizes.frozen + sizes.body) * self.width
        micro, lent = work.stage.micro_tokens, cluster.seconds_a_bin(weights, self._layers_bytes(), body=sizes.body)
        one = [max(micro * seconds, lent) for seconds in self.speed.training(work)]
        steps = work.stage.tokens / (micro * work.bins_a_step)
        a_step = self.speed.update(round(cluster.own(sizes.trained, sizes.body))) + (
            cluster.seconds_a_step(sizes.trained, body=sizes.body) if cluster.devices > 1 else 0.0)
        bins = math.ceil(work.bins_a_step / cluster.devices)
        return steps * (bins * one[0] + a_step), steps * (bins * one[1] + a_step)

    def _layers_bytes(self) -> float:
        """Bytes of all layers as computed with."""
        return self.sizes.shape.layer_parameters * self.sizes.shape.layers * self.width

    def _training_memory(self, work: Learning, cluster: Cluster) -> float:
        sizes, layers = self.sizes, self._layers_bytes()
        gradient = sizes.shape.layer_parameters * (self.width + 4) if sizes.body else 0.0
        held = cluster.held(sizes.frozen_bytes(self.width), 0.0 if sizes.body else layers, sizes.trained,
                            layers * min(2, sizes.shape.layers) / sizes.shape.layers + gradient, body=sizes.body)
        lanes = self.speed.lanes(work)
        kept = work.stage.micro_tokens * (self.speed.saved(work) + work.labelled * self.sizes.shape.hidden * self.width)
        block = min(CHUNK, round(work.stage.micro_tokens * work.labelled)) * self.sizes.vocabulary * self.width
        # A divergence has both models' logits and its gradient; a cross entropy's gradient is written over the logits on a processor.
        logits = lanes * (3 if work.mirrored else 2 if self.host else 1) * block
        passing = lanes * kept + (lanes - 1) * 4 * self.sizes.trained
        stored = self.recipe.model.dtype == "float32", self.width == 4
        # Weights that are quantised are so one after the other, as they come.
        whole = cluster.strategy not in ("fsdp", "zero3") and not sizes.quantized
        loading = self.compute_gib + (self.stored_gib if stored[0] != stored[1] else 0.0) if whole else 0.0
        if self.host:
            lost = of_logits = self.lost
        else:
            lost = _GROWTH[0] + _GROWTH[1] * math.log(max(1, work.steps))
            of_logits = 1.0 if block > _MAPPED else lost
        return self.runtime + max(loading, (held + lost * passing + of_logits * logits) / GIB)

    def _answers(self, name: str, works: list[Writing], note: str) -> StagePlan:
        if not works:
            return StagePlan(name, None, 0, (0.0, 0.0), 0.0, 0.0, note="the model writes nothing here")
        times = [self._writing_seconds(name, work) for work in works]
        return StagePlan(name, None, sum(work.rows * work.length[1] for work in works),
                         (self._start() + sum(one[0] for one in times), self._start() + sum(one[1] for one in times)),
                         max(self._writing_memory(work) for work in works), works[0].rows * 8 * works[0].length[1] / GIB, note=note)

    def _writing_seconds(self, name: str, work: Writing) -> Span:
        """Prompts are read once; each batch then takes a step for each token of its longest answer."""
        prefill, steps = self.speed.prefill(name), self.speed.step(name, work)
        read = [work.rows / work.beams * work.prompt * seconds for seconds in prefill]
        batches = work.rows / min(work.batch, work.rows)
        return (read[0] + batches * work.length[0] * steps[0], read[1] + batches * work.length[1] * steps[1])

    def _writing_memory(self, work: Writing, *, models: int = 1) -> float:
        shape, rows = self.sizes.shape, min(work.batch, work.rows)
        keys = rows * (work.prompt + work.length[1] + 128) * shape.layers * shape.key_values * self.width
        logits = 3 * rows * self.sizes.vocabulary * self.width
        return self.runtime + max(self.stored_gib, models * self.compute_gib) + self.lost * (keys + logits) / GIB

    def _evaluate(self) -> StagePlan:
        read, translations, chains = evaluating(self.recipe)
        reading = [read * seconds for seconds in self.speed.reading()]
        written = [self._writing_seconds("evaluate", work) for work in (translations, chains)]
        loads = 8 * self._start()
        tokens = read + sum(work.rows * work.length[1] for work in (translations, chains))
        return StagePlan("evaluate", None, tokens, (loads + reading[0] + sum(one[0] for one in written),
                                                    loads + reading[1] + sum(one[1] for one in written)),
                         max(self._writing_memory(translations), self._writing_memory(chains),
                             self.runtime + 2 * self.compute_gib + self.lost * 0.5), 0.0, note="5 models, 6 where merging rounds")

    def _start(self) -> float:
        """Seconds before a stage begins to work: tokenizers, weights, adapter."""
        return _START + self.stored_gib / _READ_GIBS + self.speed.setup()
