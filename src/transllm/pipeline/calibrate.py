"""How fast a model will train and write here, measured in some twenty seconds on a few of its layers with random weights.

A model of the recipe's kind is built from its config alone: all of its layers are alike, so the time of a step is a straight line over
their number. It is measured at two depths, in turn, with the training loop and the engine that the run will use; the line
gives the time at the full depth, and where it meets zero layers lie embedding, head and loss. The same for the bytes that a
forward pass keeps for its backward, which are counted, not estimated.

What is too large is made smaller, and scaled back by its share of the products: half as wide until two layers fit, a part of the
vocabulary, fewer tokens at once where a step would take too long.
"""

from __future__ import annotations

import contextlib
import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from transllm.generation import LocalEngine, Sampling
from transllm.lanes import lanes_for
from transllm.model import Adapted, attach, default_device
from transllm.model.load import quiet
from transllm.pipeline.shape import Shape
from transllm.pipeline.workload import Learning, Writing
from transllm.progress import Silent
from transllm.recipe.schema import Training, TrainStage
from transllm.training import EncodedRow, Rows, batches_of, pack, summed_cross_entropy, train, write_rows
from transllm.training.loss import final_logits

_DEPTH = 8
_LEAST_TOKENS = 64
_STEPS = 4  # of an answer
_REACHED = 0.3  # of the matrix rate, to size a measurement; what is measured is what counts

Clock = Callable[[], float]
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
    slot = seconds / max(1, 2 * len(learning) + len(writing))
    written = {name: sample.write(work, slot) for name, work in writing.items()}
    setup = sample.adapt()
    learned = {work.name: sample.learn(work, 2 * slot) for work in learning}
    saved = {work.name: sample.saved(work) for work in learning}
    layers = shape.layers
    return Calibration(
        training={name: line.at(layers) for name, line in learned.items()}, saved={name: line.at(layers) for name, line in saved.items()},
        lanes=sample.lanes, update=sample.update, prefill={name: prefill.at(layers) for name, (prefill, _) in written.items()},
        step={name: step.at(layers) for name, (_, step) in written.items()}, setup=setup * layers / sample.depths[1],
        seconds=time.perf_counter() - start, about=sample.about())


class _Stopwatch(Silent):
    """Progress that notes when something advanced."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._times: list[float] = []

    def advance(self, n: float, note: str = "") -> None:
        self._times.append(self._clock())

    @property
    def laps(self) -> list[float]:
        """Seconds between two advances."""
        return [later - earlier for earlier, later in zip(self._times, self._times[1:], strict=False)]


class _Sample:
    """The model with few layers, first plain, then with its adapter."""

    def __init__(self, shape: Shape, training: Training, *, new: int, dtype: torch.dtype, tflops: float, clock: Clock) -> None:
        self._shape, self._training, self._dtype, self._clock = shape, training, dtype, clock
        self._flops = _REACHED * tflops * 1e12
        self._device = default_device()
        room = _room(self._device)
        self._narrow = 1
        while 2 * shape.layer_parameters / self._narrow**2 * dtype.itemsize > room:
            self._narrow *= 2
        layer = shape.layer_parameters / self._narrow**2
        deep = min(shape.layers, next(depth for depth in (_DEPTH, 4, 2) if depth == 2 or depth * layer * dtype.itemsize <= room))
        self.depths = (max(1, deep // 4), deep)
        row = shape.hidden // self._narrow * (1 if shape.tied else 2) * (dtype.itemsize + (16 if training.embeddings == "all" else 0))
        self._part = 1  # of the vocabulary
        while (shape.vocabulary + new) / self._part * row > room / 2:
            self._part *= 2
        self._old, self._new = shape.vocabulary // self._part, max(1, new // self._part)
        self._model = _random_model(_cut_config(shape.config, deep, self._old + self._new, self._narrow), dtype, self._device)
        self._layers = _repeated(self._model.get_decoder())
        self.lanes, self.update = 1, _seconds_a_number(self._device, clock)
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

    def write(self, work: Writing, seconds: float) -> tuple[Line, Line]:
        """Seconds of a token of a prompt, and of a batch's next token, as lines over the layers."""
        batch = min(work.batch, max(1, work.rows))
        rows = max(1, min(batch, round(seconds / 4 * self._flops / (work.context * self._flops_a_token()))))
        self._fewer_tokens |= rows < batch
        engine = LocalEngine(self._model, pad_id=0, batch_size=rows)
        draw = random.Random(0)
        prompts = [[draw.randrange(self._old) for _ in range(work.context)] for _ in range(rows)]

        def once() -> tuple[float, float]:
            times = [self._clock()]
            for _ in engine.generate(prompts, sampling=Sampling(_STEPS), on_token=lambda row, _: times.append(self._clock()) if row == 0
                                     else None):
                pass
            steps = [later - earlier for earlier, later in zip(times[1:], times[2:], strict=False)]
            return (times[1] - times[0]) / (rows * work.context), statistics.median(steps) * batch / rows

        found = self._both_depths(once, seconds)
        prefill, step = (Line.through(self.depths, (statistics.median(one[part] for one in found[0]),
                                                    statistics.median(one[part] for one in found[1]))) for part in (0, 1))
        return self._full(prefill), self._full(step)

    def adapt(self) -> float:
        """Put the adapter on, as a training stage does; gives the seconds it took."""
        start = self._clock()
        self._adapted = attach(self._model, original_size=self._old, size=self._old + self._new, training=self._training, dtype=self._dtype)
        if self._training.gradient_checkpointing:
            self._adapted.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._adapted.quicken()
        return self._clock() - start

    def learn(self, work: Learning, seconds: float) -> Line:
        """Seconds a token of forward and backward, as a line over the layers."""
        micro = min(work.stage.micro_tokens, max(_LEAST_TOKENS, round(seconds / 10 * self._flops / (3 * self._flops_a_token()))))
        self._fewer_tokens |= micro < work.stage.micro_tokens
        wanted = work.bins_a_step(1)
        width = lanes_for(self._adapted.peft, bins=wanted)
        self.lanes = max(self.lanes, width)
        bins = wanted if wanted <= 2 * width else width
        stage = work.stage.model_copy(update={"tokens": 2 * bins * micro, "batch_tokens": bins * micro, "micro_tokens": micro})
        with tempfile.TemporaryDirectory() as folder:
            rows = _random_rows(Path(folder) / "rows", work, tokens=stage.tokens, longest=min(micro, work.stage.sequence_length),
                                vocabulary=self._old + self._new)

            def once() -> float:
                laps = self._steps(rows, stage, Path(folder))
                update = self.update * sum(parameter.numel() for parameter in self._adapted.trainable().values())
                return max(0.0, statistics.median(laps) - update) / (bins * micro)

            found = self._both_depths(once, seconds)
        return self._full(Line.through(self.depths, (statistics.median(found[0]), statistics.median(found[1]))))

    def saved(self, work: Learning) -> Line:
        """Bytes a token that the forward pass keeps for the backward, weights apart, as a line over the layers."""
        with tempfile.TemporaryDirectory() as folder:
            tokens = min(512, work.stage.micro_tokens)
            rows = _random_rows(Path(folder), work, tokens=tokens, longest=tokens, vocabulary=self._old + self._new)
            batch = next(batches_of(rows, pack(rows.lengths.tolist(), capacity=tokens, seed=0), device=self._device))
        kept = []
        for depth in self.depths:
            with self._at(depth):
                kept.append(_kept(self._adapted, batch) / batch.ids_1T.shape[1])
        line = Line.through(self.depths, (kept[0], kept[1]))
        return line.scaled(head=self._narrow, layer=self._narrow)

    def _steps(self, rows: Rows, stage: TrainStage, folder: Path) -> list[float]:
        """Seconds of each step of the training loop."""
        watch = _Stopwatch(self._clock)
        training = self._training.model_copy(update={"checkpoint_minutes": 1e9, "log_every": 1_000_000})
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            train(self._adapted, rows, stage=stage, training=training, folder=Path(empty), seed=1, progress=watch, label="calibration")
        return watch.laps

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
        return 2 * (self.depths[1] * self._shape.layer_parameters / self._narrow**2 + (self._old + self._new) * self._shape.hidden / self._narrow)

    @contextlib.contextmanager
    def _at(self, depth: int) -> Iterator[None]:
        """The model with its first so many layers."""
        text: Any = self._model.config.get_text_config()
        tail, before = list(self._layers)[depth:], {name: getattr(text, name, None) for name in ("num_hidden_layers", "layer_types")}
        del self._layers[depth:]
        _set_depth(text, depth)
        try:
            yield
        finally:
            self._layers.extend(tail)
            for name, value in before.items():
                if value is not None:
                    setattr(text, name, value)


def _room(device: torch.device) -> float:
    """Bytes for the weights of the sample: a part of an accelerator's free memory, and little of the machine's."""
    return torch.cuda.mem_get_info(device)[0] / 4 if device.type == "cuda" else 0.8 * 2**30


def _cut_config(config: Any, layers: int, rows: int, narrow: int) -> Any:
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    _set_depth(text, layers)
    text.vocab_size = cut.vocab_size = rows
    text.pad_token_id = cut.pad_token_id = None  # may lie behind the end of a part of the vocabulary
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        value = getattr(text, name, None)
        if narrow > 1 and value:
            setattr(text, name, max(1, value // narrow))
    return cut


def _set_depth(text: Any, layers: int) -> None:
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.num_hidden_layers = layers


def _random_model(config: Any, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Small random weights, one block of numbers again and again: drawing each would take longer than measuring."""
    factory: Any = AutoModelForCausalLM  # transformers' factories carry no types
    with quiet(), no_init_weights(), torch.device(device):
        model: PreTrainedModel = factory.from_config(config, dtype=dtype)
    noise = torch.empty(2**20, dtype=dtype, device=device).uniform_(-0.05, 0.05, generator=torch.Generator(device).manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            for part in parameter.data.view(-1).split(len(noise)):
                part.copy_(noise[: len(part)])
    return model.eval()


def _repeated(decoder: nn.Module) -> nn.ModuleList:
    """The list of modules that holds most of the weights."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def _random_rows(folder: Path, work: Learning, *, tokens: int, longest: int, vocabulary: int) -> Rows:
    """Rows of random ids and lengths, with the stage's share of labels at their ends: prompts come first."""
    draw, rows = random.Random(0), []
    while tokens > 0:
        length = max(2, min(longest, draw.randint(work.row // 2, work.row * 3 // 2)))
        learned = max(1, min(length - 1, round(work.labelled * length)))
        ids = [draw.randrange(vocabulary) for _ in range(length)]
        rows.append(EncodedRow(ids, [False] * (length - learned) + [True] * learned, 4 * learned))
        tokens -= length
    return write_rows(rows, folder)


def _kept(adapted: Adapted, batch: Any) -> int:
    """Bytes of all storages that autograd keeps after a forward pass, parameters apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in adapted.peft.parameters()}
    own |= {buffer.untyped_storage().data_ptr() for buffer in adapted.peft.buffers()}
    kept: dict[int, int] = {}
    held: list[torch.Tensor] = []  # so that no storage is freed and its address used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    adapted.peft.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_1TD = adapted.hidden(batch.ids_1T, batch.documents)
        summed_cross_entropy(hidden_1TD[0], batch.labels_T, head=adapted.head, finish=final_logits(adapted.base.config))
    return sum(size for place, size in kept.items() if place not in own)


def _seconds_a_number(device: torch.device, clock: Clock) -> float:
    """An update by fused AdamW, for each number."""
    numbers = nn.Parameter(torch.zeros(4_000_000, device=device))
    numbers.grad = torch.ones_like(numbers)
    optimizer = torch.optim.AdamW([numbers], fused=True)
    laps = []
    for _ in range(5):
        start = clock()
        optimizer.step()
        float(numbers[0].detach())  # waits for an accelerator
        laps.append(clock() - start)
    return statistics.median(laps) / numbers.numel()
