"""Which pairs are learned from first."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

from transllm.data.coverage import by_coverage, words_of

COMMON = ("house", "dog", "red", "the", "runs", "sleeps")


def _pairs(*texts: str) -> list[dict[str, str]]:
    return [{"english": text, "target": text} for text in texts]


def test_new_words_go_before_words_that_were_shown() -> None:
    pairs = _pairs("the house the house", "the red dog", "zyx kwv utsr", "the dog runs", "the dog runs and runs far away from here")
    order = list(by_coverage(pairs, COMMON))
    assert sorted(order) == [0, 1, 2, 3, 4], "every pair comes once"
    assert order[0] in (1, 3) and order[-1] == 2, "short and full of common words first, none of them last"


def test_it_is_the_greedy_choice() -> None:
    """Against looking at all pairs again at each step."""
    draw = random.Random(5)
    pairs = _pairs(*(" ".join(draw.choices([*COMMON, "far", "away"], k=draw.randint(1, 9))) for _ in range(60)))

    def worth(numbers: tuple[int, ...]) -> float:
        shown = Counter(word for number in numbers for word in words_of(pairs[number]["english"]) if word in COMMON)
        return sum(math.sqrt(times) for times in shown.values())

    order = list(by_coverage(pairs, COMMON))
    for step, number in enumerate(order[:30]):
        before = tuple(order[:step])
        gains = {other: (worth((*before, other)) - worth(before)) / (2 * len(pairs[other]["english"]) + 20)
                 for other in range(len(pairs)) if other not in before}
        assert gains[number] >= max(gains.values()) - 1e-12


def test_a_part_of_it_shows_more_words_than_chance() -> None:
    vocabulary = [f"{first}{last}" for first, last in itertools.product("bcdfglmnprst", "aeiou")]
    draw = random.Random(1)
    weights = [1 / (place + 1) for place in range(len(vocabulary))]
    pairs = _pairs(*(" ".join(draw.choices(vocabulary, weights, k=6)) for _ in range(400)))

    def often(numbers: list[int]) -> int:
        shown = Counter(word for number in numbers for word in words_of(pairs[number]["english"]))
        return sum(times >= 3 for times in shown.values())

    chosen = list(itertools.islice(by_coverage(pairs, vocabulary), 40))
    assert often(chosen) > 1.3 * often(draw.sample(range(400), 40))
