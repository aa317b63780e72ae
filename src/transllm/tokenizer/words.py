"""A sample of text as rows of original tokens, each stretch between two spaces once, with how often it occurs.

No rule of a byte-level BPE joins what a space parts, so a text is cut at its spaces first and what repeats is cut into tokens
once: a small part of a spaced language's text, three quarters of Thai's (20 million characters), whose stretches are whole clauses. What is
left of the work is the tokenizer's own and runs on all cores. Line ends are left out: they are no part of words. What SentencePiece
tokenizers do otherwise is in ``sentencepiece.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

Progress: TypeAlias = Callable[[int, int], None]

_BATCH = 200_000
"""Characters that are cut at once. What the tokenizer gives back takes some 300 bytes a token until it is copied."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Tokens of many pre-tokens, one behind the other.

    Attributes:
        ids: int32 (tokens,).
        first: bool (tokens,): whether a pre-token begins here.
        times: int32 (tokens,): how often the pre-token occurs.
    """

    ids: NDArray[np.int32]
    first: NDArray[np.bool_]
    times: NDArray[np.int32]

    def pairs(self) -> NDArray[np.int64]:
        """All pairs of neighbours inside a pre-token, each once, as :func:`pair_key` writes them."""
        inside = ~self.first[1:]
        found: NDArray[np.int64] = np.unique(pair_keys(self.ids[:-1][inside], self.ids[1:][inside]))
        return found


def pair_keys(left: NDArray[np.int32], right: NDArray[np.int32]) -> NDArray[np.int64]:
    """Pairs of ids as one number each, in the order of the pairs."""
    return (left.astype(np.int64) << 32) | right


def stretches(texts: Iterable[str]) -> Counter[str]:
    """What stands between spaces and line ends, each with the space before it, and how often."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(text.replace(" ", "\n ").split("\n"))
    del found[""]
    return found


def cut(backend: Tokenizer, counted: Mapping[str, int], *, single: re.Pattern[str] | None = None, progress: Progress | None = None) -> Cut:
    """The stretches in tokens.

    Args:
        backend: from :func:`transllm.tokenizer.backend.plain_backend`.
        counted: stretches of text and how often each occurs, from :func:`stretches`.
        single: matches whole stretches that are known to be one pre-token of a byte-level backend. The tokenizer is much faster where
            it need neither look for pre-tokens nor say where they begin.
        progress: called with (characters so far, all).
    """
    total, done = sum(map(len, counted)), 0
    parts: list[Cut] = []
    whole = [text for text in counted if single is not None and single.fullmatch(text)]
    known = set(whole)
    rest = [text for text in counted if text not in known]
    for texts, tokenizer, read in ((whole, _without_rule(backend), _cut_whole), (rest, backend, _cut_apart)):
        for batch in batches(texts):
            ids, first, lengths = read(tokenizer, batch)
            times = np.array([counted[text] for text in batch], dtype=np.int32)
            parts.append(Cut(ids, first, np.repeat(times, lengths)))
            done += sum(map(len, batch))
            if progress is not None:
                progress(done, total)
    return joined(parts)


def joined(parts: list[Cut]) -> Cut:
    """The parts, one behind the other."""
    if not parts:
        return Cut(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.int32))
    return Cut(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "first", "times")))


def _without_rule(backend: Tokenizer) -> Tokenizer:
    """A byte-level backend that takes each text as one pre-token."""
    whole = Tokenizer(backend.model)
    whole.normalizer = backend.normalizer
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return whole


_Read: TypeAlias = tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]


def _cut_whole(backend: Tokenizer, batch: list[str]) -> _Read:
    """Ids, where pre-tokens begin, and how many ids each text has; each text is one pre-token."""
    encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
    lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, count=int(lengths.sum()))
    first = np.zeros(len(ids), dtype=np.bool_)
    first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    return ids, first, lengths


def _cut_apart(backend: Tokenizer, batch: list[str]) -> _Read:
    """The same of texts that may hold several pre-tokens."""
    encodings = backend.encode_batch(batch, add_special_tokens=False)
    lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, count=int(lengths.sum()))
    words = np.fromiter(chain.from_iterable(encoding.word_ids for encoding in encodings), np.int64, count=len(ids))
    first = np.zeros(len(ids), dtype=np.bool_)
    first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    first[1:] |= words[1:] != words[:-1]
    return ids, first, lengths


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, some hundred thousand characters at once."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
