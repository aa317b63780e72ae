"""The models that a run writes load without TransLLM, agree with each other, and hold the original inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from transllm import load_recipe
from transllm.model import Documents, attach, enable_packed, load_folder, load_merged
from transllm.tokenizer import SpanTokenizer

SENTENCES = ["What do you know about the museum before dinner?", "Nobody knows.", "It was the windows, and 1987 was a cold year. " * 6]


def _ids(tokenizer: Any, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


@pytest.fixture(scope="module")
def original(home: Any) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(home.model).eval(), AutoTokenizer.from_pretrained(home.model)


def _adapted(finished: Any, home: Any, stage: str, dtype: torch.dtype = torch.float32) -> Any:
    recipe = load_recipe(home.recipe)
    model, tokenizer = load_folder(finished.folder / "extend")
    spans = SpanTokenizer.load(finished.folder / "extend")
    adapted = attach(model, original_size=spans.original_size, size=len(tokenizer), training=recipe.training, dtype=dtype)
    adapted.load(finished.folder / stage)
    adapted.peft.eval()
    return adapted


def test_extended_folder_is_a_plain_model_with_the_original_rows(finished: Any, original: tuple[Any, Any]) -> None:
    folder = finished.folder / "extend"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    old, old_tokenizer = original
    size = len(old_tokenizer)
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == model.config.vocab_size == len(tokenizer) == size + 40 + 4
    assert model.get_output_embeddings().weight.data_ptr() == rows.data_ptr(), "tied heads stay tied"
    assert torch.equal(rows[:size], old.get_input_embeddings().weight)
    expected = dict(old.named_parameters())
    for name, parameter in model.named_parameters():
        assert "embed" in name or torch.equal(parameter, expected[name])
    for text in ("<EN>", "<RESPONSE>", "<ES>"):
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1 and len(old_tokenizer.tokenize(text)) > 1


def test_new_rows_are_the_mean_of_their_parts(finished: Any, original: tuple[Any, Any]) -> None:
    folder = finished.folder / "extend"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    old, old_tokenizer = original
    rows, before = model.get_input_embeddings().weight, old.get_input_embeddings().weight
    same = 0
    for token in range(len(old_tokenizer), len(tokenizer)):
        parts = old_tokenizer(tokenizer.decode([token]), add_special_tokens=False)["input_ids"]
        same += torch.allclose(rows[token], before[parts].mean(0), atol=1e-6)
    # Not all: a piece that is half a character has no text, and some words are cut otherwise when they stand alone.
    assert same > 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapter_off_is_the_original_bit_for_bit(finished: Any, home: Any, dtype: torch.dtype) -> None:
    """In bfloat16 too: casting a model must not cast the frequencies of its positions."""
    adapted = _adapted(finished, home, "finetune", dtype)
    old, tokenizer = AutoModelForCausalLM.from_pretrained(home.model, dtype=dtype), AutoTokenizer.from_pretrained(home.model)
    old.eval()
    assert (enable_packed(old), enable_packed(adapted.base)) == (True, True)
    for text in SENTENCES:
        ids = _ids(tokenizer, text)
        documents = Documents([ids.shape[1]])
        with torch.no_grad():
            hidden = old.get_decoder()(input_ids=ids, position_ids=documents.positions_1T, use_cache=False, documents=documents)
            expected = old.get_output_embeddings()(hidden.last_hidden_state)
            with adapted.original():
                off = adapted.logits(ids, documents)
            on = adapted.logits(ids, documents)
        assert torch.equal(off, expected)
        assert on.shape[-1] > off.shape[-1] and not torch.allclose(on[..., : off.shape[-1]], off, atol=0.1), "the adapter does nothing"


def test_merged_folder_is_a_plain_chat_model(finished: Any, home: Any) -> None:
    folder = finished.folder / "merge"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    spans = SpanTokenizer.load(folder)
    turns = [{"role": "user", "content": "What do you know about the museum?"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**inputs, generation_config=GenerationConfig.from_pretrained(folder), max_new_tokens=40, do_sample=False)
    said = made[0, inputs["input_ids"].shape[1]:].tolist()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert said and (said[-1] == end or len(said) == 40) and max(said) < spans.size
    assert model.generation_config.pad_token_id == spans.pad_id and end in model.generation_config.eos_token_id


def test_merged_logits_are_the_adapter_models(finished: Any, home: Any) -> None:
    limit = load_recipe(home.recipe).merge.max_kl
    adapted = _adapted(finished, home, "finetune")
    enable_packed(adapted.base)
    merged, tokenizer = (kind.from_pretrained(finished.folder / "merge") for kind in (AutoModelForCausalLM, AutoTokenizer))
    for line in (finished.folder / "bridge" / "chains.jsonl").read_text(encoding="utf-8").splitlines()[:5]:
        row = json.loads(line)
        asked = f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n"
        ids = _ids(tokenizer, f"{asked}<EN>{row['query_en']}<RESPONSE>{row['answer_en']}<ES>{row['answer']}<|im_end|>")
        with torch.no_grad():
            exact = adapted.logits(ids, Documents([ids.shape[1]]))[0].log_softmax(-1)
            plain = merged(input_ids=ids).logits[0].log_softmax(-1)
        kl = float((exact.exp() * (exact - plain)).sum(-1).mean())
        assert kl <= limit and torch.allclose(exact, plain, atol=1e-3)
    assert json.loads((finished.folder / "merge" / "manifest.json").read_text())["metrics"]["kl_to_adapter_model"] <= limit


def test_each_stage_goes_on_from_the_adapter_before(finished: Any) -> None:
    """Trained tensors move at every stage; frozen ones never."""
    states = {stage: {name: tensor for file in ("adapter_model", "rows")
                      for name, tensor in _tensors(finished.folder / stage / f"{file}.safetensors").items()}
              for stage in ("pretrain", "bitext", "finetune")}
    for before, after in (("pretrain", "bitext"), ("bitext", "finetune")):
        assert states[before].keys() == states[after].keys()
        moved = [name for name, tensor in states[after].items() if not torch.equal(tensor, states[before][name])]
        assert len(moved) == len(states[after])
        close = sum(torch.nn.functional.cosine_similarity(tensor.flatten(), states[before][name].flatten(), 0) for name, tensor
                    in states[after].items() if "lora_A" in name) / sum("lora_A" in name for name in states[after])
        assert close > 0.5, "it began from another adapter"
    model, _ = load_merged(finished.folder / "extend", finished.folder / "finetune")
    size = SpanTokenizer.load(finished.folder / "extend").original_size
    extended, _ = load_folder(finished.folder / "extend")
    assert torch.equal(model.get_input_embeddings().weight[:size], extended.get_input_embeddings().weight[:size])
    assert torch.equal(model.model.norm.weight, extended.model.norm.weight)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(str(path)))
