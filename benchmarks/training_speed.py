"""How fast a training step is, and what each short way adds: three ways of the same steps, in turn, again and again.

    python benchmarks/training_speed.py runs/demo-es/extend [--rounds 5] [--tokens 4096] [--dropout 0.05]

``peft``: peft's layers, the family's norms, one bin after the other. ``short``: our layers, norms and attention. ``lanes``: the same
with the bins of a step side by side. Rows are random ids in documents of 30 to 170 tokens. Prints tokens a second of each
round, and last one line of JSON: medians, and ratios to ``peft`` with their spread over the rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

from transllm.model import Adapted, attach, compute_dtype, default_device, enable_packed, load_folder, place
from transllm.model.lora import LoraLinear
from transllm.progress import Silent
from transllm.recipe.schema import Training, TrainStage
from transllm.tokenizer import SpanTokenizer
from transllm.training import EncodedRow, Rows, loop, train, write_rows
from transllm.training.step import lanes_for


def adapted_model(folder: Path, training: Training, *, short: bool) -> Adapted:
    """The extended model with a fresh adapter, with or without our short ways."""
    device, spans = default_device(), SpanTokenizer.load(folder)
    model, _ = load_folder(folder)
    adapted = attach(place(model, device), original_size=spans.original_size, size=spans.size, training=training,
                     dtype=compute_dtype(training.precision, device))
    if short:
        adapted.quicken()
    else:
        enable_packed(adapted.base)
    return adapted


def made_rows(folder: Path, *, tokens: int, vocabulary: int) -> Rows:
    """Rows of random ids, labels everywhere."""
    draw, rows = random.Random(0), []
    while tokens > 0:
        length = draw.randint(30, 170)
        rows.append(EncodedRow([draw.randrange(vocabulary) for _ in range(length)], [False] + [True] * (length - 1), length * 4))
        tokens -= length
    return write_rows(rows, folder)


def tokens_a_second(adapted: Adapted, rows: Rows, training: Training, *, tokens: int, lanes: bool, short: bool) -> float:
    """Train for the budget."""
    stage = TrainStage.model_validate({"tokens": tokens, "batch_tokens": 1024, "micro_tokens": 512, "sequence_length": 256,
                                       "learning_rate": 1e-4})
    width = lanes_for if lanes else lambda *_, **__: 1
    plain = LoraLinear.plain if short else lambda _: False
    with tempfile.TemporaryDirectory() as folder, patch.object(loop, "lanes_for", width), patch.object(LoraLinear, "plain", plain):
        started = time.monotonic()
        report = train(adapted, rows, stage=stage, training=training, folder=Path(folder), seed=1, progress=Silent(), label="speed")
        return report.tokens / (time.monotonic() - started)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("extend", type=Path, help="the folder that 'extend' wrote")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--dropout", type=float, default=0.0)
    given = arguments.parse_args()
    training = Training.model_validate({"lora": {"r": 16, "alpha": 32, "dropout": given.dropout}})  # the demo's, but for dropout
    models = {short: adapted_model(given.extend, training, short=short) for short in (False, True)}
    ways = {"peft": (False, False), "short": (True, False), "lanes": (True, True)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        rows = made_rows(Path(folder), tokens=given.tokens, vocabulary=models[True].original_size)
        for number in range(given.rounds + 1):
            for name, (short, lanes) in ways.items():
                speed = tokens_a_second(models[short], rows, training, tokens=given.tokens if number else 1024, lanes=lanes, short=short)
                if number:  # the first round pays for generated code and first allocations
                    speeds[name].append(speed)
                    print(f"round {number}  {name:6}  {speed:6.0f} tokens/s", flush=True)
    figures = {"threads": torch.get_num_threads(), "rounds": given.rounds}
    for name, found in speeds.items():
        ratios = sorted(own / base for own, base in zip(found, speeds["peft"], strict=True))
        figures[name] = {"tokens_per_second": round(statistics.median(found)), "to_peft": round(statistics.median(ratios), 2),
                         "spread": [round(ratios[0], 2), round(ratios[-1], 2)]}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
