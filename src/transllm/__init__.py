"""TransLLM: give an English chat model another language, and keep what it was."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from transllm.errors import DataError, MissingExtraError, ModelError, RecipeError, RunError, TrainingError, TransLLMError

# What torch reads on a processor when it is loaded, or at its first product. Whoever set these keeps them.
#
# Threads of OpenMP that wait for each other sleep rather than spin: where another process wants a core too, training was twice as
# fast so (90 -> 200 tokens a second on two cores), and as fast within the noise where none does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN keeps the kernels of the last 1,024 shapes. Packed rows bring new shapes in each step, which hardly ever come back, and a run's
# memory grew by a GiB in hundreds of steps. What a step itself uses again, in layer after layer, are some dozens for each core.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(min(1024, 64 * (os.cpu_count() or 1))))

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
