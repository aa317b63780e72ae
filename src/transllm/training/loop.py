"""The training loop of every stage: packed rows in, a trained adapter out, resumable at any step.

``accelerate`` places the model, wraps it for several processes and gathers. What is learned when stands in ``schedule``, a step's
gradient in ``step``, what a run can go on from in ``state``, what it tells in ``log`` and what stops it in ``guards``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType

from transllm.lanes import lanes, lanes_for
from transllm.model.adapter import Adapted
from transllm.model.precision import matrix_flops
from transllm.progress import Progress
from transllm.recipe.schema import Training, TrainStage
from transllm.training.checkpoint import Checkpoints
from transllm.training.flops import Flops
from transllm.training.groups import make_optimizer
from transllm.training.guards import Guards, batch_of
from transllm.training.interrupts import Interrupted, Interrupts
from transllm.training.log import TrainLog, last_loss, line_of
from transllm.training.rows import Rows
from transllm.training.schedule import learning_rate, plan_steps, settings_digest
from transllm.training.state import State
from transllm.training.step import LossModule, gradients
from transllm.training.trackers import Trackers


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
        TrainingError: the loss is not a number (the batch is saved in ``folder``), or another of the guards stops it.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        MissingExtraError: a tracker's package is not installed.
        OSError: the disk is full; the last good checkpoint is kept.
    """
    accelerator = Accelerator(cpu=adapted.device.type == "cpu")
    rank, world = accelerator.process_index, accelerator.num_processes
    plan = plan_steps(rows, stage, processes=world, seed=seed)
    torch.manual_seed(seed)
    optimizer = make_optimizer(adapted, stage, training)
    state = State(adapted, optimizer, Checkpoints(folder / "checkpoints"), digest=settings_digest(rows, stage, training, len(plan), seed))
    state.resume()
    flops, matrix = Flops(adapted), matrix_flops(adapted.head.rows.compute_dtype) * world
    plain = LossModule(adapted, heavy or {})
    module, optimizer = accelerator.prepare(plain, optimizer)
    module.train()
    guards = Guards(adapted, plain, training=training, folder=folder, progress=progress, name=label,
                    movement=accelerator.distributed_type != DistributedType.DEEPSPEED)
    saved, interrupts = time.monotonic(), Interrupts()
    optimizer.zero_grad(set_to_none=True)  # of a step that was interrupted in this process
    held_out_at = {0, len(plan) // 2, len(plan)} if held_out is not None else set()
    # Several processes average their gradients in backward(), which is not for several threads at once.
    width = lanes_for(module, bins=max(map(len, plan))) if world == 1 else 1
    trackers = Trackers(training.trackers if accelerator.is_main_process else (), folder=folder, step=state.step)
    with (TrainLog(folder / "log.jsonl", step=state.step, trackers=trackers) as log, lanes(width) as run_lanes, interrupts.listen(),
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
                bins, rate = plan[state.step], learning_rate(state.step, len(plan), stage)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["rate_factor"]
                batch = batch_of(rows, bins[rank::world], step=state.step + 1, device=adapted.device)
                done = gradients(module, batch.bins, accelerator, adapted, run_lanes=run_lanes if width > 1 else None,
                                 clip=training.clip_gradient)
                leap = guards.before_update(batch, done, state)
                lengths = rows.lengths_of(bins)
                tokens = int(lengths.sum())
                with interrupts.whole():
                    optimizer.step()
                    guards.after_update()
                    optimizer.zero_grad(set_to_none=True)
                    state.advance(done, tokens=tokens, room=len(bins) * stage.micro_tokens, seconds=time.monotonic() - started,
                                  flops=flops.of(lengths, done.labels))
                    loss = state.recent.loss
                    if leap is not None:
                        log.write(leap)
                    if state.step % training.log_every == 0 or state.step == len(plan):
                        log.write(line_of(state, steps=len(plan), rate=rate, norm=done.norm, matrix_flops=matrix))
                bar.advance(tokens, f"loss {loss:.3f}")
                if time.monotonic() - saved > 60 * training.checkpoint_minutes and state.step < len(plan):
                    with interrupts.whole():
                        state.save(accelerator)
                    saved = time.monotonic()
        except KeyboardInterrupt as error:
            file = state.save(accelerator)
            where = f"step {state.step} of {len(plan)} of '{label}'"
            raise Interrupted(f"Stopped by {interrupts.name} after {where}, which is saved{f' in {file}' if file else ''}.",
                              interrupts.number) from error
    return TrainReport(
        steps=len(plan), tokens=state.tokens, labels=state.labels, seconds=state.seconds, padding=1 - state.tokens / state.room,
        epochs=state.tokens / rows.tokens, loss=last_loss(folder / "log.jsonl"))
