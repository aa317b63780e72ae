"""The auxiliary embedding: like company, like vectors."""

from __future__ import annotations

import random

import torch

from transllm.model import interleaved
from transllm.model.initial.auxiliary import train_auxiliary


def test_pairs_are_laid_side_by_side_by_relative_place() -> None:
    assert interleaved([1, 2, 3, 4], [10, 20]) == [1, 10, 2, 3, 20, 4]
    assert interleaved([1, 2], [10, 20]) == [1, 10, 2, 20]
    assert interleaved([], [10]) == [10]


def _texts() -> list[list[int]]:
    """Two topics; tokens 0 to 9 belong to the first, 10 to 19 to the second, 20 to both; 99 is rare."""
    draw = random.Random(0)
    texts = [[draw.randrange(10) + 10 * (number % 2) for _ in range(12)] + [20] for number in range(400)]
    texts[0] += [99] * 3
    return texts


def test_tokens_of_one_topic_are_closer_than_those_of_two() -> None:
    found = train_auxiliary(_texts(), seed=1)
    assert found.ids_M.tolist() == list(range(21)), "a token that occurs three times gets no vector"
    torch.testing.assert_close(found.vectors_Md.norm(dim=1), torch.ones(21))
    likeness = found.vectors_Md[:20] @ found.vectors_Md[:20].T
    same = torch.block_diag(torch.ones(10, 10), torch.ones(10, 10)).bool() & ~torch.eye(20).bool()
    assert likeness[same].min() > likeness[~same & ~torch.eye(20).bool()].max()


def test_a_pair_tells_which_words_mean_the_same() -> None:
    draw = random.Random(0)
    pairs = []
    for _ in range(600):
        words = [draw.randrange(30) for _ in range(6)]
        pairs.append(interleaved(words, [100 + word for word in words]))
    new, new_vectors, shared, shared_vectors = train_auxiliary(pairs, seed=1).split(range(100, 130), range(30))
    assert new == list(range(100, 130)) and shared == list(range(30))
    assert (new_vectors @ shared_vectors.T).argmax(1).tolist() == list(range(30))


def test_the_seed_decides_and_documents_end_the_company() -> None:
    left, right = train_auxiliary(_texts(), seed=1), train_auxiliary(_texts(), seed=1)
    assert torch.equal(left.vectors_Md, right.vectors_Md)
    apart = train_auxiliary([[number % 2] for number in range(100)], seed=1)
    assert not len(apart.ids_M), "tokens in documents of their own keep no company"


def test_no_text_gives_no_vectors() -> None:
    found = train_auxiliary([], seed=1)
    assert len(found.ids_M) == len(found.vectors_Md) == 0
    new, _, shared, _ = found.split([5], [6])
    assert new == shared == []
