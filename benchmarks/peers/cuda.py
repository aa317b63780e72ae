"""The race on one GPU: ours against TRL with Liger's kernels and Unsloth, 4,096 tokens a row. It has not run: no GPU was at hand.

Two models: SmolLM2-135M, and one of Llama 3's 8B shape with random weights. ``_vs_floor`` is the share of the rate at which the card runs
the step's own products alone, ``_of_matrix_rate`` what the products of ours make of the rate of one large product.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.contender import Turn
from peers.data import Shape, model_folder, rows_folder
from peers.race import Track, middle, race, ratio, spread, summary, tell, tokens

PEERS = ("trl-cuda", "unsloth")
_LENGTH = 4096
_LLAMA3_8B = {"vocab_size": 128_260, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500_000.0, "tie_word_embeddings": False}
_SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {"precision": "bfloat16", "micro_tokens": _LENGTH}, "floor": {},
    "trl-cuda": {"precision": "bfloat16", "compile": False, "packing": "wrapped", "attention": "sdpa", "accumulate": 4, "liger": True},
    "unsloth": {"precision": "bfloat16", "accumulate": 4}}


def figures(track: Track, *, rounds: int) -> dict[str, Any]:
    """Ratios and rates for both models."""
    found: dict[str, Any] = {}
    small = model_folder(track.work)
    shape = Shape("blocks", _LENGTH, 64 * _LENGTH)
    rows_folder(track.work, shape)
    for name, folder in (("smollm2-135m", small), ("llama3-8b-shape", _random_model(track.work / "llama3-8b", small))):
        tell(f"\n{name}: {4 * _LENGTH} tokens a step in rows of {_LENGTH}")
        names = ["ours", "floor", *(peer for peer in PEERS if peer in track.pythons)]
        contenders = [track.contender(one, shape, settings=_SETTINGS[one], batch_tokens=4 * _LENGTH, model=folder) for one in names]
        turns = race(contenders, rounds=rounds, steps=4, limit=track.limit)
        for other in ("floor", *PEERS):
            ratios = ratio(turns, "ours", other, tokens)
            found[f"{name}_vs_{other}"], found[f"{name}_vs_{other}_spread"] = summary(ratios), spread(ratios)
        found[f"{name}_of_matrix_rate"] = _of_matrix_rate(turns)
        found[name] = {one: {"tokens_per_second": middle(held, tokens), "peak_gib": held[-1].peak_gib}
                       for one, held in turns.items() if held}
    return found


def _of_matrix_rate(turns: Mapping[str, Sequence[Turn]]) -> float | None:
    """FLOPs a second of the products of our steps, by the floor's count, as a share of the card's in one large product."""
    floor, speed = turns.get("floor", ()), middle(turns.get("ours", ()), tokens)
    if not floor or speed is None:
        return None
    turn = floor[-1]
    return round(speed * turn.flops * turn.steps / turn.tokens / turn.matrix_flops, 3)


def _random_model(folder: Path, like: Path) -> Path:
    """Random weights of the 8B shape, with the small model's tokenizers: its ids are a part of the larger vocabulary."""
    if (folder / "vocabulary.json").exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig.from_dict(_LLAMA3_8B))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    for file in like.iterdir():
        if file.is_dir():
            shutil.copytree(file, folder / file.name, dirs_exist_ok=True)
        elif "token" in file.name or file.name == "chat_template.jinja":
            shutil.copy(file, folder)
    shutil.copy(like / "vocabulary.json", folder)  # last: it says that the folder is whole
    return folder
