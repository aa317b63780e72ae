"""The engine of *recover*: opened by the recipe, remembered in the stage's folder, told in its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from transllm.generation import Choice, Conversation, ConversationEngine, EngineSpec, RayEngine, Reply, ReplySampling, engine_for
from transllm.generation.open_engine import open_engine
from transllm.pipeline.stage import Context

_REMEMBERED = "engine.json"


class ChosenEngine:
    """An engine of conversations, and how it was chosen (for the manifest)."""

    def __init__(self, context: Context) -> None:
        spec, ray = EngineSpec.of(context.recipe, cache=context.cache), context.recipe.recover.ray
        self._engine: ConversationEngine
        if ray is None:
            self._engine, choice = engine_for(spec, context.folder / _REMEMBERED, say=context.progress.say)
        else:
            self._engine, choice = RayEngine(partial(open_engine, spec), **ray.model_dump()), Choice(spec.settings.name)
        self.name = choice.name
        self.choice: dict[str, Any] = asdict(choice)

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        """See ``ConversationEngine.generate``."""
        return self._engine.generate(conversations, sampling=sampling)

    def close(self) -> None:
        """See ``ConversationEngine.close``."""
        self._engine.close()


def engine_of(context: Context) -> ChosenEngine:
    """The engine that a run's recipe asks for. With ``auto``, a stage that goes on takes the one that it began with."""
    return ChosenEngine(context)
