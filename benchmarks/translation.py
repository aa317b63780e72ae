"""How well the adapter of a training stage translates sentences that no recipe knows: for choosing settings without the test data.

    python benchmarks/translation.py runs/demo-es bitext [--pairs benchmarks/everyday_en-es.tsv] [--beams 4]

The pairs (written for this project, English first) are plain everyday sentences; never train on them, and never report them as a
result. Prints each translation, and last one line of JSON: bits per byte of the translation given the source (the finer
figure of the two at small budgets), and chrF of translations and the seconds they took, both directions.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from transllm.evaluation.metrics import translation_scores
from transllm.evaluation.scoring import rows_bits_per_byte
from transllm.generation import LocalEngine
from transllm.model import compute_dtype, default_device, enable_packed, load_merged, place
from transllm.pipeline.pair_rows import pair_row
from transllm.pipeline.stage import Context
from transllm.progress import Silent
from transllm.recipe import load_recipe
from transllm.translation import SelfTranslator, TextTranslator
from transllm.translation.translator import Direction


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("stage", choices=("extend", "pretrain", "bitext", "finetune"))
    parser.add_argument("--pairs", type=Path, default=Path(__file__).parent / "everyday_en-es.tsv")
    parser.add_argument("--beams", type=int, default=1, help="translations of a sentence side by side; 1 is greedy")
    asked = parser.parse_args()
    lines = asked.pairs.read_text(encoding="utf-8").splitlines()
    pairs = [dict(zip(("english", "target"), line.split("\t"), strict=True)) for line in lines]
    recipe = load_recipe(asked.run / "recipe.yaml")
    context = Context(recipe, asked.run, asked.run / asked.stage, Silent())
    device = default_device()
    adapter = None if asked.stage == "extend" else asked.run / asked.stage
    model, _ = load_merged(asked.run / "extend", adapter, dtype=compute_dtype(recipe.training.precision, device))
    own_attention = place(model, device).config._attn_implementation
    engine = LocalEngine(model, pad_id=context.spans.pad_id, batch_size=100, vocabulary=context.spans.size)
    figures: dict[str, object] = {"run": str(asked.run), "stage": asked.stage, "pairs": len(pairs), "beams": asked.beams}
    directions: tuple[tuple[Direction, str], ...] = (("target", "english"), ("english", "target"))
    for to, source in directions:
        model.set_attn_implementation(own_attention)
        own = SelfTranslator(engine, context.renderer, repetition_penalty=recipe.evaluate.repetition_penalty, beams=asked.beams)
        begun = time.perf_counter()
        made = TextTranslator(own, protect=False).translate([pair[source] for pair in pairs], to=to, progress=Silent(), label="")
        figures[f"seconds_to_{to}"] = round(time.perf_counter() - begun, 1)
        for pair, one in zip(pairs, made, strict=True):
            print(f"{pair[source]} → {one.text} (reference: {pair[to]})")
        figures[f"chrf_to_{to}"] = round(translation_scores([one.text for one in made], [pair[to] for pair in pairs])["chrf"], 1)
        enable_packed(model)
        rows = [pair_row(context.renderer, pair, to=to, source_loss=False) for pair in pairs]
        figures[f"bits_per_byte_to_{to}"] = round(rows_bits_per_byte(model, rows), 4)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
