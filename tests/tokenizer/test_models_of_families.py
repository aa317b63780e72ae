"""Tiny models of three makes with the tokenizers that such models have: the promises of the extension hold from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from transllm.languages import LANGUAGES
from transllm.model import check_sizes, grow, load_folder
from transllm.model.load import save_folder
from transllm.tokenizer import SpanTokenizer, extend_tokenizer, keeps_rule, learn_merges, marker_texts, sub_tokens

_SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4,
                          "num_key_value_heads": 2, "max_position_embeddings": 256}


def _model(kind: str, size: int) -> PreTrainedModel:
    torch.manual_seed(5)
    if kind == "qwen":  # tied, and its matrix is rounded up
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=(size // 64 + 2) * 64, tie_word_embeddings=True, **_SHAPE)).eval()
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, tie_word_embeddings=kind == "gemma", **_SHAPE)).eval()


@pytest.mark.parametrize("code", ["es", "th"])
@pytest.mark.parametrize("kind", ["llama2", "gemma", "unigram", "llama3", "qwen"])
def test_old_rows_stay_and_folders_agree(make_original: Callable[[str], Any], kind: str, code: str, texts: Any, tmp_path: Path) -> None:
    original = make_original(kind)
    target, latin = (texts.thai, False) if code == "th" else (texts.spanish, True)
    kept = keeps_rule(original, _model(kind, 300).config)
    assert kept == (kind != "qwen"), "transformers builds the rule of qwen2 anew in code"
    learned = learn_merges(original, target, texts.english, size=100, min_count=3, latin=latin, whole_words=kept)
    spans = SpanTokenizer(original, extend_tokenizer(original, learned, markers=marker_texts(LANGUAGES[code]), pad=None), LANGUAGES[code])
    model, before = _model(kind, spans.original_size), _model(kind, spans.original_size)
    parts = sub_tokens(original, spans.extended)
    grow(model, size=spans.size, sub_tokens=parts)
    check_sizes(model, spans.extended, where="the test")
    save_folder(model, tmp_path)
    spans.save(tmp_path)
    loaded, tokenizer = load_folder(tmp_path)
    for new, old in ((loaded.get_input_embeddings(), before.get_input_embeddings()),
                     (loaded.get_output_embeddings(), before.get_output_embeddings())):
        assert torch.equal(new.weight[: spans.original_size], old.weight[: spans.original_size])
        for new_id, ids in parts.items():
            mean = old.weight[ids].double().mean(0).to(old.weight.dtype)
            torch.testing.assert_close(new.weight[new_id], mean, rtol=torch.finfo(mean.dtype).eps, atol=1e-8)
    sample = texts.english[:50] + texts.spanish[:50] + texts.thai[:50]
    assert tokenizer(sample)["input_ids"] == spans.extended(sample)["input_ids"]
    ids = torch.tensor([spans.encode_english(texts.english[0])])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits[..., : spans.original_size], before(ids).logits[..., : spans.original_size])
    again = SpanTokenizer.load(tmp_path)
    assert again.encode_target_batch(sample) == spans.encode_target_batch(sample)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "original_tokenizer")) == spans.original_size
