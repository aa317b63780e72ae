"""What a recipe will cost before it runs: steps, tokens, time, memory and disk of each stage. Loads no weights.

``workload`` says what there is to do, ``calibrate`` measures how fast that goes here, ``speed`` has the formulae for a device that is only
stated, ``devices`` those for many, and ``estimate`` puts them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from transllm.model.precision import compute_dtype, default_device, measure_tflops
from transllm.pipeline.calibrate import calibrate
from transllm.pipeline.devices import Cluster, Device, Strategy
from transllm.pipeline.estimate import GIB, MARKERS, Estimate, Sizes, StagePlan
from transllm.pipeline.shape import Shape, shape_of
from transllm.pipeline.speed import Measured, Span, Speed, Stated
from transllm.pipeline.workload import bridging, document_tokens, evaluating, learning, recovering
from transllm.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost of a recipe.

    Attributes:
        shape: the model's.
        train: what trains, as in the recipe.
        trained: numbers that train.
        stages: in order.
        device: what it is computed for; its rate is measured or stated.
        measured: whether times come from a calibration here.
        cluster: how many devices, and how they share.
        strategies: peak memory of training and seconds of all training, on as many devices, by strategy; empty for one device.
        assumptions: a sentence each.
    """

    shape: Shape
    train: str
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
        return max(stage.memory_gib for stage in self.stages if not stage.host)

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
        device = Device("this machine", measure_tflops(dtype, clock=clock), _memory_here(here))
        speed = Stated(shape, recipe, device, new=sizes.new, width=width)
        how = f"A matrix product runs at {device.tflops:.3g} TFLOPS here ({name}); training reaches {device.training[0]:.0%} to " \
              f"{device.training[1]:.0%} of it, answering {speed.answering[0]:.0%} to {speed.answering[1]:.0%}."
        if calibration and shape.config is not None:
            writing = {"recover": recovering(recipe)[0], "bridge": bridging(recipe), "evaluate": evaluating(recipe)[2]}
            found = calibrate(shape, recipe.training, list(learning(recipe)), {name: one for name, one in writing.items() if one.rows},
                              new=recipe.extend.at_most + MARKERS, dtype=dtype, tflops=device.tflops, seconds=seconds, clock=clock)
            speed = Measured(found, device.tflops)
            how = f"Times are measured here in {found.seconds:.0f} s, on {found.about} ({name}); a matrix product runs at " \
                  f"{device.tflops:.3g} TFLOPS."
    estimate = Estimate(recipe, sizes, speed, cluster, width=width, kind=kind)
    return Plan(shape, recipe.training.train, sizes.trained, tuple(estimate.stages()), device, isinstance(speed, Measured), cluster,
                estimate.strategies(),
                (f"The model's shape comes from {shape.origin}.", how, *_assumed(recipe, cluster, processor=kind == "cpu")))


def _memory_here(device: torch.device) -> float:
    """GiB that a device has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / GIB
    return float(psutil.virtual_memory().total / GIB)


def _assumed(recipe: Recipe, cluster: Cluster, *, processor: bool) -> Iterator[str]:
    written = [one for one in (recovering(recipe)[0], evaluating(recipe)[2]) if one.length[0] < one.length[1]]
    if written:
        yield (f"How long answers will be is unknown: times go from {written[0].length[0]} tokens each to the recipe's limit of "
               f"{' and '.join(f'{one.length[1]:,}' for one in written)}.")
    yield (f"Rows: documents of {document_tokens(recipe)} tokens, "
           + ", ".join(f"{work.name} {work.row} with {work.labelled:.0%} learned" for work in learning(recipe)) + ".")
    engine, ray = recipe.recover.engine.name, recipe.recover.ray
    if engine != "transformers" or ray is not None:
        who = {"auto": "the fastest of the engines that work here", "server": f"a server ({recipe.recover.engine.url})"}.get(engine, engine)
        many = "" if ray is None else f", on {ray.workers} Ray workers"
        yield (f"In recover {who} answers{many}, whose speed and memory are not known here: its row is what one process of this library's "
               "own engine would need.")
    if recipe.training.quantize != "none":
        yield ("Training's time is that of weights that are not quantised; with 4 bits each product takes longer, by how much is not known "
               "here.")
    yield ("The time of prepare and of downloads is not counted; extend, merge and all that is written are rough. "
           "Disk is without caches of models and data.")
    if cluster.devices > 1:
        yield (f"{cluster.bandwidth_gbs:g} GB/s between devices{'' if cluster.nodes == 1 else ' of different nodes'}. All devices share "
               "the training; the other stages run on one. zero2 and zero3 are for comparison: the loop runs ddp and fsdp.")
