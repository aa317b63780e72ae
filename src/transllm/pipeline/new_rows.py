"""How new rows start in a run: what markers stand for, and the run's own text as the methods of ``model.initial`` read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transllm.languages import Language
from transllm.model import Known, interleaved
from transllm.tokenizer import SpanTokenizer, family_of, marker_texts, sub_tokens

PAD = "<|pad|>"
SAMPLE_CHARACTERS = 3_000_000
"""Of each kind of text at most, for the auxiliary embedding: half a minute of one core for all of them (3.2 million tokens)."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The text that methods may learn from; each of them reads what it needs.

    Attributes:
        target, english: documents.
        pairs: (English, target) sentences.
        lexicon: (English, target) words.
    """

    target: Sequence[str] = ()
    english: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()
    lexicon: Sequence[tuple[str, str]] = ()


def new_sub_tokens(spans: SpanTokenizer) -> dict[int, list[int]]:
    """New id -> the original ids that it stands for: of a piece what it replaces, of a marker what it means."""
    return sub_tokens(spans.original, spans.extended, descriptions=_descriptions(spans.language))


def known(spans: SpanTokenizer, parts: Mapping[int, Sequence[int]], texts: Texts, *, seed: int) -> Known:
    """What the methods may look at.

    Args:
        parts: from :func:`new_sub_tokens`.
        texts: nothing of it is encoded before a method asks.
        seed: the recipe's.
    """
    special = {*spans.extended.added_tokens_decoder}
    bytes_of = family_of(spans.original).bytes_of
    n_bytes = {token_id: len(bytes_of(token)) for token, token_id in spans.original.get_vocab().items()}
    return Known({new_id: ids for new_id, ids in parts.items() if new_id not in special}, n_bytes,
                 lambda: _documents(spans, texts), lambda: _entries(spans, texts.lexicon), seed)


def _descriptions(language: Language) -> dict[str, str]:
    """English words whose mean starts the row of each marker and of the pad."""
    english, response, target = marker_texts(language)
    return {english: "English:", response: "Answer:", target: f"{language.name}:", PAD: " "}


def _documents(spans: SpanTokenizer, texts: Texts) -> Iterator[list[int]]:
    """A bounded sample of all text, each language in its own vocabulary, the sides of a pair laid into one document."""
    yield from spans.encode_target_batch(_bounded(texts.target, SAMPLE_CHARACTERS))
    yield from spans.encode_english_batch(_bounded(texts.english, SAMPLE_CHARACTERS))
    english = spans.encode_english_batch(_bounded((pair[0] for pair in texts.pairs), SAMPLE_CHARACTERS))
    target = spans.encode_target_batch(pair[1] for pair in texts.pairs[: len(english)])
    for left, right in zip(english, target, strict=True):
        yield interleaved(left, right)


def _entries(spans: SpanTokenizer, lexicon: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
    """Words as they stand in text: after a space, and where the language writes spaces also at the start of a line."""
    forms = [(" ", " "), ("", "")] if spans.language.spaced else [("", " ")]
    for before_target, before_english in forms:
        target = spans.encode_target_batch(before_target + word for _, word in lexicon)
        yield from zip(target, spans.encode_english_batch(before_english + word for word, _ in lexicon), strict=True)


def _bounded(texts: Iterable[str], characters: int) -> list[str]:
    """Texts up to so many characters; the last one is cut."""
    taken: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        taken.append(text[:characters])
        characters -= len(text)
    return taken
