"""The training loop of every stage: packed rows in, a trained adapter out, resumable at any step.

What is learned when stands in ``schedule``, a step's gradient in ``step``, what a run can go on from in ``state``, what it tells in
``log`` and what stops it in ``guards``. Several processes (``transllm.processes``) walk through the same steps and share the bins of each;
the main one writes. All hold what trains, or share it (``Adapted.shares_trained``): then all must be there when the state is saved.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from transllm import processes
from transllm.errors import LostProcessError, TrainingError, first_line
from transllm.lanes import lanes
from transllm.model.adapter import Adapted
from transllm.model.pages import keeping_freed
from transllm.model.precision import matrix_flops
from transllm.progress import Progress
from transllm.recipe.schema import Training, TrainStage
from transllm.training.checkpoint import Checkpoints
from transllm.training.compiling import Compiled, compile_what_pays
from transllm.training.flops import Flops
from transllm.training.groups import make_optimizer
from transllm.training.guards import Guards, batch_of
from transllm.training.interrupts import Interrupted, Interrupts
from transllm.training.log import TrainLog, last_loss, line_of
from transllm.training.mirror import Recovery
from transllm.training.own_samples import OwnSamples
from transllm.training.rows import Rows
from transllm.training.schedule import learning_rate, plan_steps, settings_digest
from transllm.training.state import State
from transllm.training.step import LossModule, gradients, lanes_for
from transllm.training.trackers import Trackers

_LOG_EVERY, _POINTS = 10, 20  # steps between two lines of the log, where a curve of so many points is had with them


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
        compiled: what was compiled, and what was measured to decide it; empty where it was not tried.
    """

    steps: int
    tokens: int
    labels: int
    seconds: float
    padding: float
    epochs: float
    loss: float
    compiled: Compiled


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
    soft_weight: float = 1.0,
    recovery: Recovery = Recovery(),  # noqa: B008  # frozen
) -> TrainReport:
    """Train ``adapted`` in place for the stage's budget.

    Args:
        rows: encoded rows.
        folder: checkpoints/ and log.jsonl go here; if they are there from a killed run, training goes on exactly where they end.
        held_out: gives bits per byte on held-out text; called at the start, the middle and the end.
        heavy: tokens whose labels count so many times in the gradient; see ``summed_cross_entropy``.
        soft_weight: how many times labels with drawn tokens count.
        recovery: what is learned from rows that the original wrote.

    Raises:
        TrainingError: the loss is not a number (the batch is saved in ``folder``), another of the guards stops it, or the device is full.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        LostProcessError: another process has ended; the state is saved, unless that process has taken a part of it with it.
        MissingExtraError: a tracker's package is not installed.
        OSError: the disk is full; the last good checkpoint is kept.
    """
    world, main = processes.world(), processes.is_main()
    plan = plan_steps(rows, stage, seed=seed)
    optimizer = make_optimizer(adapted, stage, training)
    digest = settings_digest(rows, stage, training, len(plan), seed, recovery)
    state = State(adapted, optimizer, Checkpoints(folder / "checkpoints"), digest=digest)
    own = OwnSamples(adapted, rows, plan, recovery, folder=folder / "own_samples", seed=seed, digest=digest)
    state.resume()
    flops, matrix = Flops(adapted), matrix_flops(adapted.head.rows.compute_dtype) * world
    module = LossModule(adapted, heavy or {}, recovery.logits, soft_weight)
    module.train()
    compiled: Compiled = {}
    if training.compile == "auto" and adapted.device.type != "cpu":
        compiled = compile_what_pays(adapted, module, rows, plan, mirrored=recovery.by != "text", before=state.compiled)
    state.compiled = {what: found["compiled"] for what, found in compiled.items()}
    guards = Guards(adapted, module, training=training, folder=folder, progress=progress, name=label)
    most = plan.most
    if world > most:
        progress.say(f"A step has {most} bins for {world} processes: some have nothing to do. Raise batch_tokens or lower micro_tokens.")
    log_every = training.log_every or max(1, min(_LOG_EVERY, len(plan) // _POINTS))
    saved, interrupts, together = time.monotonic(), Interrupts(), adapted.shares_trained

    def due() -> bool:
        return time.monotonic() - saved > 60 * training.checkpoint_minutes and state.step < len(plan)

    optimizer.zero_grad(set_to_none=True)  # of a step that was interrupted in this process
    held_out_at = {0, len(plan) // 2, len(plan)} if held_out is not None else set()
    # Weights that processes lend each other come and go with a pass, so there can be one pass at a time.
    width = 1 if adapted.sharded else lanes_for(module, bins=math.ceil(most / world))
    trackers = Trackers(training.trackers if main else (), folder=folder, step=state.step)
    with (TrainLog(folder / "log.jsonl" if main else None, step=state.step, trackers=trackers) as log, lanes(width) as run_lanes,
          keeping_freed() if adapted.device.type == "cpu" else contextlib.nullcontext(), interrupts.listen(),
          progress.task(label, stage.tokens, "tokens") as bar):
        bar.advance(state.tokens)
        try:
            while True:
                interrupts.agree()
                if held_out is not None and state.step in held_out_at:  # by all: with shared-out weights none can pass alone
                    with processes.lending():
                        log.write({"step": state.step, "tokens": state.tokens, "held_out_bits_per_byte": _number(held_out(), state.step)})
                    module.train()
                    adapted.take_back()
                if state.step == len(plan):
                    break
                started = time.monotonic()
                bins, rate = plan[state.step], learning_rate(state.step, len(plan), stage)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["rate_factor"]
                batch = batch_of(rows, bins, step=state.step + 1, seed=seed, even=adapted.sharded, device=adapted.device, by=recovery.by,
                                 rewritten=own.at(state.step))
                done = gradients(module, batch.shares, adapted, run_lanes=run_lanes if width > 1 else None, clip=training.clip_gradient)
                leap = guards.before_update(batch, done, state)
                lengths = rows.lengths_of(bins)
                tokens = int(lengths.sum())
                with interrupts.whole():
                    optimizer.step()
                    guards.after_update()
                    optimizer.zero_grad(set_to_none=True)
                    state.advance(done, tokens=tokens, room=len(bins) * stage.micro_tokens, seconds=time.monotonic() - started,
                                  flops=flops.of(lengths, done.labels, shared=done.shared))
                    loss = state.recent.loss
                    if leap is not None:
                        log.write(leap)
                    if state.step % log_every == 0 or state.step == len(plan):
                        log.write(line_of(state, steps=len(plan), rate=rate, norm=done.norm, matrix_flops=matrix))
                bar.advance(tokens, f"loss {loss:.3f}")
                if processes.on_main(due) if together else main and due():
                    with interrupts.whole():
                        state.save()
                    saved = time.monotonic()
        except KeyboardInterrupt as error:
            file = state.save() if together else processes.on_main(state.save)
            where = f"step {state.step} of {len(plan)} of '{label}'"
            raise Interrupted(f"Stopped by {interrupts.name} after {where}, which is saved in {file}.", interrupts.number) from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise TrainingError(
                f"The device has no room for step {state.step + 1} of '{label}' ({first_line(error)}). Lower {label}.micro_tokens (now "
                f"{stage.micro_tokens:,}), set training.gradient_checkpointing to true, or share the model out among devices "
                "(docs/many-processes.md); 'transllm plan' says what each needs. The last checkpoint is kept.") from error
        except LostProcessError:  # between two steps, or before the optimiser saw the gradient: the state is whole
            if main and not together:
                state.save()
            raise
    return TrainReport(
        steps=len(plan), tokens=state.tokens, labels=state.labels, seconds=state.seconds, padding=1 - state.tokens / state.room,
        epochs=state.tokens / rows.tokens, loss=processes.on_main(lambda: last_loss(folder / "log.jsonl")), compiled=compiled)


def _number(bits_per_byte: float, step: int) -> float:
    """A last update that spoils the weights meets no other guard."""
    if not math.isfinite(bits_per_byte):
        raise TrainingError(f"Bits per byte of held-out text are not a number after step {step}: its update spoilt the weights. "
                            "Lower the learning rate.")
    return bits_per_byte
