"""Where training stands, in memory and on disk: step, trained tensors, optimiser, random numbers, and what the log has not told yet."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from transllm.model.adapter import Adapted
from transllm.training.checkpoint import Checkpoints
from transllm.training.step import StepDone

log = logging.getLogger(__name__)

WINDOW = 128  # losses that the watch for spikes looks back on


class Window:
    """Sums since the last line of the log.

    Attributes:
        nats, labels, n_bytes, tokens: see ``StepDone``.
        seconds: in steps; held-out text and checkpoints are not in it.
        flops: see ``Flops``.
    """

    def __init__(self, nats: float = 0.0, labels: int = 0, n_bytes: int = 0, tokens: int = 0, seconds: float = 0.0,
                 flops: float = 0.0) -> None:
        self.nats, self.labels, self.n_bytes, self.tokens, self.seconds, self.flops = nats, labels, n_bytes, tokens, seconds, flops

    def add(self, done: StepDone, tokens: int, seconds: float, flops: float) -> None:
        self.nats += done.nats
        self.labels += done.labels
        self.n_bytes += done.n_bytes
        self.tokens += tokens
        self.seconds += seconds
        self.flops += flops

    @property
    def loss(self) -> float:
        """Mean nats a label."""
        return self.nats / max(1, self.labels)


class State:
    """The state of a run of the loop.

    Attributes:
        step, tokens, labels, seconds: done so far, over all sittings.
        room: tokens for which the bins so far had room.
        recent: sums for the next line of the log.
        losses: mean loss of each of the last steps.
        random: random numbers as they were before the step that comes next.

    Args:
        digest: of what decides the steps; a checkpoint of another digest is not gone on from.
    """

    def __init__(self, adapted: Adapted, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, *, digest: str) -> None:
        self._adapted, self._optimizer, self._checkpoints, self._digest = adapted, optimizer, checkpoints, digest
        self.step = self.tokens = self.labels = self.room = 0
        self.seconds = 0.0
        self.recent = Window()
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.random = random_numbers()

    def advance(self, done: StepDone, *, tokens: int, room: int, seconds: float, flops: float) -> None:
        """A step is done. Random numbers are taken here: an interrupt inside the next step must not save what that has drawn."""
        self.step += 1
        self.tokens += tokens
        self.room += room
        self.labels += done.labels
        self.seconds += seconds
        self.recent.add(done, tokens, seconds, flops)
        self.losses.append(done.loss)
        self.random = random_numbers()

    def take_recent(self) -> Window:
        """The sums since the last call; the next ones start from nothing."""
        recent, self.recent = self.recent, Window()
        return recent

    def save(self, accelerator: Accelerator) -> Path | None:
        """Write a checkpoint; gives its file in the process that wrote it."""
        file = None
        if accelerator.is_main_process:
            recent = self.recent
            file = self._checkpoints.save(self.step, {
                "digest": self._digest, "tokens": self.tokens, "labels": self.labels, "room": self.room, "seconds": self.seconds,
                "trained": self._adapted.state(), "optimizer": self._optimizer.state_dict(), "random": self.random,
                "losses": list(self.losses),
                "recent": [recent.nats, recent.labels, recent.n_bytes, recent.tokens, recent.seconds, recent.flops]})
        accelerator.wait_for_everyone()
        return file

    def resume(self) -> None:
        """Go on from the newest checkpoint; one of other rows or settings is named and left alone."""
        saved = self._checkpoints.latest()
        if saved is None:
            return
        if saved["digest"] != self._digest:
            log.warning("The checkpoint of step %d was made with other rows or settings (of the recipe, or a newer transllm); "
                        "training begins anew.", saved["step"])
            return
        self._adapted.load_state(saved["trained"])
        self._optimizer.load_state_dict(saved["optimizer"])
        set_random_numbers(saved["random"])
        self.random = saved["random"]
        self.recent = Window(*saved["recent"])
        self.losses.extend(saved["losses"])
        self.step, self.tokens, self.labels, self.room, self.seconds = (
            saved[name] for name in ("step", "tokens", "labels", "room", "seconds"))


def random_numbers() -> list[Tensor]:
    """States of the generators that dropout draws from: the processor's and, if there is one, the accelerator's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def set_random_numbers(states: Sequence[Tensor]) -> None:
    """Put such states back."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
