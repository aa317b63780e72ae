"""Which start of the new rows is best: bits per byte right after *extend*, without any training, and after the same *pretrain*.

    python benchmarks/initialisation.py benchmarks/initialisation-th.yaml [--inits mean,focus,random] [--set pretrain.tokens=200000]
    python benchmarks/initialisation.py recipes/demo-es.yaml --set extend.vocab_size=1000 --set pretrain.tokens=200000

Any recipe will do; ``--set`` changes model, text files, sizes, tokens and seed as in ``transllm run``. Each method goes through the
stages themselves (*prepare* once, *extend* and *pretrain* for each), with the same text, seed and settings. It can be killed at any time:
the same command goes on with the figures that are in the run folder. Held-out text is the recipe's, or files of its own
(``--held-out-target '{files: F, columns: [text]}'``, likewise ``--held-out-english``; paths from the recipe's folder). ``lexicon`` needs
``--lexicon '{files: F, columns: [0, 1]}'``, English words first. Prints a table, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from transllm import load_recipe, transform
from transllm.data.sources import Side, read_documents
from transllm.evaluation.scoring import held_out_texts, text_bits_per_byte
from transllm.files import write_json
from transllm.model import METHODS, compute_dtype, default_device, enable_packed, place
from transllm.pipeline.evaluate import load_measured
from transllm.pipeline.prepare import read_part
from transllm.pipeline.stage import Context, read_manifest
from transllm.progress import Silent
from transllm.recipe.schema import Recipe, Source

MODELS = {"extend": "start", "pretrain": "trained"}


def texts_of(recipe: Recipe, run: Path, side: Side, held_out: str | None, count: int) -> list[str]:
    """Beginnings of documents that no stage reads: of a source of their own, else the run's held-out part."""
    if held_out is None:
        return held_out_texts(read_part(run, side, "held_out"), count)
    source = Source.model_validate(yaml.safe_load(held_out))
    rows = read_documents([source], side=side, language=recipe.target, folder=recipe.folder)
    return held_out_texts([{"text": row.text, "key": row.key} for row in rows], count)


def bits_per_byte(recipe: Recipe, run: Path, model_name: str, texts: dict[Side, list[str]]) -> dict[str, float]:
    """Of the texts of both languages, each in the vocabulary of its language and after its marker (the original: after its end of turn)."""
    context = Context(recipe, run, run / "extend", Silent())
    spans, end = context.spans, context.renderer.end_id
    device = default_device()
    dtype = compute_dtype(recipe.training.precision, device)
    model = place(load_measured(run, model_name, original_size=spans.original_size, dtype=dtype), device)
    enable_packed(model)
    encode, starts = spans.encode_target_batch, (spans.markers.target, spans.markers.english)
    if model_name == "original":
        encode, starts = spans.encode_english_batch, (end, end)
    return {"target": round(text_bits_per_byte(model, texts["target"], encode=encode, start=starts[0]), 4),
            "english": round(text_bits_per_byte(model, texts["english"], encode=spans.encode_english_batch, start=starts[1]), 4)}


def measured(recipe_file: Path, overrides: Sequence[str], runs: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run the stages for one method, and all its figures."""
    recipe = load_recipe(recipe_file, overrides=overrides)
    run = transform(recipe, runs=runs, until="pretrain").folder
    texts: dict[Side, list[str]] = {"target": texts_of(recipe, run, "target", asked.held_out_target, asked.documents),
                                    "english": texts_of(recipe, run, "english", asked.held_out_english, asked.documents)}
    extend, pretrain = (read_manifest(run / stage) or {} for stage in MODELS)
    figures: dict[str, Any] = {"rows_started": extend["metrics"]["rows_started"][recipe.extend.init],
                               "new_pieces": extend["metrics"]["new_pieces"], "extend_seconds": extend["seconds"],
                               "tokens": pretrain["tokens"], "loss": pretrain["metrics"].get("loss")}
    for model_name, prefix in MODELS.items():
        figures |= {f"{prefix}_{side}": value for side, value in bits_per_byte(recipe, run, model_name, texts).items()}
    # The same for all methods: the old rows are the same rows.
    return figures | {"original": bits_per_byte(recipe, run, "original", texts)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe, as in 'transllm run'")
    parser.add_argument("--inits", default=",".join(name for name in METHODS if name != "lexicon"), help="methods, with commas")
    parser.add_argument("--lexicon", help="for the method 'lexicon': a source of (English, target) words, in YAML")
    parser.add_argument("--held-out-target", help="a source of target-language documents to measure on, in YAML")
    parser.add_argument("--held-out-english", help="a source of English documents to measure on, in YAML")
    parser.add_argument("--documents", type=int, default=100, help="documents a language, of which 1,000 bytes each are scored")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    name = f"{asked.recipe.stem.removeprefix('initialisation-')}-initialisation"
    settings = {"set": asked.set, "lexicon": asked.lexicon, "documents": asked.documents,
                "held_out": [asked.held_out_target, asked.held_out_english], "recipe": asked.recipe.read_text(encoding="utf-8")}
    file = asked.runs / f"{name}.json"  # beside the run folder, which each method makes anew
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found: dict[str, dict[str, Any]] = known["methods"] if known.get("settings") == settings else {}
    chosen = asked.inits.split(",")
    for init in chosen:
        if init not in found:
            own = [f"extend.lexicon={asked.lexicon}"] if init == "lexicon" and asked.lexicon else []
            found[init] = measured(asked.recipe, [*asked.set, f"name={name}", f"extend.init={init}", *own], asked.runs, asked)
            write_json(file, {"settings": settings, "methods": found})
        print(f"{init}: {found[init]}", flush=True)
    one = found[chosen[0]]
    print(f"\n| start | rows | target | English | target after {one['tokens']:,} tokens | English |\n|---|---|---|---|---|---|")
    print(f"| (the original model) | | {one['original']['target']:.3f} | {one['original']['english']:.3f} | | |")
    for init in sorted(chosen, key=lambda name: found[name]["trained_target"]):
        row = found[init]
        print(f"| {init} | {row['rows_started']:,} | " + " | ".join(
            f"{row[key]:.3f}" for key in ("start_target", "start_english", "trained_target", "trained_english")) + " |")
    print(json.dumps({"recipe": str(asked.recipe), "set": asked.set, "documents": asked.documents, "original": one["original"],
                      "methods": {init: {key: value for key, value in found[init].items() if key != "original"} for init in chosen},
                      "best_at_start": min(chosen, key=lambda name: found[name]["start_target"]),
                      "best_trained": min(chosen, key=lambda name: found[name]["trained_target"])}))


if __name__ == "__main__":
    main()
