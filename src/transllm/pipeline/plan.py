"""What a recipe will cost before it runs: steps, tokens, time, memory and disk of each stage. Loads no weights.

Time comes from a calibration of some twenty seconds (``calibrate``), or from a stated device by these formulae (N: parameters
that a token is multiplied by, new rows included; A: the adapter's; L layers of width H; T: mean number of positions attended to;
V: vocabulary with the new sub-words):

- forward, FLOPs a token: ``2 (N + A) + 4 L H T``. The last term is the attention's two products.
- training, FLOPs a token: forward, and backward ``2 N + 4 A + 8 L H T``: frozen weights take a gradient through them but none
  for them; with ``embeddings: all`` another ``2 V H`` for the head's. Gradient checkpointing adds a second forward.
- a share of the device's matrix rate is reached, from-to: 30 to 50 % of a data sheet's in training, 30 to 70 % of a measured one.
- writing reads all weights and the cache once a token: bytes / memory bandwidth where that is known, else 8 to 30 % of the matrix rate.

For both, on ``n`` devices: a step has ``b`` micro batches, ``ceil(b / n)`` one after the other on each device; once a step the gradients of
what trains are summed (``devices.Cluster``); weights that are lent travel while others compute, so the longer of both counts.
Everything but training runs on one device.

Memory on a device, in training (W: bytes of all weights as computed with; t: numbers that train; S: bytes a token kept for the backward;
m: micro_tokens; k: bins at once, one for each core, 1 on an accelerator):

- ``W + 16 t`` (float32 value, gradient, two moments), shared as the strategy says, and ``4 t (k - 1)`` for the other bins' gradients;
- ``k m S``; S is counted in the calibration, else ``(10 H + 4 I) L`` numbers (I: the feed-forward width), or ``H L`` and one layer with
  gradient checkpointing;
- ``3 k · 256 V`` numbers of logits, their gradient and a copy: the loss takes 256 labels at a time;
- what torch and the libraries take, and what the allocator loses: half of all that comes and goes on a processor (glibc; measured on
  models of 2 to 30 layers), a tenth on an accelerator.

Disk: a full model for extend and for merge; ``4 t`` bytes an adapter, and its rows; checkpoints while a training stage runs, three of ``12 t``
at the moment when one is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from transllm.model.precision import compute_dtype, default_device
from transllm.pipeline.calibrate import calibrate
from transllm.pipeline.devices import STRATEGIES, Cluster, Device, Strategy
from transllm.pipeline.shape import Shape, shape_of
from transllm.pipeline.speed import Measured, Speed, Stated
from transllm.pipeline.workload import Learning, Writing, bridging, document_tokens, evaluating, learning, recovering
from transllm.recipe.schema import Recipe

_MARKERS = 3
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_GIB = 2**30
_WATCHED = 3 * 12  # held-out documents that a training stage scores, a dozen at a time
_CHUNK = 256  # labels that the loss takes at a time
_RUNTIME = {"cpu": 0.4, "other": 0.8}  # GiB of Python and torch; of an accelerator's context and libraries
_LOST = {"cpu": 1.5, "other": 1.1}
_START = 2.0  # seconds of a stage: tokenizers, manifest
_READ_GIBS = 0.5  # weights from a disk, GiB a second

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: its name, optimiser steps and tokens (None where it has none), seconds from-to (alike where nothing is unknown), peak memory
    in GiB on a device, disk in GiB that stays and that it takes for a while, and what to know."""

    name: str
    steps: int | None
    tokens: int | None
    seconds: Span
    memory_gib: float
    disk_gib: float
    scratch_gib: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost of a recipe.

    Attributes:
        shape: the model's.
        trained: numbers that train (adapter and embedding rows).
        stages: in order.
        device: what it is computed for; its rate is measured or stated.
        measured: whether times come from a calibration here.
        cluster: how many devices, and how they share.
        strategies: peak memory of training and seconds of all training, on as many devices, by strategy; empty for one device.
        assumptions: a sentence each.
    """

    shape: Shape
    trained: int
    stages: tuple[StagePlan, ...]
    device: Device
    measured: bool
    cluster: Cluster
    strategies: dict[Strategy, tuple[float, Span]]
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> Span:
        """Of all stages, from-to."""
        return sum(stage.seconds[0] for stage in self.stages), sum(stage.seconds[1] for stage in self.stages)

    @property
    def memory_gib(self) -> float:
        """Peak of all stages on one device."""
        return max(stage.memory_gib for stage in self.stages)

    @property
    def disk_gib(self) -> float:
        """All stages' folders, without caches of models and data."""
        return sum(stage.disk_gib for stage in self.stages)


def plan(recipe: Recipe, *, config: Path | None = None, parameters: float | None = None, device: Device | None = None,
         calibration: bool = True, cluster: Cluster | None = None, seconds: float = 20.0,
         clock: Callable[[], float] = time.perf_counter) -> Plan:
    """Size a recipe.

    Args:
        recipe: what to size.
        config: a ``config.json`` in place of the model's own.
        parameters: the model's size in parameters, where no config can be had.
        device: a device that is stated; None: this machine's, measured.
        calibration: False: measure a matrix product only, in two seconds. Without a config there is nothing else to measure.
        cluster: devices that train side by side; None is one.
        seconds: about how long to calibrate.
        clock: what the calibration is timed with.

    Raises:
        ModelError: the model's config cannot be read.
    """
    shape = shape_of(recipe.model, recipe.training.lora, folder=recipe.folder, config=config, parameters=parameters)
    cluster = cluster or Cluster()
    sizes = Sizes(recipe, shape)
    speed: Speed
    if device is not None:
        kind, width = "other", 4 if recipe.training.precision == "float32" else 2
        speed = Stated(shape, recipe, device, new=sizes.new, width=width)
        how = f"Nothing was measured: {device.name} stands for {device.tflops:.4g} TFLOPS, of which training reaches " \
              f"{device.training[0]:.0%} to {device.training[1]:.0%}."
    else:
        here = default_device()
        kind, dtype = "cpu" if here.type == "cpu" else "other", compute_dtype(recipe.training.precision, here)
        width, name = dtype.itemsize, str(dtype).removeprefix("torch.")
        device = Device("this machine", measure_tflops(dtype), _memory_here(here))
        speed = Stated(shape, recipe, device, new=sizes.new, width=width)
        how = f"A matrix product runs at {device.tflops:.3g} TFLOPS here ({name}); training reaches {device.training[0]:.0%} to " \
              f"{device.training[1]:.0%} of it, answering {speed.answering[0]:.0%} to {speed.answering[1]:.0%}."
        if calibration and shape.config is not None:
            writing = {"recover": recovering(recipe)[0], "bridge": bridging(recipe), "evaluate": evaluating(recipe)[2]}
            found = calibrate(shape, recipe.training, list(learning(recipe)), {name: one for name, one in writing.items() if one.rows},
                              new=recipe.extend.at_most + _MARKERS, dtype=dtype, tflops=device.tflops, seconds=seconds, clock=clock)
            speed = Measured(found, device.tflops)
            how = f"Times are measured here in {found.seconds:.0f} s, on {found.about} ({name}); a matrix product runs at " \
                  f"{device.tflops:.3g} TFLOPS."
    estimate = _Estimate(recipe, sizes, speed, cluster, width=width, kind=kind)
    return Plan(shape, sizes.trained, tuple(estimate.stages()), device, isinstance(speed, Measured), cluster, estimate.strategies(),
                (f"The model's shape comes from {shape.origin}.", how, *_assumed(recipe, cluster)))


def measure_tflops(dtype: torch.dtype, *, seconds: float = 2.0) -> float:
    """Speed of a large matrix product on the default device, in 10¹² FLOPs a second; takes ``seconds``."""
    device = default_device()
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    (left @ right).sum().item()  # the first product pays for packing; .item() waits for it
    products, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        (left @ right)[0, 0].item()
        products += 1
    return 2 * size**3 * products / spent / 1e12


def _memory_here(device: torch.device) -> float:
    """GiB that a device has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / _GIB
    import psutil

    return float(psutil.virtual_memory().total / _GIB)


def _assumed(recipe: Recipe, cluster: Cluster) -> Iterator[str]:
    written = [one for one in (recovering(recipe)[0], evaluating(recipe)[2]) if one.length[0] < one.length[1]]
    if written:
        yield (f"How long answers will be is unknown: times go from {written[0].length[0]} tokens each to the recipe's limit of "
               f"{' and '.join(f'{one.length[1]:,}' for one in written)}.")
    yield (f"Rows: documents of {document_tokens(recipe)} tokens, "
           + ", ".join(f"{work.name} {work.row} with {work.labelled:.0%} learned" for work in learning(recipe)) + ".")
    yield ("The time of prepare and of downloads is not counted; extend, merge and all that is written are rough. Disk is without caches of "
           "models and data; training takes more for its checkpoints while it runs.")
    if cluster.devices > 1:
        yield (f"{cluster.bandwidth_gbs:g} GB/s between devices{'' if cluster.nodes == 1 else ' of different nodes'}. Training is shared by "
               "all devices; the other stages run on one. zero2 and zero3 are for comparison: the loop runs ddp and fsdp.")


class Sizes:
    """Numbers of a model after the extension.

    Attributes:
        new: parameters of new rows, in one matrix.
        trained: numbers that train.
        parameters: all, new rows included.
    """

    def __init__(self, recipe: Recipe, shape: Shape) -> None:
        self.shape = shape
        self.matrices = 1 if shape.tied else 2
        self.new = (recipe.extend.at_most + _MARKERS) * shape.hidden
        old = shape.vocabulary * shape.hidden if recipe.training.embeddings == "all" else 0
        self.trained = shape.lora_parameters + self.matrices * (old + self.new)
        self.parameters = shape.parameters + self.matrices * self.new
        self.frozen = shape.parameters - self.matrices * old
        self.vocabulary = shape.vocabulary + recipe.extend.at_most + _MARKERS


class _Estimate:
    """The formulae of the module's docstring, for one recipe at one speed."""

    def __init__(self, recipe: Recipe, sizes: Sizes, speed: Speed, cluster: Cluster, *, width: int, kind: str) -> None:
        self.recipe, self.sizes, self.speed, self.cluster, self.width = recipe, sizes, speed, cluster, width
        self.runtime, self.lost = _RUNTIME[kind], _LOST[kind]
        self.works = {work.name: work for work in learning(recipe)}
        self.stored_gib = sizes.parameters * _BYTES.get(recipe.model.dtype, 2) / _GIB
        self.compute_gib = sizes.parameters * width / _GIB

    def stages(self) -> list[StagePlan]:
        """One plan a stage, in order."""
        recover, bridge = self.recipe.recover, bridging(self.recipe)
        chains = min(recover.count, self.recipe.bridge.count) if bridge.rows else 0
        return [
            StagePlan("prepare", None, None, (0.0, 0.0), 0.0, 0.0, note="reads, filters and cuts the text; not timed here"),
            self._extend(), self._training("pretrain"), self._training("bitext"),
            self._answers("recover", recovering(self.recipe), f"{recover.count:,} prompts, {1 + recover.sampled:g} answers each"),
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
                         self.runtime + 3 * self.stored_gib, self.stored_gib, note=f"up to {settings.at_most:,} new sub-words")

    def _merge(self) -> StagePlan:
        low, high = 4.0 + 15 * self.stored_gib, 10.0 + 40 * self.stored_gib
        exact = 4 * self.sizes.parameters / _GIB
        return StagePlan("merge", None, None, (low, high), self.runtime + 2 * exact + self.stored_gib, self.stored_gib,
                         note="in float32, on the processor")

    def _training(self, name: str) -> StagePlan:
        work = self.works.get(name)
        if work is None:
            return StagePlan(name, 0, 0, (0.0, 0.0), 0.0, 0.0, note="skipped: its budget is 0 tokens")
        stage, devices = work.stage, self.cluster.devices
        tokens = work.bins_a_step(devices) * stage.micro_tokens
        note = f"{tokens:,} tokens a step"
        if tokens > max(stage.batch_tokens, stage.micro_tokens):
            note += f", more than batch_tokens: lower micro_tokens to {max(1, stage.batch_tokens // devices):,}"
        low, high = self._steps_seconds(work, self.cluster)
        extra = self._start() + _WATCHED * min(document_tokens(self.recipe), 330) * self.speed.reading()[1]
        state = 4 * self.sizes.trained / _GIB
        rows = 5 * stage.tokens / _GIB
        return StagePlan(name, work.steps(devices), stage.tokens, (low + extra, high + extra), self._training_memory(work, self.cluster),
                         state + rows, scratch_gib=3 * 3 * state, note=note)

    def _steps_seconds(self, work: Learning, cluster: Cluster) -> Span:
        """All steps of a stage: what its devices compute, and what they send."""
        micro, lent = work.stage.micro_tokens, cluster.seconds_a_bin(*self._frozen_bytes())
        one = [max(micro * seconds, lent) for seconds in self.speed.training(work)]
        steps = work.stage.tokens / (micro * work.bins_a_step(cluster.devices))
        a_step = self.speed.update(self.sizes.trained) + (cluster.seconds_a_step(self.sizes.trained) if cluster.devices > 1 else 0.0)
        bins = work.bins_a_step(cluster.devices) / cluster.devices
        return steps * (bins * one[0] + a_step), steps * (bins * one[1] + a_step)

    def _frozen_bytes(self) -> tuple[float, float]:
        """Bytes of all frozen weights, and of those in the layers."""
        shape = self.sizes.shape
        return self.sizes.frozen * self.width, shape.layer_parameters * shape.layers * self.width

    def _training_memory(self, work: Learning, cluster: Cluster) -> float:
        frozen, layers = self._frozen_bytes()
        held = cluster.held(frozen, layers, self.sizes.trained, layers / self.sizes.shape.layers)
        lanes = self.speed.lanes(work)
        kept = work.stage.micro_tokens * self.speed.saved(work)
        logits = 3 * min(_CHUNK, round(work.stage.micro_tokens * work.labelled)) * self.sizes.vocabulary * self.width
        passing = lanes * (kept + logits) + (lanes - 1) * 4 * self.sizes.trained
        loading = self.stored_gib + self.compute_gib if cluster.strategy in ("ddp", "zero2") else 0.0
        return self.runtime + max(loading, (held + self.lost * passing) / _GIB)

    def _answers(self, name: str, works: list[Writing], note: str) -> StagePlan:
        if not works:
            return StagePlan(name, None, 0, (0.0, 0.0), 0.0, 0.0, note="the model writes nothing here")
        times = [self._writing_seconds(name, work) for work in works]
        return StagePlan(name, None, sum(work.rows * work.length[1] for work in works),
                         (self._start() + sum(one[0] for one in times), self._start() + sum(one[1] for one in times)),
                         max(self._writing_memory(work) for work in works), works[0].rows * 8 * works[0].length[1] / _GIB, note=note)

    def _writing_seconds(self, name: str, work: Writing) -> Span:
        """Prompts are read once; each batch then takes a step for each token of its longest answer."""
        prefill, steps = self.speed.prefill(name), self.speed.step(name, work)
        read = [work.rows * work.prompt * seconds for seconds in prefill]
        batches = work.rows / min(work.batch, work.rows)
        return (read[0] + batches * work.length[0] * steps[0], read[1] + batches * work.length[1] * steps[1])

    def _writing_memory(self, work: Writing, *, models: int = 1) -> float:
        shape, rows = self.sizes.shape, min(work.batch, work.rows)
        keys = rows * (work.prompt + work.length[1] + 128) * shape.layers * shape.key_values * self.width
        logits = 3 * rows * self.sizes.vocabulary * self.width
        return self.runtime + max(self.stored_gib, models * self.compute_gib) + self.lost * (keys + logits) / _GIB

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
