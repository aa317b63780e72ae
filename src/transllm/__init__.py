"""TransLLM: give an English chat model another language, and keep what it was."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from transllm.errors import DataError, MissingExtraError, ModelError, RecipeError, RunError, TrainingError, TransLLMError

if TYPE_CHECKING:
    from transllm.chat import Chat, Reply, load_chat
    from transllm.pipeline.run import Run, transform
    from transllm.recipe import Recipe, load_recipe

__version__ = version("transllm")

__all__ = [
    "Chat",
    "DataError",
    "MissingExtraError",
    "ModelError",
    "Recipe",
    "RecipeError",
    "Reply",
    "Run",
    "RunError",
    "TrainingError",
    "TransLLMError",
    "load_chat",
    "load_recipe",
    "transform",
]

_LATER = {"Chat": "transllm.chat", "Reply": "transllm.chat", "load_chat": "transllm.chat", "Recipe": "transllm.recipe",
          "load_recipe": "transllm.recipe", "Run": "transllm.pipeline.run", "transform": "transllm.pipeline.run"}


def __getattr__(name: str) -> Any:
    """Names that need torch are imported when they are used: ``transllm --help`` takes no seconds."""
    if name not in _LATER:
        raise AttributeError(f"module 'transllm' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)
