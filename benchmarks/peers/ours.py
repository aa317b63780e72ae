"""transllm's own training: the adapter and the loop of a training stage, as pipeline/training_stages.py calls them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from peers.turns import Turns, asked
from transllm.model import attach, compute_dtype, load_folder, place
from transllm.native import kernels
from transllm.recipe.schema import Training, TrainStage
from transllm.tokenizer import SpanTokenizer
from transllm.training import Rows, train
from transllm.training.schedule import plan_steps

_SEED, _STEPS = 1, 400
"""More steps than any race has: a budget is planned at its start."""


class Paced:
    """Progress whose bar sleeps between turns."""

    def __init__(self, turns: Turns, labels: Iterator[int]) -> None:
        self._turns, self._labels = turns, labels

    def stage(self, name: str) -> None: ...

    def say(self, text: str) -> None: ...

    @contextlib.contextmanager
    def task(self, label: str, total: float, unit: str) -> Iterator[Paced]:
        yield self

    def advance(self, n: float, note: str = "") -> None:
        """The loop's step is done; its first call tells where it goes on, which is at no tokens."""
        if n:
            self._turns.count(int(n), next(self._labels))
            self._turns.step_done()


def time_attention(turns: Turns) -> None:
    """Add up what the compiled kernels' attention takes: of all cores, what its lane has of them."""
    ready = kernels()
    if ready is None or not ready.has_attention:
        return
    cores, lock = torch.get_num_threads(), threading.Lock()

    def timed(compute: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = compute(*arguments, **named)
            with lock:
                turns.attention_seconds += (time.perf_counter() - started) * torch.get_num_threads() / cores
            return result

        return run

    for name in ("attention", "attention_back"):
        setattr(ready, name, timed(getattr(ready, name)))


def labels_of_steps(rows: Rows, stage: TrainStage) -> Iterator[int]:
    """Labels of each optimiser step, from the plan that the loop makes too."""
    for bins in plan_steps(rows, stage, seed=_SEED):
        yield sum(int(rows.trained[rows.offsets[row] + 1: rows.offsets[row + 1]].sum()) for members in bins for row in members)


def main() -> None:
    """Train in turns until the input ends."""
    ask = asked()
    turns = Turns(ask["warm"])
    time_attention(turns)
    folder, rows, device = Path(ask["model"]), Rows.open(Path(ask["rows"])), torch.device(ask["device"])
    training = Training.model_validate({"lora": {**ask["lora"], "dropout": 0.0}, "log_every": 10, "checkpoint_minutes": 1e6,
                                        "precision": ask["settings"]["precision"]})
    stage = TrainStage.model_validate({
        "tokens": _STEPS * ask["batch_tokens"], "batch_tokens": ask["batch_tokens"], "sequence_length": ask["length"],
        "micro_tokens": max(ask["settings"]["micro_tokens"], ask["length"]), "learning_rate": ask["learning_rate"]})
    spans = SpanTokenizer.load(folder)
    model, _ = load_folder(folder)
    rows_of_model = int(model.config.vocab_size)  # the tokenizer's, unless weights are random and there are more
    adapted = attach(place(model, device), original_size=rows_of_model - spans.size + spans.original_size, size=rows_of_model,
                     training=training, dtype=compute_dtype(training.precision, device))
    adapted.quicken()
    with tempfile.TemporaryDirectory(dir=ask["scratch"]) as scratch:
        train(adapted, rows, stage=stage, training=training, folder=Path(scratch), seed=_SEED,
              progress=Paced(turns, labels_of_steps(rows, stage)), label=ask["task"])


if __name__ == "__main__":
    main()
