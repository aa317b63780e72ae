"""Unsloth's model under TRL's SFTTrainer, as its documentation says. On CUDA only; it has not run."""

from __future__ import annotations

from typing import Any

from peers import trl


def quick_model(ask: dict[str, Any]) -> tuple[Any, None]:
    """The model with Unsloth's kernels and its adapter. It must be imported before the libraries that it patches."""
    from unsloth import FastLanguageModel

    lora = ask["lora"]
    model, _ = FastLanguageModel.from_pretrained(ask["model"], max_seq_length=ask["length"], dtype=None, load_in_4bit=False)
    return FastLanguageModel.get_peft_model(
        model, r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=0.0, bias="none", use_gradient_checkpointing=False,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]), None


if __name__ == "__main__":
    trl.main(quick_model)
