"""How a user asks for a translation. A number chooses the words, so that a model learns the wish and not one phrase."""

from __future__ import annotations

from collections.abc import Sequence

from transllm.data.requests import Request, requests
from transllm.languages import Language
from transllm.tcot import Message


def to_target(text: str, language: Language, number: int = 0, *, more: Sequence[str] = ()) -> Message:
    """A request to translate English text into the target language.

    Args:
        text: the text.
        number: of the words, of which there are many; 0 asks in English, the numbers after it in both languages by turns.
        more: requests in the target language beside the library's, with ``{text}`` in them.
    """
    forms = [*requests(language, "target"), *(Request(form, False) for form in more)]
    form = forms[number % len(forms)]
    return Message("user", form.about(text), "english" if form.in_english else "target")


def to_english(text: str, language: Language, number: int = 0, *, more: Sequence[str] = ()) -> Message:
    """A request to translate text of the target language into English; arguments as of :func:`to_target`."""
    forms = [*requests(language, "english"), *(Request(form, False) for form in more)]
    return Message("user", forms[number % len(forms)].about(text), "target")
