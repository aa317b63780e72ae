"""How fast the engine in this process writes, with one batch on all cores and with parts of it side by side: in turn, again and again.

    python benchmarks/generation_speed.py runs/demo-es/merge [--rounds 6] [--rows 132] [--tokens 40]

Any model folder will do. Prompts are random ids, decoding is greedy and never stops. Prints tokens a second of each round, prompts
included in the time, and last one line of JSON: medians, and the ratio of the ways with its spread over the rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from unittest.mock import patch

import torch

from transllm.generation import LocalEngine, Sampling, local
from transllm.model import compute_dtype, default_device, load_folder, place


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path, help="a model folder")
    arguments.add_argument("--rounds", type=int, default=6)
    arguments.add_argument("--rows", type=int, default=132)
    arguments.add_argument("--tokens", type=int, default=40)
    given = arguments.parse_args()
    device = default_device()
    model = place(load_folder(given.model)[0], device, compute_dtype("auto", device))
    engine = LocalEngine(model, pad_id=0, batch_size=given.rows)
    ways = {"one": 10**9, "lanes": local._ROWS_A_LANE}
    draw = random.Random(0)
    prompts = [[draw.randrange(1000) for _ in range(40)] for _ in range(given.rows)]
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(given.rounds + 1):
        for name, rows in ways.items():
            started = time.monotonic()
            with patch.object(local, "_ROWS_A_LANE", rows):
                written = sum(len(made.ids) for made in engine.generate(prompts, sampling=Sampling(given.tokens)))
            speed = written / (time.monotonic() - started)
            if number:  # the first round pays for generated code and first allocations
                speeds[name].append(speed)
                print(f"round {number}  {name:6}  {speed:6.0f} tokens/s", flush=True)
    ratios = sorted(lanes / one for lanes, one in zip(speeds["lanes"], speeds["one"], strict=True))
    print(json.dumps({"threads": torch.get_num_threads(), "rounds": given.rounds, "rows": given.rows, "tokens": given.tokens,
                      **{name: {"tokens_per_second": round(statistics.median(found))} for name, found in speeds.items()},
                      "lanes_to_one": round(statistics.median(ratios), 2), "spread": [round(ratios[0], 2), round(ratios[-1], 2)]}))


if __name__ == "__main__":
    main()
