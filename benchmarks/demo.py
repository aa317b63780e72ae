"""The figures of a finished run that the run itself does not measure, and all of them against what we set out to reach.

    python benchmarks/demo.py runs/demo-es --recipe recipes/demo-es.yaml [--english DIR]

Two proofs are added to metrics.json's figures: English sentences outside the recipe's text tokenise as before (from the development data
beside the repository, ``--english``; left out with a word where it is not there), and the trained model with its adapter off gives the
logits of the chat model, loaded afresh from its source, bit for bit. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from transllm import load_recipe
from transllm.evaluation.metrics import Metrics
from transllm.model import Documents, attach, load_chat_model, load_folder
from transllm.tcot import Message, Renderer
from transllm.tokenizer import SpanTokenizer, compare

SENTENCES = 10_000
_CUT = re.compile(r"(?<=[.!?])\s+|\n+")


def english_texts(folder: Path) -> Iterator[str]:
    """Real English that no recipe and no filter reads, and that nobody read while the rule that protects English was chosen."""
    def lines(path: str) -> Iterator[dict[str, Any]]:
        for line in (folder / path).read_text(encoding="utf-8").splitlines():
            yield json.loads(line)

    for row in lines("bench/mt_bench_question_en.jsonl"):
        yield from row["turns"]
    for path in ("bench/ifeval_input_data.jsonl", "bench/IFBench_test.jsonl", "safety/do_not_answer.jsonl"):
        yield from (row["prompt"] for row in lines(path))
    for row in lines("prompts/self_instruct_seed_tasks.jsonl"):
        for instance in row["instances"]:
            yield f"{row['instruction']}\n{instance['input']}\n{instance['output']}"
    for path, column in [("bench/mgsm_en.tsv", 0), ("parallel/talpco_en-ind.tsv", 1),
                         *((f"bench/tatoeba_en-{code}.tsv", 0) for code in ("cat", "ind", "por", "tha", "tur", "vie"))]:
        with (folder / path).open(encoding="utf-8", newline="") as file:
            yield from (row[column] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in json.loads((folder / "prompts" / "alpaca_2k_distilled_llama2_7b_chat.json").read_text(encoding="utf-8")):
        yield f"{row['instruction']}\n{row['input']}\n{row['output']}"


def english_sentences(folder: Path) -> Iterator[str]:
    """Their sentences, one by one."""
    for text in english_texts(folder):
        yield from _CUT.split(text)


def tokenises_as_before(spans: SpanTokenizer, folder: Path) -> dict[str, Any]:
    """Share of sentences that original and extended tokenizer cut alike."""
    sentences = sorted({sentence.strip() for sentence in english_sentences(folder) if len(sentence.split()) >= 4})
    random.Random(0).shuffle(sentences)
    found = compare(spans.original, spans.extended, sentences[:SENTENCES])
    for difference in found.differences[:5]:
        print(f"  differs: {difference['text'][:90]}")
    return {"english_sentences": found.sentences, "english_identical": found.identical / found.sentences}


def is_the_original(run: Path, recipe_file: Path) -> bool:
    """Whether adapter off + original vocabulary gives the chat model's own logits, bit for bit, in the stored precision."""
    recipe = load_recipe(recipe_file)
    loaded = load_chat_model(recipe.model, folder=recipe.folder)
    spans = SpanTokenizer.load(run / "extend")
    model, _ = load_folder(run / "extend")
    adapted = attach(model, original_size=spans.original_size, size=spans.size, training=recipe.training, dtype=loaded.model.dtype)
    adapted.load(run / "finetune")
    adapted.quicken()  # as training leaves it: joined layers, norms of our own
    ids = torch.tensor([Renderer(spans).prompt([Message("user", "Why is the sky blue, and what colour is it on Mars?")])])
    with torch.no_grad():
        expected = loaded.model(input_ids=ids).logits
        trained = adapted.logits(ids, Documents([ids.shape[1]]))
        adapted.base.set_attn_implementation(loaded.model.config._attn_implementation)  # the same kernel on both sides
        with adapted.original():
            found = adapted.base(input_ids=ids).logits
    if torch.equal(trained[..., : spans.original_size], expected):
        raise SystemExit("The adapter changes nothing: this check would prove nothing.")
    return torch.equal(found, expected)


def main() -> None:
    """Print the figures; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--english", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    metrics = Metrics.read(options.run / "metrics.json")
    stages: dict[str, dict[str, Any]] = {name: stage.to_dict() for name, stage in metrics.stages.items()}
    first, last = stages["original"], stages["merge"]
    figures: dict[str, Any] = {
        "chrf_en_target_gain": last["chrf_en_target"] - first["chrf_en_target"],
        "chrf_target_en_gain": last["chrf_target_en"] - first["chrf_target_en"],
        "bits_per_byte_target_change": last["bits_per_byte_target"] / first["bits_per_byte_target"] - 1,
        "tcot_well_formed": last["tcot_well_formed"], "answer_in_target": last["answer_in_target"],
        "kl_after_bitext": stages["bitext"]["kl_to_original"], "kl_after_finetune": stages["finetune"]["kl_to_original"],
        "original_bit_for_bit": is_the_original(options.run, options.recipe)}
    if options.english.is_dir():
        figures |= tokenises_as_before(SpanTokenizer.load(options.run / "extend"), options.english)
    else:
        print(f"There is no '{options.english}': the check of English sentences is left out. Give a folder with --english.")
    manifests = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(options.run.glob("*/manifest.json"))]
    figures |= {"minutes": sum(manifest["seconds"] for manifest in manifests) / 60,
                "peak_memory_gib": max(manifest["peak_memory_gib"] for manifest in manifests)}
    print(f"Pairs: {metrics.settings.get('test_pairs')}, {metrics.settings.get('sentences')} sentences")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
