"""How users ask for a translation: in English, and in the languages of ``translation_requests.yaml`` in their own words too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import yaml

from transllm.languages import Language


@dataclass(frozen=True, slots=True)
class Request:
    """Words that ask for a translation.

    Attributes:
        form: with ``{text}`` where the text goes.
        in_english: whether it asks in English, not in the target language.
    """

    form: str
    in_english: bool

    def about(self, text: str) -> str:
        """The request for one text. Braces in the text stay."""
        return self.form.replace("{text}", text)


@cache
def requests(language: Language, to: Literal["target", "english"]) -> tuple[Request, ...]:
    """All requests of the library, in English and in the language by turns as far as there are both; the first is in English."""
    english = [Request(form.replace("{name}", language.name if to == "target" else "English"), True) for form in _table()["en"]["any"]]
    own = [Request(form, False) for form in _table().get(language.code, {}).get(to, ())]
    return tuple(one for both in zip_longest(english, own) for one in both if one is not None)


class Asked(NamedTuple):
    """What a message asks to be translated, and into which of the two languages."""

    text: str
    to: Literal["target", "english"]


def translation_asked(message: str, language: Language) -> Asked | None:
    """The text that a message asks a translation of: one that is in words of the library from the first to the last."""
    directions: tuple[Literal["target", "english"], ...] = ("target", "english")
    return next((Asked(found[1], to) for to in directions for form in _patterns(language, to) if (found := form.fullmatch(message))), None)


@cache
def _patterns(language: Language, to: Literal["target", "english"]) -> tuple[re.Pattern[str], ...]:
    """Each request with anything for its text, however it is spaced and capitalised."""
    forms = ([r"\s+".join(map(re.escape, part.split())) for part in request.form.split("{text}")] for request in requests(language, to))
    return tuple(re.compile(r"\s*" + r"\s*(\S.*?)\s*".join(parts) + r"\s*", re.IGNORECASE | re.DOTALL) for parts in forms)


def asks_for_translation(text: str, language: Language) -> bool:
    """Whether a message may ask for a translation: it says so, or names one of the two languages, in English or in the language."""
    said = text.casefold()
    names = [*_table()["en"]["asks"], *_table().get(language.code, {}).get("asks", ())]
    return any(name.replace("{name}", language.name).casefold() in said for name in names)


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = yaml.safe_load(
        resources.files("transllm.data").joinpath("translation_requests.yaml").read_text(encoding="utf-8"))
    return table
