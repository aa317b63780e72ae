"""Where training stands, in memory and on disk: step, trained tensors, optimiser, random numbers, and what the log has not told yet."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from transllm.model.adapter import Adapted
from transllm.training.checkpoint import Checkpoints
from transllm.training.step import StepDone


class Window:
    """Sums since the last line of the log."""

    def __init__(self, nats: float = 0.0, labels: int = 0, n_bytes: int = 0, tokens: int = 0) -> None:
        self.nats, self.labels, self.n_bytes, self.tokens, self.started = nats, labels, n_bytes, tokens, time.monotonic()

    def add(self, tokens: int, done: StepDone) -> None:
        self.nats += done.nats
        self.labels += done.labels
        self.n_bytes += done.n_bytes
        self.tokens += tokens

    @property
    def loss(self) -> float:
        """Mean nats a label."""
        return self.nats / max(1, self.labels)

    def loss_with(self, done: StepDone) -> float:
        """Mean nats a label, one more step included."""
        return (self.nats + done.nats) / max(1, self.labels + done.labels)


class State:
    """The state of a run of the loop.

    Args:
        digest: of what decides the steps; a checkpoint of another digest is not gone on from.
    """

    def __init__(self, adapted: Adapted, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, *, digest: str) -> None:
        self._adapted, self._optimizer, self._checkpoints, self._digest = adapted, optimizer, checkpoints, digest
        self.step = self.tokens = self.labels = 0
        self.seconds = 0.0
        self.recent = Window()
        self._random = _random_numbers()

    def advance(self, tokens: int, done: StepDone, seconds: float) -> None:
        """A step is done. Random numbers are taken here: an interrupt inside the next step must not save what that has drawn."""
        self.step += 1
        self.tokens += tokens
        self.labels += done.labels
        self.seconds += seconds
        self.recent.add(tokens, done)
        self._random = _random_numbers()

    def take_recent(self) -> Window:
        """The sums since the last call; the next ones start from nothing."""
        recent, self.recent = self.recent, Window()
        return recent

    def save(self, accelerator: Accelerator) -> None:
        """Write a checkpoint."""
        if accelerator.is_main_process:
            self._checkpoints.save(self.step, {
                "digest": self._digest, "tokens": self.tokens, "labels": self.labels, "seconds": self.seconds,
                "trained": self._adapted.state(), "optimizer": self._optimizer.state_dict(), "random": self._random,
                "recent": [self.recent.nats, self.recent.labels, self.recent.n_bytes, self.recent.tokens]})
        accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one of the same digest."""
        saved = self._checkpoints.latest()
        if saved is None or saved["digest"] != self._digest:
            return
        self._adapted.load_state(saved["trained"])
        self._optimizer.load_state_dict(saved["optimizer"])
        _set_random_numbers(saved["random"])
        self._random = saved["random"]
        self.recent = Window(*saved["recent"])
        self.step, self.tokens, self.labels, self.seconds = (saved[name] for name in ("step", "tokens", "labels", "seconds"))


def _random_numbers() -> list[Tensor]:
    """States of the generators that dropout draws from: the processor's and, if there is one, the accelerator's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_random_numbers(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
