"""Answers that met the limit: their words serve recovery, their whole sentences the chains if the recipe says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transllm import load_recipe
from transllm.pipeline import transform
from transllm.pipeline.bridge import _trimmed
from transllm.pipeline.mixture import _recovery_row
from transllm.tcot import Renderer
from transllm.tokenizer import SpanTokenizer
from transllm.training import Rows


@pytest.mark.parametrize(("answer", "kept"), [
    ("It rains. It pours. The old man", "It rains. It pours."),
    ('He said "No!" Then he', 'He said "No!"'),
    ("Two things:\n1. Salt.\n2. Pep", "Two things:\n1. Salt."),
    ("1. ", "1. "),
    ("No sentence ends in 3.5 litres of wat", "No sentence ends in 3.5 litres of wat"),
])
def test_trimmed_to_whole_sentences(answer: str, kept: str) -> None:
    row = _trimmed({"answer": answer, "finish": "length"})
    assert row["answer"] == kept and row["finish"] == ("stop" if kept != answer else "length")
    assert _trimmed({"answer": answer, "finish": "stop"})["answer"] == answer, "what was not cut stays"


def test_cut_answers_recover_without_an_end(tiny_spans: SpanTokenizer) -> None:
    renderer = Renderer(tiny_spans)
    row = {"prompt": "Why?", "answer": "Because it rains"}
    cut, whole = (_recovery_row(renderer, row | {"finish": finish}) for finish in ("length", "stop"))
    assert whole.ids == [*cut.ids, renderer.end_id] and whole.trained == [*cut.trained, True]
    assert tiny_spans.decode([token for token, trained in zip(cut.ids, cut.trained, strict=True) if trained]).endswith("Because it rains")


def test_share_of_directions(home: Any, tmp_path: Path) -> None:
    mine = home.at(tmp_path / "home")
    mine.write(bitext={"to_target": 1.0, "replay": 0.0, "tokens": 300}, pretrain={"tokens": 0})
    run = transform(load_recipe(mine.recipe), runs=tmp_path / "runs", until="bitext").folder
    markers, rows = SpanTokenizer.load(run / "extend").markers, Rows.open(run / "bitext" / "rows")
    assert len(rows) > 5 and {rows.row(number).ids[0] for number in range(len(rows))} == {markers.english}
