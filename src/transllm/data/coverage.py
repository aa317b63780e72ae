"""Which sentence pairs to learn from, where there are more than the budget lets one learn."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

_WORD = re.compile(r"[^\W\d_]+")

# What a row costs beside its text, in characters: markers and the end.
_ROW = 20


def words_of(text: str) -> list[str]:
    """The words of a text in small letters."""
    return _WORD.findall(text.lower())


def by_coverage(pairs: Sequence[Mapping[str, str]], common: Collection[str]) -> Iterator[int]:
    """Numbers of all pairs, at each moment the one that adds most for its length to what was shown.

    A word that was shown n times is worth sqrt(n), so that the tenth time counts less than the second; what has been shown is worth the sum
    over common words. Such a sum is submodular: where each pair is small beside the budget, taking the best again and again comes within
    1 - 1/e of the best choice (Nemhauser et al. 1978), and what a pair added when it was last looked at is a bound of what it adds now, so
    that few are looked at again.

    Args:
        pairs: with an ``english`` and a ``target`` side. Words are counted in English, where every language's pairs have them.
        common: the words that count.
    """
    words = [Counter(word for word in words_of(pair["english"]) if word in common) for pair in pairs]
    costs = [len(pair["english"]) + len(pair["target"]) + _ROW for pair in pairs]
    shown: Counter[str] = Counter()

    def added(number: int) -> float:
        return sum(math.sqrt(shown[word] + times) - math.sqrt(shown[word]) for word, times in words[number].items()) / costs[number]

    queue = [(-added(number), number) for number in range(len(pairs))]
    heapq.heapify(queue)
    while queue:
        _, number = queue[0]
        now = -added(number)
        heapq.heapreplace(queue, (now, number))
        if queue[0][1] != number:
            continue
        heapq.heappop(queue)
        shown.update(words[number])
        yield number
