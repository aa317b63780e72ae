"""Packing: every row once, no bin too full, the same order for the same seed."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transllm.errors import TrainingError
from transllm.recipe.schema import TrainStage
from transllm.training import IGNORE, EncodedRow, batches_of, pack, write_rows
from transllm.training.rows import Rows
from transllm.training.schedule import plan_steps

CAPACITY = 64


def _packed(lengths: list[int], *, capacity: int, seed: int) -> list[list[int]]:
    return list(pack(np.array(lengths, dtype=np.int64), capacity=capacity, seed=seed))


@given(st.lists(st.integers(1, CAPACITY), max_size=200), st.integers(0, 5))
def test_every_row_once_and_no_bin_too_full(lengths: list[int], seed: int) -> None:
    bins = _packed(lengths, capacity=CAPACITY, seed=seed)
    assert sorted(row for members in bins for row in members) == list(range(len(lengths)))
    loads = sorted(sum(lengths[row] for row in members) for members in bins)
    assert all(0 < load <= CAPACITY for load in loads)
    if len(loads) > 1:
        assert loads[0] + loads[1] > CAPACITY, "two bins that fit in one would be waste"
    assert bins == _packed(lengths, capacity=CAPACITY, seed=seed)


def test_the_seed_gives_the_order() -> None:
    lengths = [1 + number % 40 for number in range(300)]
    assert _packed(lengths, capacity=CAPACITY, seed=1) != _packed(lengths, capacity=CAPACITY, seed=2)
    sizes = [max(lengths[row] for row in members) for members in _packed(lengths, capacity=CAPACITY, seed=1)]
    assert sizes != sorted(sizes, reverse=True), "long rows must not all come first"


def test_padding_is_small() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 500, (3000,), generator=generator).tolist()
    bins = _packed(lengths, capacity=2048, seed=1)
    assert sum(lengths) / (len(bins) * 2048) > 0.98


def test_more_rows_than_a_window() -> None:
    lengths = [3] * 10_000
    bins = _packed(lengths, capacity=CAPACITY, seed=1)
    assert Counter(row for members in bins for row in members) == Counter(range(10_000))


def test_a_row_that_does_not_fit_is_an_error() -> None:
    assert _packed([CAPACITY], capacity=CAPACITY, seed=1) == [[0]]
    with pytest.raises(TrainingError, match=f"{CAPACITY + 1} tokens"):
        _packed([3, CAPACITY + 1, 2], capacity=CAPACITY, seed=1)


@functools.cache
def _row(number: int) -> EncodedRow:
    length = 3 + number % 5
    return EncodedRow([number * 10 + place for place in range(length)], [place % 3 != 1 for place in range(length)], number)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return write_rows([_row(number) for number in range(12)], tmp_path / "rows")


def test_batches_hold_ids_labels_and_documents(rows: Rows) -> None:
    batches = list(batches_of(rows, [[3, 1], [7]], device=torch.device("cpu")))
    assert len(batches) == 2
    first = batches[0]
    assert first.ids_1T.tolist() == [_row(3).ids + _row(1).ids]
    # The label of a token is the next one of its own row, where that one is trained.
    expected = [following if trained else IGNORE for row in (_row(3), _row(1))
                for following, trained in zip([*row.ids[1:], IGNORE], [*row.trained[1:], False], strict=True)]
    assert first.labels_T.tolist() == expected
    assert first.labels == sum(label != IGNORE for label in expected) == sum(sum(_row(number).trained[1:]) for number in (3, 1))
    assert first.n_bytes == 4
    assert first.documents.positions_1T.tolist() == [[*range(len(_row(3).ids)), *range(len(_row(1).ids))]]


def _stage(**settings: float) -> TrainStage:
    return TrainStage.model_validate({"tokens": 200, "batch_tokens": 40, "micro_tokens": 20, "sequence_length": 8, **settings})


def test_the_plan_spends_the_budget_over_several_epochs(rows: Rows) -> None:
    plan = plan_steps(rows, _stage(), seed=1)
    lengths = rows.lengths.tolist()
    spent = sum(lengths[row] for bins in plan for members in bins for row in members)
    assert 200 <= spent < 220
    assert all(len(bins) == 2 for bins in plan[:-1])
    seen = Counter(row for bins in plan for members in bins for row in members)
    assert set(seen) == set(range(12)) and max(seen.values()) - min(seen.values()) <= 1
    assert list(plan) == list(plan_steps(rows, _stage(), seed=1)) != list(plan_steps(rows, _stage(), seed=2))
    assert plan.most == max(map(len, plan)) and plan[-1] == list(plan)[-1] and plan[1:3] == list(plan)[1:3]
