"""What recovers the original best: none, its words, its distributions, both, or its opinion of the student's own words.

    python benchmarks/recovery.py recipes/demo-es.yaml --set evaluate.answers=96 [--seeds 1 2 3] [--ifeval FILE [--deal 3]]

For each seed the recipe runs up to *bridge* once; then *finetune* runs for each variant, on the same rows with the same budget in tokens
(without recovery the others fill the budget). Measured: all that *evaluate* measures of a tuned model (KL to the original on its own
held-out English conversations and what of the new language was gained), and, with ``--ifeval ifeval_input_data.jsonl`` (and ``pip install
lm-eval langdetect nltk immutabledict``), IFEval's strict accuracy; with ``--deal 3`` each seed answers another third of the questions, and
three seeds together all. The original answers all. It can be killed at any time; the same command goes on, and so do two commands with
other ``--seeds`` and ``--runs`` beside each other. Prints a table, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifeval import punkt, read_ifeval, strict

from transllm import load_recipe, transform
from transllm.files import write_json
from transllm.generation import LocalEngine, Sampling
from transllm.model import compute_dtype, default_device, place
from transllm.pipeline.evaluate import load_measured, material_of, measure
from transllm.pipeline.stage import Context, read_manifest
from transllm.progress import Silent
from transllm.tcot import Message

VARIANTS = {
    "text": ["recover.by=text"],
    "logits": ["recover.by=logits"],
    "none": ["finetune.recovery=0"],
    "both": ["recover.by=both"],
    "on-policy": ["recover.by=logits", "recover.logits.own_samples=1"],
}
ANSWER_TOKENS = 256
SHOWN = {
    "kl_to_original": "KL to the original", "same_next_token": "same next token", "bits_per_byte_english": "English bits a byte",
         "bits_per_byte_target": "target bits a byte", "chrf_en_target": "chrF into it", "chrf_target_en": "chrF into English",
         "tcot_well_formed": "well formed", "answer_in_target": "in the target", "ifeval_prompts": "IFEval prompts",
         "ifeval_instructions": "IFEval instructions", "training_seconds": "training seconds"}


def measured(context: Context, name: str, questions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures of *evaluate* of one model of a run, and IFEval's."""
    figures = {key: value for key, value in measure(context, name, material_of(context))["metrics"].items() if key in SHOWN}
    if questions:
        figures |= {f"ifeval_{key}": value for key, value in strict(questions, english_answers(context, name, questions)).items()}
    return figures


def english_answers(context: Context, name: str, questions: Sequence[dict[str, Any]]) -> list[str]:
    """What a model answers in English, greedily, after the marker that opens such an answer (the original knows none)."""
    spans, renderer, device = context.spans, context.renderer, default_device()
    dtype = compute_dtype(context.recipe.training.precision, device)
    model = place(load_measured(context.run, name, original_size=spans.original_size, dtype=dtype), device)
    engine = LocalEngine(model, pad_id=0, batch_size=192, vocabulary=spans.original_size)
    opening = [] if name == "original" else [spans.markers.response]
    prompts = [[*renderer.prompt([Message("user", question["prompt"])]), *opening] for question in questions]
    answers = [""] * len(prompts)
    for made in engine.generate(prompts, sampling=Sampling(ANSWER_TOKENS, stop_ids=renderer.stop_ids)):
        answers[made.index] = spans.decode([token for token in made.ids if token not in renderer.stop_ids]).strip()
    return answers


def main() -> None:
    """Run, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe, as in 'transllm run'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=[*VARIANTS])
    parser.add_argument("--ifeval", type=Path, help="IFEval's questions (jsonl)")
    parser.add_argument("--deal", type=int, default=1, metavar="N", help="each seed answers every Nth of them, the next seed the next")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    questions = read_ifeval(asked.ifeval) if asked.ifeval else []
    sentences = punkt([question["prompt"] for question in questions]) if questions else None
    name = f"{asked.recipe.stem}-recovery"
    settings = {"set": asked.set, "ifeval": len(questions), "deal": asked.deal, "recipe": asked.recipe.read_text(encoding="utf-8")}
    file = asked.runs / f"{name}.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found: dict[str, dict[str, float]] = known["figures"] if known.get("settings") == settings else {}
    for seed in asked.seeds:
        for variant in ("original", *asked.variants):
            # The original is the same for all seeds, but the texts that are held out are not.
            key = f"{variant} {seed}"
            if key not in found:
                own = [*asked.set, f"name={name}-{seed}", f"seed={seed}", *VARIANTS.get(variant, [])]
                recipe = load_recipe(asked.recipe, overrides=own)
                run = transform(recipe, runs=asked.runs, until="bridge" if variant == "original" else "finetune").folder
                stage = read_manifest(run / "finetune") or {} if variant != "original" else {}
                dealt = questions[seed % asked.deal:: asked.deal]
                if variant == "original":  # the same for all seeds: asked once
                    dealt = questions if seed == asked.seeds[0] else []
                found[key] = measured(Context(recipe, run, run / "finetune", Silent()),
                                      "original" if variant == "original" else "finetune", dealt)
                found[key] |= {"training_seconds": stage["metrics"]["training_seconds"]} if stage else {}
                write_json(file, {"settings": settings, "figures": found})
            print(f"{key}: {found[key]}", flush=True)
    _show(found, asked.variants, asked.seeds)
    text = [found[f"text {seed}"]["kl_to_original"] for seed in asked.seeds] if "text" in asked.variants else None
    print(json.dumps({
        "recipe": str(asked.recipe), "set": asked.set, "seeds": asked.seeds, "ifeval": len(questions), "deal": asked.deal,
        "punkt": sentences,
        "figures": {variant: {key: _spread([found[f"{variant} {seed}"][key] for seed in asked.seeds if key in found[f"{variant} {seed}"]])
                              for key in found[f"{variant} {asked.seeds[0]}"]} for variant in ("original", *asked.variants)},
        "kl_against_text": {variant: _spread([found[f"{variant} {seed}"]["kl_to_original"] / of_text for seed, of_text in zip(
            asked.seeds, text, strict=True)]) for variant in asked.variants} if text else None}))


def _spread(values: Sequence[float]) -> list[float]:
    """Mean, least, most."""
    return [round(statistics.fmean(values), 4), round(min(values), 4), round(max(values), 4)]


def _show(found: dict[str, dict[str, float]], variants: Sequence[str], seeds: Sequence[int]) -> None:
    keys = [key for key in SHOWN if any(key in row for row in found.values())]
    print(f"\n| recovery | {' | '.join(SHOWN[key] for key in keys)} |\n|---|{'---|' * len(keys)}")
    for variant in ("original", *variants):
        cells = []
        for key in keys:
            values = [found[f"{variant} {seed}"][key] for seed in seeds if key in found[f"{variant} {seed}"]]
            mean, least, most = _spread(values) if values else (0.0, 0.0, 0.0)
            cells.append(f"{mean:.4g} ({least:.4g} to {most:.4g})" if len(values) > 1 else f"{mean:.4g}" if values else "")
        print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
