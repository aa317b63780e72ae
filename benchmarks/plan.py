"""What ``plan`` predicts against what runs then measure, on three recipes that differ in model, batch and length.

    python benchmarks/plan.py [--out runs/plan] [--only NAME ...] [--set KEY=VALUE ...]

``demo``: recipes/demo-es.yaml with small budgets. ``wide``: the same model with longer micro batches and a larger adapter. ``llama``: a
Llama with an untied head and random weights, made here. Each is planned, then run at once, so that both meet the machine as it is, each
in a process of its own.
Prints each stage's figures, and last one line of JSON: by recipe the error (measured / predicted - 1) of the training stages' time,
of peak memory in training, and of disk; steps and tokens beside them, planned and measured; and the worst of each.

Runs end before *evaluate*, whose time is a range. On a machine that is shared, seconds of the processor say more than those of the clock:
with ``--clock cpu`` the calibration counts them, and the stages' own are what it is held against.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from transllm import load_recipe, transform
from transllm.model import load_chat_model, place
from transllm.model.load import save_folder
from transllm.pipeline import run as run_module
from transllm.pipeline.plan import Plan, plan
from transllm.pipeline.stage import Context, Stage, execute
from transllm.recipe.schema import Recipe

DEMO = Path(__file__).parents[1] / "recipes" / "demo-es.yaml"
TRAINED = ("pretrain", "bitext", "finetune")
UNTIL = {"llama": "bitext"}  # random weights answer nothing that a chain could be made of
SMALL = ("recover.count=64", "bridge.count=48", "evaluate.documents=20", "evaluate.answers=4", "evaluate.sentences=8",
         "evaluate.query_count=4", "evaluate.max_new_tokens=64", "recover.max_new_tokens=24", "recover.prompts=[seed]")
CHANGES: Mapping[str, tuple[str, ...]] = {
    "demo": ("pretrain.tokens=8192", "bitext.tokens=16384", "finetune.tokens=8192"),
    "wide": ("training.lora.r=64", "pretrain.tokens=8192", "pretrain.batch_tokens=2048", "pretrain.micro_tokens=1024",
             "bitext.tokens=16384", "bitext.micro_tokens=1024", "bitext.batch_tokens=4096", "bitext.source_loss=true",
             "finetune.tokens=8192", "finetune.batch_tokens=2048", "finetune.micro_tokens=1024"),
    "llama": ("pretrain.tokens=32768", "bitext.tokens=65536", "extend.vocab_size=500"),
}


def in_a_process(work: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """Call in a fresh process: what earlier work left in this one would be counted as memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given, **options).result()


def other_model(recipe: Recipe, folder: Path) -> None:
    """A Llama of 55 million random weights with an untied head, and the demo's tokenizer."""
    tokenizer = load_chat_model(recipe.model, folder=recipe.folder).tokenizer
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2))
    save_folder(place(model, model.device, torch.bfloat16), folder)
    tokenizer.save_pretrained(folder)


def measured(recipe: Recipe, runs: Path, *, until: str) -> dict[str, dict[str, float]]:
    """Run the recipe; by stage its seconds on the clock and on the processor, memory, disk, steps and tokens."""
    cpu: dict[str, float] = {}

    def timed(stage: Stage, context: Context, **options: Any) -> dict[str, Any]:
        start = time.process_time()
        manifest = execute(stage, context, **options)
        cpu[stage.name] = time.process_time() - start
        return manifest

    with patch.object(run_module, "execute", timed):
        run = transform(recipe, runs=runs, until=until)
    found = {}
    for file in sorted(run.folder.glob("*/manifest.json")):
        manifest = json.loads(file.read_text(encoding="utf-8"))
        size = sum(part.stat().st_size for part in file.parent.rglob("*") if part.is_file())
        found[file.parent.name] = {
            "clock": manifest["seconds"], "cpu": cpu[file.parent.name], "memory_gib": manifest["peak_memory_gib"], "disk_gib": size / 2**30,
            "steps": manifest["metrics"].get("steps", 0), "tokens": manifest["tokens"]}
    return found


def compared(made: Plan, found: Mapping[str, Mapping[str, float]], *, clock: str) -> dict[str, Any]:
    """Print both, stage by stage; gives the errors."""
    print(f"{'stage':9} {'seconds':>15} {'measured':>9}   {'GiB':>5} {'measured':>9}   {'disk':>6} {'measured':>9}   steps, tokens")
    for stage in made.stages:
        if stage.name not in found:
            continue
        own = found[stage.name]
        low, high = stage.seconds
        print(f"{stage.name:9} {f'{low:.1f} to {high:.1f}':>15} {own[clock]:9.1f}   {stage.memory_gib:5.2f} {own['memory_gib']:9.2f}   "
              f"{stage.disk_gib:6.3f} {own['disk_gib']:9.3f}   "
              + (f"{stage.steps} / {own['steps']}, {stage.tokens} / {own['tokens']}" if stage.steps else ""), flush=True)
    plans = {stage.name: stage for stage in made.stages}
    trained = [(plans[name], found[name]) for name in TRAINED if name in found]
    planned_disk = sum(stage.disk_gib for name, stage in plans.items() if name in found)
    return {
        "time_error": sum(own[clock] for _, own in trained) / sum(stage.seconds[0] for stage, _ in trained) - 1,
        "memory_error": max(own["memory_gib"] for _, own in trained) / max(stage.memory_gib for stage, _ in trained) - 1,
        "disk_error": sum(own["disk_gib"] for name, own in found.items() if name != "prepare") / planned_disk - 1,
        "steps": [[stage.steps, int(own["steps"])] for stage, own in trained],
        "tokens": [[stage.tokens, int(own["tokens"])] for stage, own in trained]}


def main() -> None:
    """Plan, run, compare; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/plan"))
    parser.add_argument("--only", nargs="*", choices=list(CHANGES), default=list(CHANGES))
    parser.add_argument("--clock", choices=["clock", "cpu"], default="clock", help="what calibration and stages are timed with")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of all three recipes: training.precision=float32")
    given = parser.parse_args()
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "timed_with": given.clock}
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    for name in given.only:
        shutil.rmtree(given.out / name, ignore_errors=True)
        recipe = load_recipe(DEMO, overrides=[f"name={name}", *SMALL, *CHANGES[name], *given.set])
        if name == "llama":
            other_model(recipe, (given.out / "model").resolve())
            recipe = load_recipe(DEMO, overrides=[f"name={name}", *SMALL, *CHANGES[name], *given.set, "model.file=null",
                                                  f"model.source={(given.out / 'model').resolve()}"])
        made = in_a_process(plan, recipe, clock=clock)
        print(f"\n{name}: " + "\n".join(made.assumptions[1:]), flush=True)
        found = in_a_process(measured, recipe, given.out, until=UNTIL.get(name, "merge"))
        figures[name] = compared(made, found, clock=given.clock)
    for kind in ("time_error", "memory_error", "disk_error"):
        figures[f"worst_{kind}"] = max((figures[name][kind] for name in given.only), key=abs)
    print(json.dumps(figures, default=float))


if __name__ == "__main__":
    main()
