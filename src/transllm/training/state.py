"""Where training stands, in memory and on disk: step, trained tensors, optimiser, and what the log has not told yet."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

import torch

from transllm import processes
from transllm.errors import RunError
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
        divergence, mirrored, shared: see ``StepDone``.
    """

    def __init__(self, nats: float = 0.0, labels: int = 0, n_bytes: int = 0, tokens: int = 0, seconds: float = 0.0,
                 flops: float = 0.0, divergence: float = 0.0, mirrored: int = 0, shared: int = 0) -> None:
        self.nats, self.labels, self.n_bytes, self.tokens, self.seconds, self.flops = nats, labels, n_bytes, tokens, seconds, flops
        self.divergence, self.mirrored, self.shared = divergence, mirrored, shared

    def add(self, done: StepDone, tokens: int, seconds: float, flops: float) -> None:
        self.nats += done.nats
        self.labels += done.labels
        self.n_bytes += done.n_bytes
        self.tokens += tokens
        self.seconds += seconds
        self.flops += flops
        self.divergence += done.divergence
        self.mirrored += done.mirrored
        self.shared += done.shared

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
        compiled: what is compiled and what was found not to pay; it stays so, since compiled code rounds otherwise.

    Args:
        digest: of what decides the steps; a checkpoint of another digest is not gone on from.
    """

    def __init__(self, adapted: Adapted, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, *, digest: str) -> None:
        self._adapted, self._optimizer, self._checkpoints, self._digest = adapted, optimizer, checkpoints, digest
        self.step = self.tokens = self.labels = self.room = 0
        self.seconds = 0.0
        self.recent = Window()
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.compiled: dict[str, bool] = {}

    def advance(self, done: StepDone, *, tokens: int, room: int, seconds: float, flops: float) -> None:
        """A step is done."""
        self.step += 1
        self.tokens += tokens
        self.room += room
        self.labels += done.labels
        self.seconds += seconds
        self.recent.add(done, tokens, seconds, flops)
        self.losses.append(done.loss)

    def take_recent(self) -> Window:
        """The sums since the last call; the next ones start from nothing."""
        recent, self.recent = self.recent, Window()
        return recent

    def save(self) -> Path:
        """Write a checkpoint; gives its file. Called by the main process alone, which holds all of the state; where processes share what
        trains, by all.
        """
        recent, optimizer = self.recent, self._optimizer.state_dict()
        optimizer["state"] = {number: {name: processes.whole(value) for name, value in values.items()}
                              for number, values in optimizer["state"].items()}
        state = {
            "digest": self._digest, "tokens": self.tokens, "labels": self.labels, "room": self.room, "seconds": self.seconds,
            "trained": self._adapted.state(), "optimizer": optimizer, "losses": list(self.losses), "compiled": self.compiled,
            "recent": [recent.nats, recent.labels, recent.n_bytes, recent.tokens, recent.seconds, recent.flops,
                       recent.divergence, recent.mirrored, recent.shared]}

        def write() -> Path:
            return self._checkpoints.save(self.step, state)

        return processes.on_main(write) if self._adapted.shares_trained else write()

    def resume(self) -> None:
        """Go on from the newest checkpoint, with any number of processes; one of other rows or settings is named and left alone.

        Raises:
            RunError: this process sees another checkpoint than the main one.
        """
        self._load()
        step = processes.on_main(lambda: self.step)
        if step != self.step:
            raise RunError(f"Process {processes.rank()} sees the checkpoint of step {self.step}, the main process that of step {step}. "
                           "The run folder must be one folder on a file system that all nodes share.")
        # A fresh adapter starts at random. What processes share out began as one model that each has read.
        processes.copy_main([parameter for parameter in self._adapted.trainable().values() if not processes.is_shared(parameter)])

    def _load(self) -> None:
        # A process that takes a part need not hold the whole.
        saved = self._checkpoints.latest(mapped=self._adapted.shares_trained)
        if saved is None:
            return
        if saved["digest"] != self._digest:
            log.warning("The checkpoint of step %d was made with other rows or settings (of the recipe, or a newer transllm); "
                        "training begins anew.", saved["step"])
            return
        self._adapted.load_state(saved["trained"])
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        for number, values in saved["optimizer"]["state"].items():  # a state without dimensions is the step
            values |= {name: processes.parted(value, like=parameters[number]) for name, value in values.items() if value.ndim}
        self._optimizer.load_state_dict(saved["optimizer"])
        self.recent = Window(*saved["recent"])
        self.losses.extend(saved["losses"])
        compiled = saved.get("compiled")
        self.compiled = compiled if isinstance(compiled, dict) else {}  # an earlier version asked one question
        self.step, self.tokens, self.labels, self.room, self.seconds = (
            saved[name] for name in ("step", "tokens", "labels", "room", "seconds"))
