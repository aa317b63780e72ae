"""Join pairs of neighbours in rows of tokens, with exact counts: the inner loop of BPE training, on arrays.

Tokens are links of a chain (``before``, ``behind``), so a join moves nothing. Each join works on all places of its pair at once. Two
facts keep it small. All places of a pair come into being in one join, that of its younger part, and only become fewer: a pair that is
rare then is rare for ever and is not kept. And a place is noted for a pair once, so what is noted and still there is all there is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from transllm.tokenizer.words import Cut

Places = NDArray[np.int32]

_GONE = -1
"""In the ids: a token that was joined to the one before it. In the chains: the border of a pre-token."""
_RIGHT = (1 << 32) - 1


class Joiner:
    """A cut sample in which pairs are joined.

    Args:
        cut: the sample; its ids are changed.
        min_count: pairs that are seen less often are not counted at all.

    Attributes:
        counts: pair (left id << 32 | right id) -> how often it occurs now. A count is exact, but for tokens that repeat ("aaa" holds two
            pairs and room for one join).
        tokens: how many tokens the sample has now, all repetitions counted.
    """

    def __init__(self, cut: Cut, *, min_count: int) -> None:
        self._ids, self._times, self.least = cut.ids, cut.times, min_count
        self.tokens = int(cut.times.sum(dtype=np.int64))
        last = np.ones(len(cut.ids), dtype=np.bool_)
        last[:-1] = cut.first[1:]
        places = np.arange(len(cut.ids), dtype=np.int32)
        self._behind = np.where(last, np.int32(_GONE), places + np.int32(1))
        self._before = np.where(cut.first, np.int32(_GONE), places - np.int32(1))
        self.counts: dict[int, int] = {}
        self._where: dict[int, Places] = {}
        lefts = places[~last]
        bits = int(self._ids.max(initial=0)).bit_length()  # as short as can be, so that pairs and places sort in one number
        keys = self._ids[lefts].astype(np.int64) << bits | self._ids[self._behind[lefts]]
        for key, count, found in _grouped(keys, self._times[lefts], lefts, least=min_count):
            pair = key >> bits << 32 | key & ((1 << bits) - 1)
            self.counts[pair], self._where[pair] = count, found

    def forget(self, pair: int) -> None:
        """The pair will never be joined."""
        del self.counts[pair], self._where[pair]

    def join(self, pair: int, new: int) -> list[tuple[int, int]]:
        """Join a pair everywhere, from the left, to the token ``new``. Returns the pairs that came into being, with their counts."""
        ids, before, behind = self._ids, self._before, self._behind
        left, right = pair >> 32, pair & _RIGHT
        at = self._places(pair, left, right)
        self.forget(pair)
        second, front, rear = behind[at], before[at], behind[behind[at]]
        times = self._times[at]
        self.tokens -= int(times.sum(dtype=np.int64))
        ids[second] = _GONE
        ids[at] = new
        behind[at] = rear
        has_rear = rear != _GONE
        before[rear[has_rear]] = at[has_rear]
        # Where the token in front was itself joined away, the pair across the border belongs to the join before this one.
        has_front = front != _GONE
        has_front &= ids[front] != _GONE
        made: list[tuple[int, int]] = []
        front, at_rear, rear = front[has_front], at[has_rear], rear[has_rear]
        for near, count, found in _grouped(ids[front], times[has_front], front):
            self._lose(near << 32 | left, count)
            self._gain(near << 32 | new, count, found, made)
        for near, count, found in _grouped(ids[rear], times[has_rear], at_rear):
            self._lose(right << 32 | (left if near == new else near), count)
            self._gain(new << 32 | near, count, found, made)
        return made

    def occurrences(self, size: int) -> NDArray[np.int64]:
        """How often each id below ``size`` stands in the sample now, (size,)."""
        alive = self._ids != _GONE
        counted = np.bincount(self._ids[alive], weights=self._times[alive], minlength=size)
        return counted.astype(np.int64)

    def _places(self, pair: int, left: int, right: int) -> Places:
        """Where the pair stands now; of overlapping places the first, the third and so on."""
        noted = self._where[pair]
        noted = noted[self._ids[noted] == left]
        noted = noted[self._behind[noted] != _GONE]
        at: Places = noted[self._ids[self._behind[noted]] == right]
        if left != right or len(at) < 2:
            return at
        at.sort()
        number = np.arange(len(at))
        opens = np.ones(len(at), dtype=np.bool_)
        opens[1:] = self._behind[at[:-1]] != at[1:]
        every_second: Places = at[(number - np.maximum.accumulate(np.where(opens, number, 0))) % 2 == 0]
        return every_second

    def _lose(self, pair: int, count: int) -> None:
        if pair in self.counts:
            self.counts[pair] -= count

    def _gain(self, pair: int, count: int, places: Places, made: list[tuple[int, int]]) -> None:
        if count >= self.least:
            self.counts[pair], self._where[pair] = count, places
            made.append((pair, count))


def _sorted(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The keys in order, and where each stood. Plain numbers sort seven times faster than 20 million places do by their keys, so key and
    place are sorted as one number where both have room in it."""
    bits = len(keys).bit_length()
    if int(keys.max()).bit_length() + bits > 63:
        order = np.argsort(keys)
        return keys[order], order
    both = keys << bits | np.arange(len(keys))
    both.sort()
    return both >> bits, both & ((1 << bits) - 1)


def _grouped(keys: NDArray[np.int64] | NDArray[np.int32], times: NDArray[np.int32], places: Places, *,
             least: int = 0) -> list[tuple[int, int, Places]]:
    """For each different key: the key, the sum of its times and its places. Keys with a smaller sum than ``least`` are left out."""
    if not len(keys):
        return []
    keys, order = _sorted(keys.astype(np.int64))
    places = places[order]
    starts = np.flatnonzero(np.concatenate([np.ones(1, dtype=np.bool_), keys[1:] != keys[:-1]]))
    ends = np.append(starts[1:], len(keys))
    sums = np.add.reduceat(times[order], starts, dtype=np.int64)
    kept = sums >= least
    return [(key, count, places[start:end]) for key, count, start, end in
            zip(keys[starts[kept]].tolist(), sums[kept].tolist(), starts[kept].tolist(), ends[kept].tolist(), strict=True)]
