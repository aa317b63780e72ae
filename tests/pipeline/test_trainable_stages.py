"""The stages hand on whatever trains: from one to the next, into the merged model, and the original can be had beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from transllm import load_recipe
from transllm.model import load_folder, load_merged
from transllm.pipeline.evaluate import load_measured
from transllm.pipeline.merge import merge
from transllm.pipeline.stage import Context
from transllm.pipeline.training_stages import bitext, finetune, pretrain
from transllm.progress import Silent


@pytest.mark.parametrize(("settings", "file", "notices"), [
    (["training.train=full", "training.precision=bfloat16"], "body.safetensors", 1),
    (["training.train=rows"], "rows.safetensors", 0),
    (["training.lora.variant=dora", "training.embeddings=all"], "adapter_model.safetensors", 1)])
def test_the_stages_hand_on_what_trains(finished: Any, home: Any, tmp_path: Path, settings: list[str], file: str, notices: int) -> None:
    budgets = [f"{stage}.tokens=256" for stage in ("pretrain", "bitext", "finetune")]
    recipe = load_recipe(home.recipe, overrides=[*settings, *budgets])
    run = finished.copy(tmp_path, without=("pretrain", "bitext", "finetune", "merge", "evaluate"))
    bodies = []
    for stage in (pretrain, bitext, finetune):
        folder = run / stage.__name__
        folder.mkdir()
        result = stage(Context(recipe, run, folder, Silent()))
        assert 2 <= result.metrics["steps"] <= 3 and len(result.metrics["notices"]) == notices
        assert (folder / file).is_file() and not (folder / "checkpoints").exists()
        bodies.append(load_merged(run / "extend", folder)[0])
    extended, _ = load_folder(run / "extend")
    for before, after in zip([extended, *bodies], bodies, strict=False):
        moved = {name: ((left - right).norm() / right.norm()).item() for (name, left), right in
                 zip(after.named_parameters(), before.parameters(), strict=True)}
        # Each stage goes on from the one before: it is near to it, and further on.
        assert max(moved.values()) < 0.2 and any(moved.values())
        assert all(bool(moved[name]) is (file != "rows.safetensors" or "embed" in name) for name in moved
                   if file != "adapter_model.safetensors" or "norm" not in name)
    (run / "merge").mkdir()
    proof = merge(Context(recipe, run, run / "merge", Silent()))
    assert proof.metrics["kl_to_adapter_model"] <= recipe.merge.max_kl
    ids = torch.arange(3, 40).unsqueeze(0)
    size = Context(recipe, run, run, Silent()).spans.original_size
    with torch.no_grad():
        original = load_measured(run, "original", original_size=size, dtype=torch.float32)(input_ids=ids).logits
        assert torch.equal(original, AutoModelForCausalLM.from_pretrained(home.model)(input_ids=ids).logits)
