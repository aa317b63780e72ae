"""A run folder with a tiny random model: what the verbs that look at a run need of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from transllm.languages import LANGUAGES
from transllm.recipe import dump_recipe, load_recipe
from transllm.tokenizer import SpanTokenizer, extend_tokenizer, learn_merges, marker_texts

TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
ENGLISH = ["The library of the city is open.", "Nobody reads the book in the morning.", "The city has a library."] * 20
SPANISH = ["La biblioteca de la ciudad está abierta.", "Nadie lee el libro por la mañana.", "La ciudad tiene una biblioteca."] * 20


@pytest.fixture(scope="session")
def spans() -> SpanTokenizer:
    """A throw-away tokenizer and its extension."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(ENGLISH, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    original = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                       pad_token="<|im_end|>", chat_template=TEMPLATE)
    learned = learn_merges(original, SPANISH, ENGLISH, size=30, min_count=3)
    return SpanTokenizer(original, extend_tokenizer(original, learned, markers=marker_texts(LANGUAGES["es"]), pad=None), LANGUAGES["es"])


@pytest.fixture(scope="session")
def run(spans: SpanTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``runs/tiny`` with a recipe, its data, extend's tokenizers and a model (of random weights) in merge. Not to be changed."""
    home = tmp_path_factory.mktemp("home")
    (home / "pairs.tsv").write_text("".join(f"{english}\t{spanish}\n" for english, spanish in zip(ENGLISH, SPANISH, strict=True)), "utf-8")
    (home / "tiny.yaml").write_text("model: org/tiny\nlanguage: es\ndata:\n  parallel: [{files: pairs.tsv, columns: [0, 1]}]\n")
    folder = home / "runs" / "tiny"
    dump_recipe(load_recipe(home / "tiny.yaml"), folder / "recipe.yaml")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=spans.size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=spans.pad_id))
    for stage in ("extend", "merge"):
        model.save_pretrained(folder / stage)
        spans.save(folder / stage)
    return folder
