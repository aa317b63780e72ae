"""What each process of ``test_many_processes.py`` runs: trainings of a tiny model, one after the other.

The argument is a JSON file: a list of trainings, each with ``folder`` (its results go there), ``model``, ``rows`` and settings. It is
started by torchrun; with a number as second argument it forks so many processes itself, which saves their imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed.fsdp  # what is imported before the fork is imported once

from transllm import processes
from transllm.errors import Ended, TrainingError
from transllm.model import Adapted, Sharing, attach, load_folder, shard
from transllm.progress import Silent
from transllm.recipe.schema import Lora, Training, TrainStage
from transllm.training import Interrupted, Rows, loop, train


class _Deed(Silent):
    """Progress that does something to this process at the end of a step."""

    def __init__(self, work: dict[str, Any]) -> None:
        self._left, self._work = work.get("at", -1) + 1, work  # the bar is advanced once before the first step

    def advance(self, n: float, note: str = "") -> None:
        self._left -= 1
        if self._left == 0 and processes.rank() == self._work.get("rank"):
            os.kill(os.getpid(), signal.Signals[self._work["signal"]])
        time.sleep(self._work.get("slow", 0.0))

    @contextlib.contextmanager
    def task(self, label: str, total: float, unit: str) -> Iterator[_Deed]:
        yield self


def run(work: dict[str, Any]) -> None:
    folder = Path(work["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3 if processes.is_main() else 4)  # the others' fresh adapters are other ones, as in life
    training = Training(train=work.get("train", "lora"), lora=Lora(r=4, alpha=8, dropout=work.get("dropout", 0.0)), log_every=1,
                        clip_gradient=0.5, checkpoint_minutes=1e-9 if work.get("saves") and processes.is_main() else 1e9, trackers=[],
                        gradient_checkpointing=work.get("gradient_checkpointing", False))
    model, _ = load_folder(Path(work["model"]))
    if work.get("gain"):  # a weight that not every process can have a part of
        layer = model.get_decoder().layers[0]
        layer.register_parameter("gain", torch.nn.Parameter(torch.ones(1)))
        layer.register_forward_hook(lambda module, inputs, output: output * module.gain)
    adapted = attach(model, original_size=work["original_size"], size=work["size"], training=training,
                     dtype=getattr(torch, work.get("dtype", "float32")))
    if work.get("shard"):
        shard(adapted, torch.device("cpu"), Sharing(again=work.get("again", True)))
    if training.gradient_checkpointing:
        adapted.base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    ways = adapted.quicken()
    if work.get("killed") == processes.rank():
        calls = iter(range(10**6))
        adapted.base.get_decoder().layers[1].register_forward_pre_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if adapted.peft.training and next(calls) == 5 else None)
    if work.get("spoilt") == processes.rank():
        adapted.base.get_decoder().register_forward_hook(_spoil)
    moments: list[int] = []
    made = loop.make_optimizer

    def watched(*arguments: Any) -> torch.optim.AdamW:
        optimizer = made(*arguments)
        optimizer.register_step_post_hook(lambda *_: moments.__setitem__(slice(None), [
            processes.part(values["exp_avg"]).numel() for values in optimizer.state.values()]))
        return optimizer

    with contextlib.suppress(Interrupted, TrainingError, Ended), mock.patch.object(loop, "make_optimizer", watched):
        train(adapted, Rows.open(Path(work["rows"])), stage=stage_of(work), training=training, folder=folder, seed=5, progress=_Deed(work),
              label="test", held_out=lambda: float(adapted.peft.training))
    torch.save({"trained": adapted.state(), "ways": ways, "kept": _numbers(adapted), "moments": sum(moments)},
               folder / f"state-{processes.rank()}.pt")


def stage_of(work: dict[str, Any]) -> TrainStage:
    return TrainStage.model_validate({"tokens": 768, "batch_tokens": 192, "micro_tokens": 64, "sequence_length": 32, "learning_rate": 0.02,
                                      "warmup": 0.2, **work.get("stage", {})})


def _spoil(module: Any, inputs: Any, output: Any) -> None:
    """Let the gradient of a bin not be a number."""
    hidden = output.last_hidden_state
    if hidden.requires_grad and hidden.shape[1] > 32:  # a pass for company is one token, rounded up
        hidden.register_hook(lambda gradient: gradient * torch.nan)


def _numbers(adapted: Adapted) -> int:
    """How many numbers of the layers this process holds, without an adapter's."""
    return sum(processes.part(parameter).numel() for name, parameter in adapted.base.named_parameters()
               if ".layers." in name and "lora" not in name)


def _fork(count: int) -> None:
    """Become several processes; the first one waits and gives their exit codes as its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return
        children.append(child)
    sys.exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        _fork(int(sys.argv[2]))
    with processes.joined():
        for work in json.loads(Path(sys.argv[1]).read_text()):
            run(work)


if __name__ == "__main__":
    main()
