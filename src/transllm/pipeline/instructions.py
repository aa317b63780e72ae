"""How a user asks for a translation. A number chooses the words, so that a model learns the wish and not one phrase."""

from __future__ import annotations

from transllm.languages import Language
from transllm.tcot import Message

_PHRASES = (
    "Translate into {name}:\n{text}",
    "Translate the following text into {name}.\n\n{text}",
    "How do you say this in {name}?\n{text}",
    "{text}\n\nTranslate the text above into {name}.",
    "Please give me the {name} translation of this: {text}",
    "Write this in {name}: {text}",
)


def to_target(text: str, language: Language, number: int = 0) -> Message:
    """A request to translate English text into the target language."""
    return Message("user", _PHRASES[number % len(_PHRASES)].format(name=language.name, text=text))


def to_english(text: str, language: Language, number: int = 0) -> Message:
    """A request to translate text of the target language into English."""
    return Message("user", _PHRASES[number % len(_PHRASES)].format(name="English", text=text), "target")
