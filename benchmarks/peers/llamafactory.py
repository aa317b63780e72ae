"""LLaMA-Factory, on the rows' texts through its own template and packing. Run by the driver, in LLaMA-Factory's environment."""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

from peers.turns import Turns, asked

_PRECISION: dict[str, dict[str, Any]] = {"bfloat16": {"pure_bf16": True}, "autocast": {"bf16": True}, "float32": {}}

# As the model's own chat template has it; LLaMA-Factory's copy of that template ends it with a full stop.
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def main() -> None:
    """Train in turns until the input ends."""
    ask = asked()
    turns = Turns(ask["warm"])
    _without_sound()
    from llamafactory.train.tuner import run_exp
    from transformers import AutoTokenizer

    from peers.hf_turns import Paced, count_batches

    own, pretrain = ask["settings"], ask["task"] == "pretrain"
    rows_a_step = ask["rows_a_step"] if own["packing"] in ("none", "grouped") else ask["batch_tokens"] // ask["length"]
    lora = ask["lora"]
    count_batches(turns, pad_id=AutoTokenizer.from_pretrained(ask["model"]).pad_token_id)
    run_exp({
        "stage": "pt" if pretrain else "sft", "do_train": True, "finetuning_type": "lora",
        "model_name_or_path": str(_in_float32(Path(ask["model"]), Path(ask["scratch"])) if own["precision"] == "float32" else ask["model"]),
        "lora_target": "all", "lora_rank": lora["r"], "lora_alpha": lora["alpha"], "lora_dropout": 0.0, "trust_remote_code": False,
        "dataset": ask["task"], "dataset_dir": ask["rows"], "template": None if pretrain else own["template"],
        "default_system": None if pretrain else _SYSTEM, "cutoff_len": ask["length"],
        "overwrite_cache": True, "packing": own["packing"] in ("packing", "neat_packing"), "neat_packing": own["packing"] == "neat_packing",
        "train_sampling_strategy": "group_by_length" if own["packing"] == "grouped" else "random",
        "per_device_train_batch_size": rows_a_step // own["accumulate"], "gradient_accumulation_steps": own["accumulate"],
        "max_steps": 100_000, "learning_rate": ask["learning_rate"], "weight_decay": 0.01, "use_cpu": ask["device"] == "cpu",
        "flash_attn": {"sdpa": "sdpa", "eager": "disabled"}[own["attention"]], "disable_gradient_checkpointing": True,
        "torch_compile": own["compile"], "output_dir": ask["scratch"], "overwrite_output_dir": True, "save_strategy": "no",
        "logging_steps": 10, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False, **_PRECISION[own["precision"]],
    }, callbacks=[Paced(turns)])


def _in_float32(model: Path, scratch: Path) -> Path:
    """A copy of the model: LLaMA-Factory trains in the precision that a model is stored in, whatever the processor makes of it."""
    from safetensors.torch import load_file, save_file

    copy = scratch / "float32"
    shutil.copytree(model, copy, dirs_exist_ok=True)
    for file in copy.glob("*.safetensors"):
        save_file({name: tensor.float() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config |= {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


def _without_sound() -> None:
    """LLaMA-Factory imports torchaudio whatever it trains on, and PyPI has none for a torch without CUDA. Text needs nothing of it."""
    empty = types.ModuleType("torchaudio")
    empty.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = empty


if __name__ == "__main__":
    main()
