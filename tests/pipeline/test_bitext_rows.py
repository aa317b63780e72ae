"""The rows of bitext: which pairs, and which side of a pair is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from transllm import load_recipe
from transllm.pipeline import training_stages, transform
from transllm.pipeline.prepare import read_part
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


def _rows(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> list[EncodedRow]:
    """What *bitext* would train on."""
    class Asked(Exception):
        """Its rows are there."""

    def train(_: Any, rows: Rows, **__: Any) -> None:
        raise Asked([rows.row(number) for number in range(len(rows))])

    monkeypatch.setattr(training_stages, "train", train)
    monkeypatch.setattr(training_stages, "row_folder", lambda *_: folder / "rows")
    with pytest.raises(Asked) as asked:
        recipe = load_recipe(run / "recipe.yaml", overrides=list(settings))
        training_stages.bitext(Context(recipe, run, folder, Silent()))
    found: list[EncodedRow] = asked.value.args[0]
    return found


@pytest.mark.parametrize(("source_loss", "of_english", "of_target"), [
    ("true", True, True), ("target", False, True), ("false", False, False)])
def test_a_source_is_learned_where_the_recipe_says(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source_loss: str, *,
                                                   of_english: bool, of_target: bool) -> None:
    markers = SpanTokenizer.load(before / "extend").markers
    seen = set()
    for row in _rows(before, tmp_path, monkeypatch, f"bitext.source_loss={source_loss}"):
        into_target = row.ids[0] == markers.english
        middle = row.ids.index(markers.target if into_target else markers.english)
        source, translation = row.trained[1:middle], row.trained[middle + 1:]
        assert not row.trained[0] and not row.trained[middle], "no marker of a side is to be guessed"
        assert all(translation) and set(source) == {of_english if into_target else of_target}
        seen.add(into_target)
    assert seen == {True, False}


def test_words_come_before_chosen_pairs(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lexicon is learned whole, without what is held out, and sentences fill what it leaves of the budget."""
    held = read_part(before, "pairs", "held_out")[0]
    (tmp_path / "words.tsv").write_text(f"the tea\tel té\nthe zoo\tel parque\nno\tno\n{held['english']}\t{held['target']}\n",
                                        encoding="utf-8")
    words = {"files": str(tmp_path / "words.tsv"), "columns": [0, 1]}
    renderer = Context(load_recipe(before / "recipe.yaml"), before, tmp_path, Silent()).renderer

    def texts(*more: str) -> list[str]:
        folder = tmp_path / str(len(more))
        folder.mkdir()
        rows = _rows(before, folder, monkeypatch, f"bitext.lexicon=[{json.dumps(words)}]", *more)
        return [renderer.spans.decode(row.ids) for row in rows]

    by_chance, chosen = texts(), texts("bitext.choose=coverage")
    for rows in (by_chance, chosen):
        assert all("el té" in rows[number] or "el parque" in rows[number] for number in (0, 1))
        assert not any(held["english"] in row for row in rows)
    assert by_chance[:2] == chosen[:2] and by_chance[2:] != chosen[2:]
