"""The extend stage on models with SentencePiece tokenizers: the same promises as for byte-level ones, and both forms of the tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from transllm.model import load_folder
from transllm.tokenizer import SpanTokenizer


@pytest.mark.parametrize(("kind", "size"), [("llama2", 450), ("unigram", 390)])
def test_extend(home: Any, cli: Any, make_sentencepiece: Callable[..., Any], tmp_path: Path, kind: str, size: int) -> None:
    place = home.at(tmp_path / "home")
    shutil.rmtree(place.model)
    english = [line.split("\t")[0] for line in (place.folder / "pairs.tsv").read_text(encoding="utf-8").splitlines()]
    tokenizer = make_sentencepiece(kind, english, place.model, vocab_size=size)
    torch.manual_seed(0)
    rows = -(-len(tokenizer) // 64) * 64  # a padded matrix
    LlamaForCausalLM(LlamaConfig(
        vocab_size=rows, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=kind == "unigram")).save_pretrained(place.model)

    done = cli("run", place.recipe, "--runs", tmp_path / "runs", "--until", "extend")
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "tiny" / "extend"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    counts, metrics = manifest["counts"]["pieces"], manifest["metrics"]
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    assert metrics["english_identical"]["identical"] == metrics["english_identical"]["sentences"] > 0
    assert metrics["fertility"]["target"]["after"]["tokens"] < 0.9 * metrics["fertility"]["target"]["before"]["tokens"]

    spans = SpanTokenizer.load(folder)
    assert spans.size == metrics["vocabulary"] == len(tokenizer) + counts["kept"] + 4
    model, loaded = load_folder(folder)
    before = AutoModelForCausalLM.from_pretrained(place.model)
    for new, old in zip((model.get_input_embeddings(), model.get_output_embeddings()),
                        (before.get_input_embeddings(), before.get_output_embeddings()), strict=True):
        assert torch.equal(new.weight[: len(tokenizer)], old.weight[: len(tokenizer)])
        assert new.weight.shape[0] == max(rows, spans.size)
    assert loaded("El corazón de la mañana")["input_ids"] == spans.extended("El corazón de la mañana")["input_ids"]

    slow = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert slow.get_piece_size() == spans.size
    spanish = [line.split("\t")[1] for line in (place.folder / "pairs.tsv").read_text(encoding="utf-8").splitlines()]
    assert slow.encode(english + spanish) == spans.encode_target_batch(english + spanish)
