"""How many tokens a text costs, and where two tokenizers cut it differently."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from transllm.tokenizer.backend import plain_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Fertility:
    """Tokens against three measures of text.

    Words are what stands between white space, so tokens a word says nothing of a language written without spaces; tokens a
    character and a byte hold for all. Of no text at all, each ratio is 0.
    """

    tokens_per_word: float
    tokens_per_character: float
    tokens_per_byte: float
    tokens: int
    words: int
    characters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many sentences two tokenizers cut the same way.

    Attributes:
        sentences: how many were compared.
        identical: how many got the same ids.
        differences: the first that did not: ``{"text": ..., "before": [pieces], "after": [pieces]}``.
    """

    sentences: int
    identical: int
    differences: list[dict[str, str | list[str]]]


def fertility(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Fertility:
    """Count tokens (special tokens are neither added nor read), words, characters and UTF-8 bytes of the texts."""
    backend = plain_backend(tokenizer)
    tokens = words = characters = size = 0
    rest = iter(texts)
    while batch := list(islice(rest, _BATCH)):
        tokens += sum(len(encoding) for encoding in backend.encode_batch_fast(batch, add_special_tokens=False))
        words += sum(len(text.split()) for text in batch)
        characters += sum(map(len, batch))
        size += sum(len(text.encode()) for text in batch)
    return Fertility(tokens / (words or 1), tokens / (characters or 1), tokens / (size or 1), tokens, words, characters, size)


def compare(original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, sentences: Iterable[str], *,
            keep: int = 20) -> Comparison:
    """Compare the ids that two tokenizers give to each sentence, and keep the first ``keep`` that differ."""
    before, after = plain_backend(original), plain_backend(extended)
    count = identical = 0
    differences: list[dict[str, str | list[str]]] = []
    rest = iter(sentences)
    while batch := list(islice(rest, _BATCH)):
        count += len(batch)
        for text, old, new in zip(batch, before.encode_batch_fast(batch, add_special_tokens=False),
                                  after.encode_batch_fast(batch, add_special_tokens=False), strict=True):
            if old.ids == new.ids:
                identical += 1
            elif len(differences) < keep:
                differences.append({"text": text, "before": [piece for piece, _ in _cut(before, text)],
                                    "after": [piece for piece, _ in _cut(after, text)]})
    return Comparison(count, identical, differences)


def segment(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[str, int]]:
    """The tokens of a text as (characters, id); the characters concatenate to the text.

    A character that several tokens share is shown with the last of them, the others show what else they hold, or nothing.
    """
    return _cut(plain_backend(tokenizer), text)


def _cut(backend: Tokenizer, text: str) -> list[tuple[str, int]]:
    encoding = backend.encode(text, add_special_tokens=False)
    offsets: list[tuple[int, int]] = encoding.offsets
    pieces: list[tuple[str, int]] = []
    done = 0
    for place, token_id in enumerate(encoding.ids):
        end = offsets[place + 1][0] if place + 1 < len(offsets) else len(text)
        pieces.append((text[done:max(done, end)], token_id))
        done = max(done, end)
    return pieces
