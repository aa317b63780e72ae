"""The rows of bitext: which side of a pair is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transllm import load_recipe
from transllm.pipeline import training_stages, transform
from transllm.pipeline.stage import Context
from transllm.progress import Silent
from transllm.tokenizer import SpanTokenizer
from transllm.training import EncodedRow, Rows


@pytest.fixture(scope="module")
def before(home: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to *pretrain*."""
    folder = tmp_path_factory.mktemp("bitext")
    mine = home.at(folder / "home")
    mine.write(pretrain={"tokens": 0}, bitext={"tokens": 300, "replay": 0.0, "to_target": 0.5})
    return transform(load_recipe(mine.recipe), runs=folder / "runs", until="pretrain").folder


def _rows(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, source_loss: str) -> list[EncodedRow]:
    """What *bitext* would train on."""
    class Asked(Exception):
        """Its rows are there."""

    def train(_: Any, rows: Rows, **__: Any) -> None:
        raise Asked([rows.row(number) for number in range(len(rows))])

    monkeypatch.setattr(training_stages, "train", train)
    monkeypatch.setattr(training_stages, "row_folder", lambda *_: folder / "rows")
    with pytest.raises(Asked) as asked:
        recipe = load_recipe(run / "recipe.yaml", overrides=[f"bitext.source_loss={source_loss}"])
        training_stages.bitext(Context(recipe, run, folder, Silent()))
    found: list[EncodedRow] = asked.value.args[0]
    return found


@pytest.mark.parametrize(("source_loss", "of_english", "of_target"), [
    ("true", True, True), ("target", False, True), ("false", False, False)])
def test_a_source_is_learned_where_the_recipe_says(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source_loss: str, *,
                                                   of_english: bool, of_target: bool) -> None:
    markers = SpanTokenizer.load(before / "extend").markers
    seen = set()
    for row in _rows(before, tmp_path, monkeypatch, source_loss):
        into_target = row.ids[0] == markers.english
        middle = row.ids.index(markers.target if into_target else markers.english)
        source, translation = row.trained[1:middle], row.trained[middle + 1:]
        assert not row.trained[0] and not row.trained[middle], "no marker of a side is to be guessed"
        assert all(translation) and set(source) == {of_english if into_target else of_target}
        seen.add(into_target)
    assert seen == {True, False}
