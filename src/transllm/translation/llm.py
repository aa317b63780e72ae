"""A chat model as a translator: any engine of conversations, such as one behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transllm.generation.conversation import Conversation, ConversationEngine, ReplySampling, Turn
from transllm.languages import Language
from transllm.translation.codes import ENGLISH
from transllm.translation.masks import BRACKETS, MaskForm
from transllm.translation.translator import Direction, Translation

_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "「": "」", "„": "“"}


class LLMTranslator:
    """Asks for one line at a time, greedily.

    Args:
        engine: who answers.
        language: the target language.
        prompt: what is asked; ``{source}`` and ``{target}`` are the languages' English names, ``{text}`` the line.
        max_new_tokens: of one answer.
        identity: which model answers and where, for the cache.
    """

    name = "llm"
    masks: MaskForm | None = BRACKETS
    longest = 1500
    whole_lines = True

    def __init__(self, engine: ConversationEngine, language: Language, *, prompt: str, max_new_tokens: int,
                 identity: dict[str, Any]) -> None:
        self._engine, self._prompt, self._max_new_tokens = engine, prompt, max_new_tokens
        self._names = {"target": (ENGLISH.name, language.name), "english": (language.name, ENGLISH.name)}
        self.identity: dict[str, Any] = {"prompt": prompt, "max_new_tokens": max_new_tokens, **identity}

    def sentences(self, sentences: Sequence[str], *, to: Direction) -> Iterator[tuple[int, Translation]]:
        """See ``SentenceTranslator.sentences``."""
        source, target = self._names[to]
        # Not str.format: the prompt and the text may hold braces of their own. The text goes in last.
        asked = self._prompt.replace("{source}", source).replace("{target}", target)
        conversations = [Conversation((Turn("user", asked.replace("{text}", sentence)),)) for sentence in sentences]
        for reply in self._engine.generate(conversations, sampling=ReplySampling(self._max_new_tokens)):
            yield reply.index, Translation(_unquoted(reply.text, sentences[reply.index]), reply.finish != "stop")

    def close(self) -> None:
        """End the engine."""
        self._engine.close()


def _unquoted(text: str, source: str) -> str:
    """The reply without quotes around it that the text does not have: chat models like to quote what they were asked for."""
    text = text.strip()
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 2 and text.endswith(closing) and source[:1] not in _QUOTES and closing not in text[1:-1]:
        return text[1:-1].strip()
    return text
