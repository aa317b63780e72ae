"""How well the adapter of a training stage translates sentences that no recipe knows: for choosing settings without the test data.

    python benchmarks/translation.py runs/demo-es bitext [--pairs benchmarks/everyday_en-es.tsv] [--beams 4]
    python benchmarks/translation.py runs/demo-es finetune --asked --queries benchmarks/queries-es.txt

The pairs (written for this project, English first) are plain everyday sentences, the queries what users ask; never train on them, and never
report them as a result. Prints each translation, and last one line of JSON: bits per byte of the translation given the source (the finer
figure of the two at small budgets), and chrF of translations and the seconds they took, both directions. ``--asked`` gives the same for
requests in the chat template, greedily, which the model may answer in any form (chat, which knows these words, continues a pair);
``--queries`` the share of well-formed chains and of answers in the target language, unguided and guided, as *evaluate* measures them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from transllm.evaluation.metrics import translation_scores
from transllm.evaluation.scoring import rows_bits_per_byte
from transllm.generation import LocalEngine, Sampling
from transllm.model import compute_dtype, default_device, enable_packed, load_merged, place
from transllm.pipeline.evaluate import converse
from transllm.pipeline.instructions import to_english, to_target
from transllm.pipeline.pair_rows import pair_row
from transllm.pipeline.stage import Context
from transllm.progress import Silent
from transllm.recipe import load_recipe
from transllm.tcot import parse
from transllm.training import EncodedRow
from transllm.translation import SelfTranslator, TextTranslator
from transllm.translation.translator import Direction

LONGEST = 160


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("stage", choices=("extend", "pretrain", "bitext", "finetune"))
    parser.add_argument("--pairs", type=Path, default=Path(__file__).parent / "everyday_en-es.tsv")
    parser.add_argument("--beams", type=int, default=1, help="translations of a sentence side by side; 1 is greedy")
    parser.add_argument("--asked", action="store_true", help="also by requests in the chat template")
    parser.add_argument("--queries", type=Path, help="a file of queries in the target language, to be answered by chains")
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

    def score(name: str, to: Direction, source: str, made: Sequence[str], rows: Sequence[EncodedRow], seconds: float) -> None:
        figures[f"seconds_{name}_{to}"] = round(seconds, 1)
        for pair, text in zip(pairs, made, strict=True):
            print(f"{pair[source]} → {text} (reference: {pair[to]})")
        figures[f"chrf_{name}_{to}"] = round(translation_scores(list(made), [pair[to] for pair in pairs])["chrf"], 1)
        enable_packed(model)
        figures[f"bits_per_byte_{name}_{to}"] = round(rows_bits_per_byte(model, rows), 4)
        model.set_attn_implementation(own_attention)

    directions: tuple[tuple[Direction, str], ...] = (("target", "english"), ("english", "target"))
    for to, source in directions:
        own = SelfTranslator(engine, context.renderer, repetition_penalty=recipe.evaluate.repetition_penalty, beams=asked.beams)
        begun = time.perf_counter()
        made = TextTranslator(own, protect=False).translate([pair[source] for pair in pairs], to=to, progress=Silent(), label="")
        score("to", to, source, [one.text for one in made], [pair_row(context.renderer, pair, to=to, source_loss=False) for pair in pairs],
              time.perf_counter() - begun)
        if asked.asked:
            begun = time.perf_counter()
            texts, rows = _requested(context, engine, pairs, to=to, source=source)
            score("asked_to", to, source, texts, rows, time.perf_counter() - begun)
    if asked.queries is not None:
        chains, more = converse(context, engine, asked.queries.read_text(encoding="utf-8").splitlines(), original=False)
        for chain in chains:
            steps = (chain[step] for step in ("query", "query_en", "answer_en", "answer"))
            print(f"{' → '.join(steps)} ({chain['problem'] or 'well-formed'})")
        figures |= {key: more[key] for key in ("tcot_well_formed", "answer_in_target")}
    print(json.dumps(figures))


def _requested(context: Context, engine: LocalEngine, pairs: Sequence[dict[str, str]], *, to: Direction,
               source: str) -> tuple[list[str], list[EncodedRow]]:
    """What the model answers to requests, in whatever form, greedily; and the requests with the reference for an answer."""
    renderer, language = context.renderer, context.recipe.target
    requests = [(to_target if to == "target" else to_english)(pair[source], language) for pair in pairs]
    sampling = Sampling(LONGEST, stop_ids=renderer.stop_ids, guide=renderer.guide(LONGEST, form="any"), fresh_ids=renderer.fresh_ids,
                        repetition_penalty=context.recipe.evaluate.repetition_penalty)
    made = {one.index: one.ids for one in engine.generate([renderer.prompt([request]) for request in requests], sampling=sampling)}
    chains = [parse(made[number], markers=context.spans.markers, stop_ids=renderer.stop_ids) for number in range(len(pairs))]
    rows = [EncodedRow(*renderer.row([request], renderer.translation(pair[to], to=to)), len(pair[to].encode()))
            for request, pair in zip(requests, pairs, strict=True)]
    return [context.spans.decode(chain.answer).strip() for chain in chains], rows


if __name__ == "__main__":
    main()
