"""Rows on disk: as they went in, and none that trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transllm.errors import TrainingError
from transllm.training import EncodedRow, Rows, write_rows

ROWS = [EncodedRow([5, 70_000, 3], [False, True, True], 9), EncodedRow([1, 2], [True, True], 0),
        EncodedRow([4, 4, 4, 4], [False, False, False, True], 3)]


def test_round_trip(tmp_path: Path) -> None:
    written = write_rows(iter(ROWS), tmp_path)
    opened = Rows.open(tmp_path)
    assert [opened.row(number) for number in range(3)] == [written.row(number) for number in range(3)] == ROWS
    assert len(opened) == 3 and opened.tokens == 9 and opened.lengths.tolist() == [3, 2, 4]
    assert opened.digest == written.digest


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
