"""TRL's SFTTrainer, on the rows' own token ids and labels. Run by the driver, in TRL's environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peers.turns import Turns, asked


def plain_model(ask: dict[str, Any]) -> tuple[Any, Any]:
    """The model, and the adapter that the trainer is to put on it."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    own, lora = ask["settings"], ask["lora"]
    weights = torch.bfloat16 if own["precision"] == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(ask["model"], dtype=weights, attn_implementation=own["attention"])
    return model, LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def main(load: Callable[[dict[str, Any]], tuple[Any, Any]] = plain_model) -> None:
    """Train in turns until the input ends."""
    ask = asked()
    turns = Turns(ask["warm"])
    model, adapter = load(ask)
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from peers.hf_turns import Paced, count_batches

    own, cuda = ask["settings"], ask["device"] == "cuda"
    packing = own.get("packing", "wrapped")
    packs = packing in ("bfd", "wrapped")
    rows_a_step = ask["batch_tokens"] // ask["length"] if packs else ask["rows_a_step"]
    config = SFTConfig(
        output_dir=ask["scratch"], max_length=ask["length"], per_device_train_batch_size=max(1, rows_a_step // own["accumulate"]),
        gradient_accumulation_steps=own["accumulate"], max_steps=100_000, learning_rate=ask["learning_rate"], weight_decay=0.01,
        use_cpu=not cuda, dataloader_pin_memory=cuda, bf16=own["precision"] == "autocast", gradient_checkpointing=False, report_to="none",
        save_strategy="no", logging_steps=10, disable_tqdm=True, torch_compile=own.get("compile", False), packing=packs,
        use_liger_kernel=own.get("liger", False), packing_strategy=packing if packs else "bfd",
        train_sampling_strategy="group_by_length" if packing == "grouped" else "random")
    tokenizer = AutoTokenizer.from_pretrained(ask["model"])
    count_batches(turns, pad_id=tokenizer.pad_token_id)
    rows = Dataset.from_json(ask["rows"] + "/rows.jsonl", cache_dir=ask["scratch"])
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=adapter,
                         callbacks=[Paced(turns)])
    trainer.train()


if __name__ == "__main__":
    main()
