"""Engines of conversations by name, from a description that can be sent to another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transllm.errors import ModelError
from transllm.generation.conversation import ConversationEngine
from transllm.generation.in_process import TransformersEngine
from transllm.generation.llama_cpp import LlamaCppEngine, require_llama_cpp
from transllm.generation.server import ServerEngine, key_of, require_client
from transllm.generation.vllm import VllmEngine, require_vllm
from transllm.model import compute_dtype, default_device, load_chat_model, load_chat_tokenizer, place
from transllm.model.gguf_file import gguf_of
from transllm.model.plain import folder_of
from transllm.recipe.schema import EngineSettings, ModelSource, Recipe


@dataclass(frozen=True)
class EngineSpec:
    """All that decides an engine: it can be pickled, and opened where it arrives.

    Attributes:
        settings: the recipe's ``recover.engine``.
        model: the recipe's ``model``.
        folder: where the model's relative paths start.
        cache: where wheels, and forms of the model that an engine asks for, are kept.
        precision: of the engine in this process.
        batch_size: conversations in work at once in it.
    """

    settings: EngineSettings
    model: ModelSource
    folder: Path
    cache: Path | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: int = 64

    @classmethod
    def of(cls, recipe: Recipe, *, cache: Path | None = None) -> EngineSpec:
        """What a recipe asks for."""
        return cls(recipe.recover.engine, recipe.model, recipe.folder.absolute(), cache, recipe.training.precision,
                   recipe.recover.batch_size)


def require_engine(settings: EngineSettings) -> None:
    """Raise if what an engine needs is missing: a package, a device, a key. Loads nothing.

    Raises:
        MissingExtraError: a package, with the extra that brings it.
        ModelError: CUDA, or the key.
    """
    if settings.name == "llamacpp":
        require_llama_cpp()
    elif settings.name == "vllm":
        require_vllm()
    elif settings.name == "server" or settings.url is not None:
        require_client()
        key_of(settings)


def open_engine(spec: EngineSpec) -> ConversationEngine:
    """Open the engine that is named.

    Raises:
        MissingExtraError: its package is not installed.
        ModelError: the model cannot be loaded by it.
    """
    source = spec.model
    require_engine(spec.settings)
    if spec.settings.name == "transformers":
        loaded = load_chat_model(source, folder=spec.folder, cache=spec.cache)
        device = default_device()
        place(loaded.model, device, compute_dtype(spec.precision, device))
        return TransformersEngine(loaded, batch_size=spec.batch_size)
    if spec.settings.name == "llamacpp":
        chat = load_chat_tokenizer(source, folder=spec.folder, cache=spec.cache)
        return LlamaCppEngine(gguf_of(source, folder=spec.folder, cache=spec.cache), chat, concurrency=spec.settings.concurrency)
    if spec.settings.name == "server":
        return ServerEngine(spec.settings, lambda: load_chat_tokenizer(source, folder=spec.folder, cache=spec.cache).tokenizer)
    if spec.settings.name == "vllm":
        return VllmEngine(folder_of(source, folder=spec.folder, cache=spec.cache),
                          load_chat_tokenizer(source, folder=spec.folder, cache=spec.cache),
                          dtype=compute_dtype(spec.precision, default_device()))
    raise ModelError("'auto' is no engine but a choice between those that work here; see transllm.generation.fastest.")
