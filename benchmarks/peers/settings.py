"""Each contender's settings: the defaults are the winners of ``--sweep`` (figures in docs/benchmarks.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Settings = dict[str, Any]

LORA = {"r": 64, "alpha": 128}
LEARNING_RATE = 2e-4
PEERS = ("trl", "llamafactory")

BEST: dict[tuple[str, str], Settings] = {
    ("ours", "pretrain"): {"precision": "auto", "micro_tokens": 1024},
    ("ours", "finetune"): {"precision": "auto", "micro_tokens": 1024},
    ("trl", "pretrain"): {"precision": "autocast", "compile": True, "packing": "wrapped", "attention": "eager", "accumulate": 4},
    ("trl", "finetune"): {"precision": "autocast", "compile": False, "packing": "grouped", "attention": "eager", "accumulate": 4},
    ("llamafactory", "pretrain"): {"precision": "autocast", "compile": True, "packing": "packing", "attention": "eager", "accumulate": 4},
    ("llamafactory", "finetune"): {"precision": "autocast", "compile": False, "packing": "grouped", "attention": "eager",
                                   "accumulate": 4, "template": "smollm2"},
}

WITHOUT_BFLOAT16: dict[tuple[str, str], Settings] = {
    ("ours", "pretrain"): {"micro_tokens": 512},
    ("ours", "finetune"): {"micro_tokens": 512},
    ("trl", "pretrain"): {"precision": "float32", "compile": False, "packing": "grouped"},
    ("trl", "finetune"): {"precision": "float32"},
    ("llamafactory", "pretrain"): {"precision": "float32", "compile": False},
    ("llamafactory", "finetune"): {"precision": "float32"},
}
"""What is another where bfloat16 gains nothing: a processor without instructions for it multiplies fifty times as slowly in it."""

AXES: dict[tuple[str, str], dict[str, list[Any]]] = {
    ("ours", "pretrain"): {"micro_tokens": [512, 1024, 2048], "precision": ["auto", "float32"]},
    ("ours", "finetune"): {"micro_tokens": [512, 1024, 2048]},
    ("trl", "pretrain"): {"precision": ["bfloat16", "autocast", "float32"], "packing": ["wrapped", "bfd", "grouped"],
                          "attention": ["sdpa", "eager"], "accumulate": [1, 4], "compile": [False, True]},
    ("trl", "finetune"): {"precision": ["bfloat16", "autocast", "float32"], "packing": ["bfd", "wrapped", "grouped"],
                          "attention": ["sdpa", "eager"], "accumulate": [1, 4], "compile": [False, True]},
    ("llamafactory", "pretrain"): {"precision": ["bfloat16", "autocast", "float32"], "attention": ["sdpa", "eager"],
                                   "accumulate": [1, 4], "compile": [False, True]},
    ("llamafactory", "finetune"): {"precision": ["bfloat16", "autocast", "float32"], "packing": ["neat_packing", "packing", "grouped"],
                                   "attention": ["sdpa", "eager"], "accumulate": [1, 4], "compile": [False, True]},
}
"""What ``--sweep`` tries, one axis after the other: a full grid would take days. Attention comes before the size of batches: single rows
win with eager attention and lose with SDPA here. LLaMA-Factory always packs in pre-training."""


def best(name: str, task: str, *, bfloat16: bool) -> Settings:
    """The best known setting of a contender, on a machine that gains from bfloat16 or on one that does not."""
    return BEST[name, task] | ({} if bfloat16 else WITHOUT_BFLOAT16[name, task])


def challenges(name: str, task: str, *, bfloat16: bool) -> Iterator[tuple[str, Any]]:
    """What a sweep tries."""
    for axis, values in AXES[name, task].items():
        yield from ((axis, value) for value in values if bfloat16 or value not in ("bfloat16", "autocast"))


def shown(settings: Settings) -> str:
    """Settings in a line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())
