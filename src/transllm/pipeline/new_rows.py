"""How new rows start in a run: what markers stand for, and the run's own text as the methods of ``model.initial`` read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from transllm.languages import Language
from transllm.model import Known, interleaved
from transllm.tokenizer import SpanTokenizer, marker_texts, piece_bytes, sub_tokens

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
    """New id -> the original ids that it stands for: of a piece what it replaces, of a marker what it means.

    A marker's row starts halfway between two kinds of old rows: the words that name what follows (" Spanish"), and the token with which
    the chat template opens a turn, if it is one of its own. Neither is what a model would write where a marker is due: not in the
    middle of an answer. A colon was ("Spanish:", until version 2 of the stage): in a tied head the marker's row was then half the
    colon's, and trained models wrote a colon in its place in three of 50 answers.
    """
    parts = sub_tokens(spans.original, spans.extended, descriptions=_descriptions(spans.language))
    opening = _opening(spans.original)
    if opening is not None:
        for marker in (spans.markers.english, spans.markers.response, spans.markers.target):
            # As often as there are words, so that it weighs half however the name is cut.
            parts[marker] = [*parts[marker], *[opening] * len(parts[marker])]
    return parts


def known(spans: SpanTokenizer, parts: Mapping[int, Sequence[int]], texts: Texts, *, seed: int) -> Known:
    """What the methods may look at.

    Args:
        parts: from :func:`new_sub_tokens`.
        texts: nothing of it is encoded before a method asks.
        seed: the recipe's.
    """
    special = {*spans.extended.added_tokens_decoder}
    n_bytes = {token_id: len(piece_bytes(token)) for token, token_id in spans.original.get_vocab().items()}
    return Known({new_id: ids for new_id, ids in parts.items() if new_id not in special}, n_bytes,
                 lambda: _documents(spans, texts), lambda: _entries(spans, texts.lexicon), seed)


def _descriptions(language: Language) -> dict[str, str]:
    """English words for each marker, and for the pad."""
    english, response, target = marker_texts(language)
    return {english: " English", response: " Answer", target: f" {language.name}", PAD: " "}


def _opening(original: PreTrainedTokenizerFast) -> int | None:
    """The special token that a conversation begins with; None where it begins with plain text, or with what also ends one."""
    text: Any = original.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)
    ids: list[int] = original.encode(text, add_special_tokens=False)
    special = {token_id for token_id, token in original.added_tokens_decoder.items() if token.special}
    return ids[0] if ids and ids[0] in special and ids[0] != original.eos_token_id else None


def _documents(spans: SpanTokenizer, texts: Texts) -> Iterator[list[int]]:
    """A bounded sample of all text, each language in its own vocabulary, the sides of a pair laid into one document."""
    yield from spans.encode_target_batch(sample(texts.target, SAMPLE_CHARACTERS))
    yield from spans.encode_english_batch(sample(texts.english, SAMPLE_CHARACTERS))
    english = spans.encode_english_batch(sample((pair[0] for pair in texts.pairs), SAMPLE_CHARACTERS))
    target = spans.encode_target_batch(pair[1] for pair in texts.pairs[: len(english)])
    for left, right in zip(english, target, strict=True):
        yield interleaved(left, right)


def _entries(spans: SpanTokenizer, lexicon: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
    """Words as they stand in text: after a space, and where the language writes spaces also at the start of a line."""
    forms = [(" ", " "), ("", "")] if spans.language.spaced else [("", " ")]
    for before_target, before_english in forms:
        target = spans.encode_target_batch(before_target + word for _, word in lexicon)
        yield from zip(target, spans.encode_english_batch(before_english + word for word, _ in lexicon), strict=True)


def sample(texts: Iterable[str], characters: int) -> list[str]:
    """Texts up to so many characters; the last one is cut."""
    taken: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        taken.append(text[:characters])
        characters -= len(text)
    return taken
