"""Frozen weights in 4 bits (QLoRA, arXiv 2305.14314): bitsandbytes through transformers; peft puts its own layer on such weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from transllm.errors import MissingExtraError, ModelError
from transllm.model.load import load_folder
from transllm.recipe.schema import Training


def load_to_train(folder: Path, *, training: Training, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The extended model, as ``attach`` takes it: in its stored precision, or rounded to 4 bits where the recipe asks for that.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        ModelError: there is no CUDA device for weights of 4 bits.
    """
    if training.quantize == "none":
        return load_folder(folder)[0]
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "qlora", "training.quantize 'nf4'")
    if device.type != "cuda":
        raise ModelError(f"training.quantize is 'nf4', which needs a CUDA device, but this machine would train on '{device.type}'. "
                         "Set training.quantize to 'none', or run it where there is one.")
    return load_nf4(folder, device=device, dtype=dtype)


def load_nf4(folder: Path, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose linear layers, but for the head, hold 4-bit weights and multiply in ``dtype``."""
    config: Any = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                     bnb_4bit_compute_dtype=dtype)
    return load_folder(folder, dtype=dtype, quantization_config=config, device_map={"": device})[0]
