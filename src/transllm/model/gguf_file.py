"""A chat model as a GGUF file, for llama.cpp: the file itself where the recipe names one, else one written from the checkpoint, once.

What is written is the same weights in the same precision. Of the tokenizer it holds the tokens, so that ends of turns are known; prompts
and replies go in and out as ids, so nothing else of it is used, and the file is not for other programs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from transllm.data.package import default_cache
from transllm.errors import ModelError
from transllm.files import atomic
from transllm.model.load import LoadedModel, end_of_turn_ids, load_chat_model, weight_of
from transllm.model.source import commit_of, located, original_digest
from transllm.recipe.schema import ModelSource

# Families whose layers llama.cpp computes from nothing but these numbers, and the names it has for them.
_FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}


def gguf_of(source: ModelSource, *, folder: Path, cache: Path | None = None) -> Path:
    """A GGUF file of a recipe's model.

    Raises:
        ModelError: its family cannot be written as one here.
    """
    path, options = located(source, folder=folder, cache=cache)
    if "gguf_file" in options and Path(path).is_dir():
        return Path(path, str(options["gguf_file"]))
    # The commit too: a hub model behind a name can change.
    known = f"{original_digest(source, folder=folder, cache=cache)}-{commit_of(path, options)}-{source.dtype}"
    target = (cache or default_cache()) / "gguf" / f"{known}.gguf"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        loaded = load_chat_model(source, folder=folder, cache=cache)
        with atomic(target) as temporary:
            write_gguf(loaded, temporary)
    return target


def write_gguf(loaded: LoadedModel, path: Path) -> None:
    """Write a model as a GGUF file that llama.cpp reads.

    Raises:
        ModelError: its family, or a setting of it, is not among those that are known here.
    """
    import gguf

    config: Any = loaded.model.config
    rope = dict(getattr(config, "rope_parameters", None) or {})
    other = config.model_type not in _FAMILIES or rope.get("rope_type", "default") != "default"
    if other or getattr(config, "use_sliding_window", False) or getattr(config, "mlp_bias", False):
        why = " with these settings" if config.model_type in _FAMILIES else ""
        raise ModelError(f"A model of the family '{config.model_type}'{why} is not written as GGUF here. Name a GGUF of the same weights "
                         "with 'model: {source: FILE.gguf}' (llama.cpp's convert_hf_to_gguf.py makes one), or set recover.engine to "
                         "'transformers'.")
    family = _FAMILIES[config.model_type]
    writer: Any = gguf.GGUFWriter(str(path), family)
    _write_shape(writer, config, rope)
    _write_tokens(writer, loaded)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    for name, weight in _weights(loaded.model).items():
        given = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if given is None:
            raise ModelError(f"The tensor '{name}' has no place in a GGUF file of the family '{family}'. "
                             "Set recover.engine to 'transformers'.")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads is not None and family == "llama":
            weight = _turned(weight, heads)
        _write_tensor(writer, given, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: Any, config: Any, rope: dict[str, Any]) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_tokens(writer: Any, loaded: LoadedModel) -> None:
    """All tokens as ones of a byte-level BPE, whatever they are of: only those that end a turn mean something here."""
    import gguf

    size = int(loaded.model.config.vocab_size)
    named = {number: piece for piece, number in loaded.tokenizer.get_vocab().items()}
    special = set(loaded.tokenizer.all_special_ids)
    tokens = [named.get(number, f"[unused {number}]") for number in range(size)]
    kinds = [gguf.TokenType.UNUSED if number not in named else gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL
             for number in range(size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = json.loads(loaded.tokenizer.backend_tokenizer.to_str())["model"].get("merges") or [["a", "b"]]
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in merges])
    writer.add_add_bos_token(False)
    ends = end_of_turn_ids(loaded.model, loaded.tokenizer)
    if ends:
        writer.add_eos_token_id(ends[0])
        writer.add_eot_token_id(ends[-1])


def _weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All weights by name; a head that is tied to the embedding is left out, as llama.cpp wants it."""
    tied = weight_of(model.get_output_embeddings()) is weight_of(model.get_input_embeddings())
    return {name: weight.detach() for name, weight in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def _turned(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in the order of llama.cpp's rotary positions, which turn neighbours; transformers turns halves."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _write_tensor(writer: Any, name: str, weight: torch.Tensor) -> None:
    """Matrices as they are; vectors in float32, as llama.cpp wants them."""
    import gguf

    if weight.ndim < 2:
        writer.add_tensor(name, weight.float().numpy())
    elif weight.dtype == torch.bfloat16:
        data = weight.contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, weight.contiguous().numpy())
