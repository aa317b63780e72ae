"""The training loop of every stage: packed rows in, a trained adapter out, resumable at any step.

``accelerate`` places the model, wraps it for several processes and gathers; what is learned, on which tokens and at which
rate stands here. The state of a run is (trained tensors, optimiser, random numbers, step, log): the schedule and the order of data
are functions of the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from transllm.errors import TrainingError
from transllm.files import JsonLines, read_jsonl, write_json, write_text
from transllm.lanes import Lanes, lanes, lanes_for
from transllm.model.adapter import Adapted
from transllm.progress import Progress
from transllm.recipe.schema import Training, TrainStage
from transllm.training.checkpoint import Checkpoints
from transllm.training.groups import make_optimizer
from transllm.training.interrupts import Interrupts
from transllm.training.loss import final_logits, summed_cross_entropy
from transllm.training.packing import Packed, batches_of, pack
from transllm.training.rows import Rows

_LN2 = math.log(2)


class Interrupted(KeyboardInterrupt):
    """Stopped by the user; the state was saved."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training stage did, over all its sittings.

    Attributes:
        steps: optimiser steps.
        tokens: tokens seen.
        labels: tokens learned from.
        seconds: time in the loop.
        padding: share of the bins' room left empty.
        epochs: passes over the rows (a budget in tokens can need a part of one, or several).
        loss: mean nats a label over the last tenth of the steps.
    """

    steps: int
    tokens: int
    labels: int
    seconds: float
    padding: float
    epochs: float
    loss: float


class _Loss(nn.Module):
    """The model with its loss, as one module that ``accelerate`` can wrap."""

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


def learning_rate(step: int, steps: int, stage: TrainStage) -> float:
    """Linear warm-up, then a cosine down to ``min_learning_rate``; ``step`` counts from 0."""
    warmup = max(1, round(stage.warmup * steps))
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = stage.min_learning_rate
    return stage.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def plan_steps(rows: Rows, stage: TrainStage, *, processes: int, seed: int) -> list[list[list[int]]]:
    """The bins of each optimiser step, for the whole budget; rows are repeated in a new order where the budget needs it.

    Every process computes the same plan and takes its share of each step.
    """
    per_step = max(1, round(stage.batch_tokens / stage.micro_tokens))
    per_step = math.ceil(per_step / processes) * processes
    lengths = rows.lengths.tolist()
    bins: list[list[int]] = []
    tokens, epoch = 0, 0
    while tokens < stage.tokens:
        for members in pack(lengths, capacity=stage.micro_tokens, seed=seed + epoch):
            bins.append(members)
            tokens += sum(lengths[row] for row in members)
            if tokens >= stage.tokens:
                break
        epoch += 1
    return [bins[start: start + per_step] for start in range(0, len(bins), per_step)]


def train(
    adapted: Adapted,
    rows: Rows,
    *,
    stage: TrainStage,
    training: Training,
    folder: Path,
    seed: int,
    progress: Progress,
    label: str,
    held_out: Callable[[], float] | None = None,
    heavy: Mapping[int, float] | None = None,
) -> TrainReport:
    """Train ``adapted`` in place for the stage's budget.

    Args:
        rows: encoded rows.
        folder: checkpoints/ and log.jsonl go here; if they are there from a killed run, training goes on exactly where they end.
        held_out: gives bits per byte on held-out text; called at the start, the middle and the end.
        heavy: tokens whose labels count so many times in the gradient; see ``summed_cross_entropy``.

    Raises:
        TrainingError: the loss is not a number (the batch is saved in ``folder``).
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    accelerator = Accelerator(cpu=adapted.device.type == "cpu")
    plan = plan_steps(rows, stage, processes=accelerator.num_processes, seed=seed)
    torch.manual_seed(seed)
    optimizer = make_optimizer(adapted, stage, training)
    digest = f"{rows.digest}-{seed}-{len(plan)}-{stage.batch_tokens}-{stage.micro_tokens}"
    state = _State(adapted, optimizer, Checkpoints(folder / "checkpoints"), digest=digest)
    state.resume()
    _cut_log(folder / "log.jsonl", state.step)
    module, optimizer = accelerator.prepare(_Loss(adapted, heavy or {}), optimizer)
    module.train()
    lengths = rows.lengths
    saved, interrupts = time.monotonic(), Interrupts()
    optimizer.zero_grad(set_to_none=True)  # of a step that was interrupted in this process
    held_out_at = {0, len(plan) // 2, len(plan)} if held_out is not None else set()
    # Several processes average their gradients in backward(), which is not for several threads at once.
    width = lanes_for(module, bins=max(map(len, plan))) if accelerator.num_processes == 1 else 1
    with (lanes(width) as run_lanes, JsonLines(folder / "log.jsonl") as log, interrupts.listen(),
          progress.task(label, stage.tokens, "tokens") as bar):
        bar.advance(state.tokens)
        try:
            while True:
                if held_out is not None and state.step in held_out_at and accelerator.is_main_process:
                    log.write({"step": state.step, "tokens": state.tokens, "held_out_bits_per_byte": held_out()})
                    module.train()
                if state.step == len(plan):
                    break
                started = time.monotonic()
                bins = plan[state.step]
                rate = learning_rate(state.step, len(plan), stage)
                done = _gradients(module, rows, bins, accelerator, optimizer, adapted, run_lanes=run_lanes if width > 1 else None,
                                  rate=rate, training=training, folder=folder, seed=seed)
                tokens = int(sum(lengths[row] for members in bins for row in members))
                loss = state.recent.loss_with(done)
                with interrupts.whole():
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    state.advance(tokens, done, time.monotonic() - started)
                    if state.step % training.log_every == 0 or state.step == len(plan):
                        log.write(state.line(steps=len(plan), rate=rate, norm=done.norm))
                bar.advance(tokens, f"loss {loss:.3f}")
                if time.monotonic() - saved > 60 * training.checkpoint_minutes and state.step < len(plan):
                    state.save(accelerator)
                    saved = time.monotonic()
        except KeyboardInterrupt as error:
            state.save(accelerator)
            raise Interrupted from error
    room = sum(len(bins) for bins in plan) * stage.micro_tokens
    lines = [line for line in read_jsonl(folder / "log.jsonl") if "loss" in line]
    last = lines[-max(1, len(lines) // 10):]
    return TrainReport(
        steps=len(plan), tokens=state.tokens, labels=state.labels, seconds=state.seconds, padding=1 - state.tokens / room,
        epochs=state.tokens / rows.tokens, loss=sum(line["loss"] for line in last) / len(last))


@dataclass(frozen=True, slots=True)
class _Done:
    nats: float
    labels: int
    n_bytes: int
    norm: float


def _gradients(module: nn.Module, rows: Rows, bins: Sequence[Sequence[int]], accelerator: Accelerator, optimizer: Any, adapted: Adapted, *,
               run_lanes: Lanes | None, rate: float, training: Training, folder: Path, seed: int) -> _Done:
    """Forward and backward of one optimiser step.

    The gradient is of the mean over all labels of the step, however bins, lanes and processes share them.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = list(batches_of(rows, bins[rank::world], device=adapted.device))
    counts = torch.tensor([sum(batch.labels for batch in mine), sum(batch.n_bytes for batch in mine)], device=adapted.device)
    labels, n_bytes = (int(count) for count in accelerator.reduce(counts, reduction="sum"))
    nats = torch.zeros((), device=adapted.device)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]
    parameters = list(adapted.trainable().values())
    if run_lanes is None:
        for batch in mine:
            loss = module(batch)
            nats += loss.detach()
            # Processes average their gradients; times their number gives the sum that the mean over all labels needs.
            accelerator.backward(loss * (world / labels))
    else:
        def lane(batch: Packed) -> tuple[Tensor, Sequence[Tensor | None]]:
            loss = module(batch)
            return loss.detach(), torch.autograd.grad(loss / labels, parameters, allow_unused=True)

        for loss, gradients in run_lanes(lane, mine):  # in order, so that the sum is the same each time
            nats += loss
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    norm = accelerator.clip_grad_norm_(parameters, training.clip_gradient)
    total = float(accelerator.reduce(nats, reduction="sum"))
    if not math.isfinite(total) or not math.isfinite(float(norm)):
        write_json(folder / "not_a_number.json", {"seed": seed, "rows": [list(members) for members in bins]})
        raise TrainingError(f"The loss is not a number (loss {total}, gradient norm {float(norm)}). The rows of this step are listed in "
                            f"{folder / 'not_a_number.json'}. Lower the learning rate, or look at them with 'transllm inspect batch'.")
    return _Done(total, labels, n_bytes, float(norm))


class _State:
    """Where training stands, on disk and in memory."""

    def __init__(self, adapted: Adapted, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, *, digest: str) -> None:
        self._adapted, self._optimizer, self._checkpoints, self._digest = adapted, optimizer, checkpoints, digest
        self.step = self.tokens = self.labels = 0
        self.seconds = 0.0
        self.recent = _Window()
        self._random = _random_numbers()

    def advance(self, tokens: int, done: _Done, seconds: float) -> None:
        """A step is done. Random numbers are taken here: an interrupt inside the next step must not save what that has drawn."""
        self.step += 1
        self.tokens += tokens
        self.labels += done.labels
        self.seconds += seconds
        self.recent.add(tokens, done)
        self._random = _random_numbers()

    def line(self, *, steps: int, rate: float, norm: float) -> dict[str, Any]:
        """A line of the log; the next one starts from nothing."""
        recent, self.recent = self.recent, _Window()
        return {
            "step": self.step, "steps": steps, "tokens": self.tokens, "loss": recent.nats / max(1, recent.labels),
            "bits_per_byte": recent.nats / _LN2 / max(1, recent.n_bytes), "learning_rate": rate, "gradient_norm": norm,
            "tokens_per_second": recent.tokens / max(1e-9, time.monotonic() - recent.started), "seconds": round(self.seconds, 3),
            "memory_gib": psutil.Process().memory_info().rss / 2**30}

    def save(self, accelerator: Accelerator) -> None:
        if accelerator.is_main_process:
            self._checkpoints.save(self.step, {
                "digest": self._digest, "tokens": self.tokens, "labels": self.labels, "seconds": self.seconds,
                "trained": self._adapted.state(), "optimizer": self._optimizer.state_dict(), "random": self._random,
                "recent": [self.recent.nats, self.recent.labels, self.recent.n_bytes, self.recent.tokens]})
        accelerator.wait_for_everyone()

    def resume(self) -> None:
        saved = self._checkpoints.latest()
        if saved is None or saved["digest"] != self._digest:
            return
        self._adapted.load_state(saved["trained"])
        self._optimizer.load_state_dict(saved["optimizer"])
        _set_random_numbers(saved["random"])
        self._random = saved["random"]
        self.recent = _Window(*saved["recent"])
        self.step, self.tokens, self.labels, self.seconds = (saved[name] for name in ("step", "tokens", "labels", "seconds"))


class _Window:
    """Sums since the last line of the log."""

    def __init__(self, nats: float = 0.0, labels: int = 0, n_bytes: int = 0, tokens: int = 0) -> None:
        self.nats, self.labels, self.n_bytes, self.tokens, self.started = nats, labels, n_bytes, tokens, time.monotonic()

    def add(self, tokens: int, done: _Done) -> None:
        self.nats += done.nats
        self.labels += done.labels
        self.n_bytes += done.n_bytes
        self.tokens += tokens

    def loss_with(self, done: _Done) -> float:
        """Mean nats a label, one more step included."""
        return (self.nats + done.nats) / max(1, self.labels + done.labels)


def _random_numbers() -> list[Tensor]:
    """States of the generators that dropout draws from: the processor's and, if there is one, the accelerator's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_random_numbers(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


def _cut_log(path: Path, step: int) -> None:
    """Remove lines that lie behind the checkpoint: their steps will be done again."""
    import json

    kept = [line for line in read_jsonl(path) if line["step"] < step or (line["step"] == step and "loss" in line)]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
