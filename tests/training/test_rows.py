"""Rows on disk: as they went in, and none that trains nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transllm.errors import TrainingError
from transllm.training import DRAWS, Drawn, EncodedRow, Rows, batches_of, write_rows

ROWS = [EncodedRow([5, 70_000, 3], [False, True, True], 9), EncodedRow([1, 2], [True, True], 0),
        EncodedRow([4, 4, 4, 4], [False, False, False, True], 3)]


def test_round_trip(tmp_path: Path) -> None:
    written = write_rows(iter(ROWS), tmp_path)
    opened = Rows.open(tmp_path)
    assert [opened.row(number) for number in range(3)] == [written.row(number) for number in range(3)] == ROWS
    assert len(opened) == 3 and opened.tokens == 9 and opened.lengths.tolist() == [3, 2, 4]
    assert opened.digest == written.digest


def test_drawn_tokens_round_trip_and_stand_where_they_are_foretold(tmp_path: Path) -> None:
    tokens = np.arange(2 * DRAWS, dtype=np.int32).reshape(2, DRAWS)
    row = EncodedRow([5, 6, 7, 8, 9], [False, False, True, True, True], 9, drawn=Drawn(2, tokens))
    opened = write_rows([ROWS[0], row, ROWS[1], row], tmp_path)
    assert [opened.row(number).drawn is None for number in range(4)] == [True, False, True, False]
    found = opened.row(3).drawn
    assert found is not None and found.at == 2 and (found.tokens == tokens).all()
    (batch,) = batches_of(opened, [[0, 1, 3]], device=torch.device("cpu"))
    assert batch.soft is not None
    learned = [(int(batch.labels_T[place]), batch.soft.drawn_SM[which].tolist()) for place, which in enumerate(batch.soft.which_T.tolist())
               if which >= 0]
    assert learned == [(7, tokens[0].tolist()), (8, tokens[1].tolist())] * 2
    other = replace(row, drawn=Drawn(2, tokens + 1))
    assert write_rows([ROWS[0], other, ROWS[1], row], tmp_path / "other").digest != opened.digest
    with pytest.raises(TrainingError, match="Row 0 learns from a distribution where nothing is learned"):
        write_rows([replace(row, drawn=Drawn(1, tokens))], tmp_path / "wrong")


@settings(max_examples=30)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=8).map(
    lambda pairs: [*pairs, (7, True)]), min_size=1, max_size=8))
def test_any_rows_round_trip(tmp_path_factory: pytest.TempPathFactory, drawn: list[list[tuple[int, bool]]]) -> None:
    rows = [EncodedRow([token for token, _ in row], [trained for _, trained in row], len(row)) for row in drawn]
    opened = write_rows(rows, tmp_path_factory.mktemp("rows"))
    assert [opened.row(number) for number in range(len(opened))] == rows


@pytest.mark.parametrize("changed", [
    EncodedRow([5, 70_001, 3], [False, True, True], 9), EncodedRow([5, 70_000, 3], [False, False, True], 9),
    EncodedRow([5, 70_000, 3], [False, True, True], 8)])
def test_the_digest_covers_everything(tmp_path: Path, changed: EncodedRow) -> None:
    assert write_rows(ROWS, tmp_path / "one").digest != write_rows([changed, *ROWS[1:]], tmp_path / "two").digest
    assert write_rows(ROWS, tmp_path / "one").digest == write_rows(ROWS, tmp_path / "three").digest


def test_rows_of_an_earlier_version_are_none(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path)
    assert Rows.are_in(tmp_path)
    (tmp_path / "heard.npy").unlink()
    assert not Rows.are_in(tmp_path)


@pytest.mark.parametrize("bad", [EncodedRow([1, 2, 3], [False] * 3, 3), EncodedRow([1, 2], [True, False], 2), EncodedRow([1], [True], 1),
                                 EncodedRow([], [], 0), EncodedRow([1, 2, 3], [True, True], 3)])
def test_a_row_that_trains_nothing_is_an_error(tmp_path: Path, bad: EncodedRow) -> None:
    with pytest.raises(TrainingError, match="Row 1 "):
        write_rows([ROWS[0], bad], tmp_path)
    assert not (tmp_path / "rows.json").exists()


def test_no_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no row"):
        write_rows([], tmp_path)


def test_a_folder_that_is_written_again_is_not_whole_before_it_is(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path)
    with pytest.raises(TrainingError):
        write_rows([ROWS[0], EncodedRow([1, 2], [False, False], 1)], tmp_path)
    assert not (tmp_path / "rows.json").exists(), "rows of an earlier try must not pass for those of this one"
