"""The arrays of BPE training: the same joins as one by one, exact counts, and a size that follows what is saved."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast as Fast

from transllm.tokenizer import extend_tokenizer, fertility, learn_merges
from transllm.tokenizer.backend import plain_backend
from transllm.tokenizer.joining import Joiner
from transllm.tokenizer.words import Cut, cut, stretches


@pytest.fixture(scope="module", params=["gpt2", "llama3", "qwen"])
def original(request: pytest.FixtureRequest, make_original: Callable[[str], Fast]) -> Fast:
    """Byte-level: SentencePiece counts words in a form of its own."""
    return make_original(request.param)


def _cut(words: list[list[int]], times: list[int]) -> Cut:
    return Cut(np.array([token for word in words for token in word], dtype=np.int32),
               np.array([place == 0 for word in words for place in range(len(word))]),
               np.repeat(np.array(times, dtype=np.int32), [len(word) for word in words]))


def _one_by_one(word: list[int], left: int, right: int, new: int) -> list[int]:
    out: list[int] = []
    for token in word:
        if out and (out[-1], token) == (left, right):
            out[-1] = new
        else:
            out.append(token)
    return out


def test_joins_are_those_made_one_by_one() -> None:
    """On words of three letters, where repetitions ("aaaa") and neighbouring joins ("abab") are everywhere."""
    draw = random.Random(3)
    words = [[draw.randrange(3) for _ in range(draw.randrange(1, 14))] for _ in range(200)]
    times = [draw.randrange(1, 5) for _ in words]
    joiner = Joiner(_cut(words, times), min_count=1)
    new = 3
    while joiner.counts and new < 60:
        pair = min(joiner.counts, key=lambda pair: (-joiner.counts[pair], pair))
        if joiner.counts[pair] == 0:
            joiner.forget(pair)
            continue
        counts: Counter[tuple[int, int]] = Counter()
        for word, number in zip(words, times, strict=True):
            for both in pairwise(word):
                counts[both] += number
        left, right = divmod(pair, 1 << 32)
        # Counts of tokens that repeat may be too low by overlaps that were joined away; all others are exact.
        for (one, other), count in counts.items():
            if one != other:
                assert joiner.counts.get(one << 32 | other, 0) == count
        joiner.join(pair, new)
        words = [_one_by_one(word, left, right, new) for word in words]
        assert joiner.tokens == sum(len(word) * number for word, number in zip(words, times, strict=True))
        expected: Counter[int] = Counter()
        for word, number in zip(words, times, strict=True):
            expected.update({token: number * count for token, count in Counter(word).items()})
        assert joiner.occurrences(new + 1).tolist() == [expected[token] for token in range(new + 1)]
        new += 1
    assert new > 20


def test_stretches_are_cut_as_the_text_is(original: Fast, texts: Any) -> None:
    backend = plain_backend(original)
    lines = [*texts.spanish[:50], "Uno,  dos\ny tres"]
    told: list[tuple[int, int]] = []
    found = cut(backend, stretches(lines), progress=lambda done, total: told.append((done, total)))
    whole = Counter(token for line in lines for part in line.split("\n") for token in backend.encode(part).ids)
    assert Counter({int(token): int(number) for token, number in zip(*np.unique(np.repeat(found.ids, found.times), return_counts=True),
                                                                      strict=True)}) == whole
    assert told[-1][0] == told[-1][1] > 0
    assert len(cut(backend, {}).ids) == 0


def test_the_curve_is_what_the_tokenizer_then_does(original: Fast, texts: Any) -> None:
    learned = learn_merges(original, texts.thai, texts.english, size=150, min_count=3, latin=False)
    assert [size for size, _ in learned.curve] == [0, 100, 150]
    for size, tokens in learned.curve:
        part = learn_merges(original, texts.thai, texts.english, size=size, min_count=3, latin=False)
        extended = extend_tokenizer(original, part, markers=["<EN>"], pad=None)
        if size or not learned.whole_words:
            assert fertility(extended, texts.thai).tokens == tokens
    assert learned.curve[0][1] > learned.curve[1][1] > learned.curve[2][1]


def _many_words(count: int) -> list[str]:
    """Words of which each further one is rarer: what a piece saves falls."""
    draw = random.Random(5)
    words = ["".join(draw.choice("кгшзхфвпрлджбмтсн") + draw.choice("аеиоуыэюя") for _ in range(draw.randrange(2, 5))) for _ in range(4000)]
    return [" ".join(draw.choices(words, [1 / (1 + rank) for rank in range(len(words))], k=count))]


def test_the_size_follows_what_a_thousand_more_would_save(gpt2_like: Fast) -> None:
    text = _many_words(40_000)
    fixed = learn_merges(gpt2_like, text, [], size=4000, min_count=2, latin=False)
    tokens = dict(fixed.curve)
    for share in (0.4, 0.1):
        chosen = learn_merges(gpt2_like, text, [], size=4000, min_count=2, latin=False, least_saving=share)
        size = len(chosen.pieces)
        assert size % 100 == 0 and chosen.merges == fixed.merges[:size]
        assert 1 - tokens[size + 1000] / tokens[size] < share
        assert all(1 - tokens[smaller + 1000] / tokens[smaller] >= share for smaller in range(0, size, 100))
        assert chosen.only_parts == learn_merges(gpt2_like, text, [], size=size, min_count=2, latin=False).only_parts
    assert learn_merges(gpt2_like, text, [], size=300, min_count=2, latin=False, least_saving=0.1).merges == fixed.merges[:300]


def test_pieces_that_are_only_parts_are_counted(gpt2_like: Fast) -> None:
    learned = learn_merges(gpt2_like, ["жужелица"] * 30, [], size=100, min_count=2, latin=False)
    assert learned.only_parts == len(learned.pieces) - 1 > 0


def test_code_and_addresses_are_not_learned(original: Fast) -> None:
    sample = ["la función(ñ) => {ñ}; ñ_ñ https://año.es/ñ www.niñez.html ñandú ñandú"] * 50
    learned = learn_merges(original, sample, [], size=500, min_count=2)
    assert learned.dropped["code"] > 0 and learned.dropped["url"] > 0
    assert not any(sign in piece for piece in learned.pieces for sign in ("{", "=", "_", "/"))
    assert "www" not in learned.pieces and "http" not in learned.pieces


def test_short_plain_pieces_inside_words_must_be_worth_it(gpt2_like: Fast) -> None:
    """They stand in names that no English sample holds."""
    often, seldom = ["ñzos"] * 2000, ["ñkuq"] * 3
    common = learn_merges(gpt2_like, often + ["niño"] * 9000, [], size=300, min_count=2)
    rare = learn_merges(gpt2_like, ["ñzos " * 40] * 900 + seldom, [], size=300, min_count=2)
    assert "zo" in common.pieces or "os" in common.pieces or "zos" in common.pieces
    assert rare.dropped["short"] > 0 and not any(piece in rare.pieces for piece in ("ku", "uq", "kuq"))
