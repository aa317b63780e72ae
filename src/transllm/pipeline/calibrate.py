"""How fast a model will train and write here, measured in some twenty seconds on a few of its layers with random weights.

A model of the recipe's kind is built from its config alone: all of its layers are alike, so the time of a step is a straight line over
their number. It is measured at two depths, in turn, with the training loop and the engine that the run will use; the line
gives the time at the full depth, and where it meets zero layers lie embedding, head and loss. The same for the bytes that a
forward pass keeps for its backward, which are counted, not estimated.

What is too large is made smaller, and scaled back by its share of the products: half as wide until four layers fit, a part of the
vocabulary, fewer tokens at once where a step would take too long.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from transllm.generation import LocalEngine, Sampling
from transllm.lanes import lanes
from transllm.model import attach, default_device
from transllm.pipeline.sample import Clock, Stopwatch, build, cut_config, kept, random_rows, repeated, room, seconds_a_number, set_depth
from transllm.pipeline.shape import Shape
from transllm.pipeline.workload import Learning, Writing
from transllm.recipe.schema import Training, TrainStage
from transllm.training import Rows, batches_of, pack, train
from transllm.training.step import lanes_for

_DEPTHS = (16, 8, 4, 2)
_LEAST_TOKENS = 64
_LEAST_CONTEXT = 8
_WRITING = 0.3  # of the time, the rest is for training
_COUNTED = 256  # tokens, to see what a token keeps
_STEPS = 4  # of an answer
_REACHED = 0.5  # of the matrix rate, to size a measurement; what is measured is what counts

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line over the number of layers.

    Attributes:
        head: at no layer.
        layer: more for each.
    """

    head: float
    layer: float

    def at(self, layers: int) -> float:
        return self.head + layers * self.layer

    def scaled(self, *, head: float, layer: float) -> Line:
        """Both parts multiplied; noise can make a part that is next to nothing negative."""
        return Line(max(0.0, self.head) * head, max(0.0, self.layer) * layer)

    def toward(self, other: Line, share: float) -> Line:
        """This line at 0, the other at 1, and so on beyond; what noise makes less is taken for the same."""
        return Line(*(max(0.0, one + share * max(0.0, more - one)) for one, more in ((self.head, other.head), (self.layer, other.layer))))

    @classmethod
    def through(cls, depths: tuple[int, int], values: tuple[float, float]) -> Line:
        """The line through two points; one depth alone is all there is, and has no slope."""
        if depths[0] == depths[1]:
            return cls(values[1], 0.0)
        slope = (values[1] - values[0]) / (depths[1] - depths[0])
        return cls(values[1] - slope * depths[1], slope)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, for the full model.

    Attributes:
        training: by stage, seconds a token of all that a step does but the optimiser's update.
        saved: by stage, bytes kept for the backward pass, a token.
        lanes: bins that are computed at once.
        update: seconds for each number that trains, once a step.
        prefill: by stage, seconds a token of a prompt.
        step: by stage, seconds for the next token of a whole batch.
        setup: seconds to put the adapter on and find the short ways.
        seconds: what the calibration took.
        about: how it was done, for the reader.
    """

    training: Mapping[str, float]
    saved: Mapping[str, float]
    lanes: int
    update: float
    prefill: Mapping[str, float]
    step: Mapping[str, float]
    setup: float
    seconds: float
    about: str


def calibrate(shape: Shape, training: Training, learning: Sequence[Learning], writing: Mapping[str, Writing], *, new: int,
              dtype: torch.dtype, tflops: float, seconds: float = 20.0, clock: Clock = time.perf_counter) -> Calibration:
    """Measure. Loads no weights, and holds a few layers.

    Args:
        learning: the training stages.
        writing: by stage, what is written in batches.
        new: rows of new tokens.
        dtype: precision of the run.
        tflops: of a matrix product here, to choose sizes that can be measured in time.
        seconds: about how long to take.
        clock: what times it; ``time.process_time`` where others use the processor too.
    """
    start = time.perf_counter()
    sample = _Sample(shape, training, new=new, dtype=dtype, tflops=tflops, clock=clock)
    written = sample.write(writing, _WRITING * seconds) if writing else {}
    setup = sample.adapt()
    saved = {work.name: sample.saved(work) for work in learning}
    sample.checkpoint()
    learned = _learned(sample, learning, (1 - _WRITING) * seconds)
    layers = shape.layers
    return Calibration(
        training={name: line.at(layers) for name, line in learned.items()}, saved={name: line.at(layers) for name, line in saved.items()},
        lanes=sample.lanes, update=sample.update, prefill={name: prefill.at(layers) for name, (prefill, _) in written.items()},
        step={name: step.at(layers) for name, (_, step) in written.items()}, setup=setup * layers / sample.depths[1],
        seconds=time.perf_counter() - start, about=sample.about())


def _learned(sample: _Sample, learning: Sequence[Learning], seconds: float) -> dict[str, Line]:
    """Measure each kind of step once. Stages with the same batch differ in their share of labels, which is the head's work."""
    kinds: dict[tuple[int, int], list[Learning]] = {}
    for work in learning:
        kinds.setdefault((work.stage.micro_tokens, work.bins_a_step), []).append(work)
    found = {}
    for works in kinds.values():
        line = sample.learn(works[-1], seconds / len(kinds))
        found.update({work.name: Line(line.head * work.labelled / works[-1].labelled, line.layer) for work in works})
    return found


class _Sample:
    """The model with few layers, first plain, then with its adapter."""

    def __init__(self, shape: Shape, training: Training, *, new: int, dtype: torch.dtype, tflops: float, clock: Clock) -> None:
        self._shape, self._training, self._dtype, self._clock = shape, training, dtype, clock
        self._flops = _REACHED * tflops * 1e12
        self._device = default_device()
        most = room(self._device)
        self._narrow = 1
        while 4 * shape.layer_parameters / self._narrow**2 * dtype.itemsize > most:
            self._narrow *= 2
        layer = shape.layer_parameters / self._narrow**2
        deep = min(shape.layers, next(depth for depth in _DEPTHS if depth == 2 or depth * layer * dtype.itemsize <= most))
        self.depths = (max(1, deep // 4), deep)
        row = shape.hidden // self._narrow * (1 if shape.tied else 2) * (dtype.itemsize + (16 if training.trains_old_rows else 0))
        self._part = 1  # of the vocabulary
        while (shape.vocabulary + new) / self._part * row > most / 2:
            self._part *= 2
        self._old, self._new = shape.vocabulary // self._part, max(1, new // self._part)
        self._model = build(cut_config(shape.config, deep, self._old + self._new, self._narrow), dtype, self._device)
        self._layers = repeated(self._model.get_decoder())
        self.lanes, self.update = 1, seconds_a_number(self._device, clock)
        self._fewer_tokens = False

    def about(self) -> str:
        """What was done to the model."""
        said = [f"{self.depths[0]} and {self.depths[1]} of its {self._shape.layers} layers with random weights"]
        if self._narrow > 1:
            said.append(f"1/{self._narrow} as wide")
        if self._part > 1:
            said.append(f"1/{self._part} of the vocabulary")
        if self._fewer_tokens:
            said.append("fewer tokens at once than the recipe's")
        return ", ".join(said)

    def write(self, works: Mapping[str, Writing], seconds: float) -> dict[str, tuple[Line, Line]]:
        """By stage, seconds of a token of a prompt, and of a batch's next token, as lines over the layers.

        A step reads all weights, however few its rows are, so it is measured with few rows and with more: what a row adds is known then,
        and from that the step of each stage's batch.
        """
        batches = {name: min(work.batch, max(1, work.rows)) for name, work in works.items()}
        # Each depth three times, the lesser one a third as long, and a quarter as many rows beside.
        tokens = round(seconds / 6 * self._flops / self._flops_a_token())
        # Reading a shorter context costs a step little; a smaller batch would cost it much.
        many = max(2, min(max(batches.values()), tokens // (_LEAST_CONTEXT + _STEPS)))
        few = max(1, many // 4)
        context = max(_LEAST_CONTEXT, min(max(work.context for work in works.values()), tokens // many - _STEPS))
        self._fewer_tokens |= any(many * context < batches[name] * work.context for name, work in works.items())
        draw = random.Random(0)
        prompts = [[draw.randrange(self._old) for _ in range(context)] for _ in range(many)]

        def once() -> tuple[float, float, float]:
            first, step = self._answer(prompts)
            return first / (many * context), step, self._answer(prompts[:few])[1]

        found = self._both_depths(once, seconds)
        prefill, more, less = (Line.through(self.depths, (statistics.median(one[part] for one in found[0]),
                                                          statistics.median(one[part] for one in found[1]))) for part in range(3))
        return {name: (self._full(prefill), self._full(less.toward(more, (batch - few) / (many - few)))) for name, batch in batches.items()}

    def _answer(self, prompts: Sequence[Sequence[int]]) -> tuple[float, float]:
        """Seconds until all prompts have their first token, and of a next one."""
        watch = Stopwatch(self._clock)
        watch.advance(0)
        engine = LocalEngine(self._model, pad_id=0, batch_size=len(prompts))
        list(engine.generate(prompts, sampling=Sampling(_STEPS), on_token=lambda row, _: watch.advance(1) if row == 0 else None))
        first, *steps = watch.laps
        return first, statistics.median(steps)

    def adapt(self) -> float:
        """Put the adapter on, as a training stage does; gives the seconds it took."""
        start = self._clock()
        self._adapted = attach(self._model, original_size=self._old, size=self._old + self._new, training=self._training, dtype=self._dtype)
        self._adapted.quicken()
        return self._clock() - start

    def checkpoint(self) -> None:
        """Keep the input of each layer only, if the recipe wants that."""
        if self._training.gradient_checkpointing:
            self._adapted.base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def learn(self, work: Learning, seconds: float) -> Line:
        """Seconds a token of forward and backward, as a line over the layers."""
        wanted = work.bins_a_step
        width = lanes_for(self._adapted.peft, bins=wanted)
        self.lanes = max(self.lanes, width)
        bins = wanted if wanted <= 2 * width else width
        tokens = round(seconds / 4 * self._flops / (2.5 * self._flops_a_token()))  # a step at each depth, four times and more
        micro = min(work.stage.micro_tokens, max(_LEAST_TOKENS, tokens // bins))
        self._fewer_tokens |= micro < work.stage.micro_tokens
        stage = work.stage.model_copy(update={"tokens": 2 * bins * micro, "batch_tokens": bins * micro, "micro_tokens": micro})
        with tempfile.TemporaryDirectory() as folder:
            rows = random_rows(Path(folder) / "rows", work, tokens=stage.tokens, longest=min(micro, work.stage.sequence_length),
                                vocabulary=self._old + self._new)

            def once() -> float:
                steps = self._steps(rows, stage, Path(folder))
                whole = [step for step in steps if 2 * step[1] > max(tokens for _, tokens in steps)]  # not what was left at the end
                update = self.update * sum(parameter.numel() for parameter in self._adapted.trainable().values())
                return max(0.0, sum(taken - update for taken, _ in whole)) / sum(tokens for _, tokens in whole)

            found = self._both_depths(once, seconds)
        return self._full(Line.through(self.depths, (statistics.median(found[0]), statistics.median(found[1]))))

    def saved(self, work: Learning) -> Line:
        """Bytes a token that the forward pass keeps for the backward, weights apart, as a line over the layers.

        Counted before checkpointing is switched on: with it, one layer at a time keeps all this, and the others their input.
        """
        with tempfile.TemporaryDirectory() as folder:
            tokens = min(_COUNTED, work.stage.micro_tokens)
            rows = random_rows(Path(folder), work, tokens=tokens, longest=tokens, vocabulary=self._old + self._new)
            batch = next(batches_of(rows, pack(rows.lengths, capacity=tokens, seed=0), device=self._device))
        found = []
        with lanes(lanes_for(self._adapted.peft, bins=work.bins_a_step)) as run_lanes:  # which kernels there are depends on a lane's cores
            for depth in self.depths:
                with self._at(depth):
                    found.append(next(iter(run_lanes(kept, [self._adapted], [batch]))) / batch.ids_1T.shape[1])
        line = Line.through(self.depths, (found[0], found[1])).scaled(head=self._narrow, layer=self._narrow)
        if not self._training.gradient_checkpointing:
            return line
        return Line(line.head + line.layer, float(self._shape.hidden * self._dtype.itemsize))

    def _steps(self, rows: Rows, stage: TrainStage, folder: Path) -> list[tuple[float, float]]:
        """Seconds and tokens of each step of the training loop."""
        watch = Stopwatch(self._clock)
        # Compiling takes minutes; a run keeps it only where it is faster than this.
        training = self._training.model_copy(update={"checkpoint_minutes": 1e9, "log_every": 1_000_000, "compile": "off"})
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            train(self._adapted, rows, stage=stage, training=training, folder=Path(empty), seed=1, progress=watch, label="calibration")
        return list(zip(watch.laps, watch.by, strict=True))

    def _both_depths(self, once: Callable[[], _Found], seconds: float) -> tuple[list[_Found], list[_Found]]:
        """Measure at both depths in turn until the time is over, three times at least; the first of each is to warm up."""
        found: tuple[list[_Found], list[_Found]] = ([], [])
        start = time.perf_counter()
        while len(found[0]) < 3 or time.perf_counter() - start < seconds:
            for place, depth in enumerate(self.depths):
                with self._at(depth):
                    found[place].append(once())
            if len(found[0]) >= 2 and time.perf_counter() - start > 3 * seconds:
                break  # slower than thought
        return found[0][1:], found[1][1:]

    def _full(self, line: Line) -> Line:
        """As the model's own width and vocabulary would have it: products grow with both sides of a matrix."""
        return line.scaled(head=self._part * self._narrow, layer=self._narrow**2)

    def _flops_a_token(self) -> float:
        """Forward, at the larger depth."""
        head = (self._old + self._new) * self._shape.hidden / self._narrow
        return 2 * (self.depths[1] * self._shape.layer_parameters / self._narrow**2 + head)

    @contextlib.contextmanager
    def _at(self, depth: int) -> Iterator[None]:
        """The model with its first so many layers."""
        text: Any = self._model.config.get_text_config()
        tail, before = list(self._layers)[depth:], {name: getattr(text, name, None) for name in ("num_hidden_layers", "layer_types")}
        del self._layers[depth:]
        set_depth(text, depth)
        try:
            yield
        finally:
            self._layers.extend(tail)
            for name, value in before.items():
                if value is not None:
                    setattr(text, name, value)
