"""What is held out is trained on in no form, and what is trained is what the mask says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from transllm import load_recipe
from transllm.data.filters import normalise
from transllm.pipeline import transform
from transllm.tokenizer import SpanTokenizer
from transllm.training import Rows

TRAINED = ("pretrain", "bitext", "finetune")
PARTS = ("train", "development", "held_out")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def spans(finished: Any) -> SpanTokenizer:
    return SpanTokenizer.load(finished.folder / "extend")


def _rows(finished: Any, stage: str) -> list[tuple[list[int], list[bool]]]:
    rows = Rows.open(finished.folder / stage / "rows")
    return [(row.ids, row.trained) for row in (rows.row(number) for number in range(len(rows)))]


def _texts(finished: Any, which: str) -> set[str]:
    """Both sides of all pairs and all documents of a part."""
    folder = finished.folder / "prepare"
    return {row[key] for name in ("pairs", "target", "english") for row in _lines(folder / f"{name}.{which}.jsonl")
            for key in ("english", "target", "text") if key in row}


@pytest.mark.parametrize("stage", TRAINED)
def test_no_held_out_text_is_trained_on(finished: Any, spans: SpanTokenizer, stage: str) -> None:
    trained = [normalise(spans.decode(ids)) for ids, _ in _rows(finished, stage)]
    seen = [text for text in _texts(finished, "train") if any(normalise(text) in row for row in trained)]
    assert len(seen) > 3, "the search finds nothing at all"
    for which in ("held_out", "development"):
        hidden = _texts(finished, which)
        assert len(hidden) > 10
        assert [text for text in hidden if any(normalise(text) in row for row in trained)] == []


def test_no_held_out_conversation_is_trained_on(finished: Any, spans: SpanTokenizer) -> None:
    prompts = {row["prompt"]: row["held_out"] for row in _lines(finished.folder / "recover" / "conversations.jsonl")}
    trained = [spans.decode(ids) for ids, _ in _rows(finished, "finetune")]
    assert sum(any(prompt in row for row in trained) for prompt, held in prompts.items() if not held) > 10
    assert not any(prompt in row for row in trained for prompt, held in prompts.items() if held)


def test_parts_share_nothing_and_lose_nothing(finished: Any, home: Any) -> None:
    keys = {which: {row["key"] for row in _lines(finished.folder / "prepare" / f"pairs.{which}.jsonl")} for which in PARTS}
    assert sum(map(len, keys.values())) == 300 == len(set.union(*keys.values()))
    for name in ("target", "english"):
        assert {which: {row["key"] for row in _lines(finished.folder / "prepare" / f"{name}.{which}.jsonl")} for which in PARTS} == keys


def test_the_cut_does_not_depend_on_order_seed_or_neighbours(finished: Any, home: Any, tmp_path: Path) -> None:
    mine = home.at(tmp_path / "home")
    lines = (mine.folder / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    more = [*lines, *(f"Another sentence number {number}.\tOtra frase número {number}." for number in range(50))]
    random.Random(5).shuffle(more)
    (mine.folder / "pairs.tsv").write_text("\n".join(more), encoding="utf-8")
    mine.write(seed=99)
    run = transform(load_recipe(mine.recipe), runs=tmp_path / "runs", until="prepare").folder
    for which in PARTS:
        before, after = ({row["english"] for row in _lines(folder / "prepare" / f"pairs.{which}.jsonl")}
                         for folder in (finished.folder, run))
        assert before == {text for text in after if not text.startswith("Another")}


def test_a_training_row_that_repeats_a_held_out_text_is_dropped_and_counted(finished: Any, home: Any, tmp_path: Path) -> None:
    held = _lines(finished.folder / "prepare" / "pairs.held_out.jsonl")[0]["target"]
    mine = home.at(tmp_path / "home")
    rows = [f"A wholly different English text {number}.\t{held.upper()}!\n" for number in range(20)]
    with (mine.folder / "pairs.tsv").open("a", encoding="utf-8") as file:
        file.writelines(rows)
    run = transform(load_recipe(mine.recipe), runs=tmp_path / "runs", until="prepare").folder
    counts = json.loads((run / "prepare" / "manifest.json").read_text())["counts"]["pairs"]
    dropped = counts["dropped"]["in held-out part"]
    assert 10 < dropped <= 20 and counts["read"] == 320
    kept = [row for which in ("train", "development") for row in _lines(run / "prepare" / f"pairs.{which}.jsonl")]
    assert not any(normalise(row["target"]) == normalise(held) for row in kept)


def _trained_runs(ids: list[int], trained: list[bool]) -> list[list[int]]:
    """The stretches of a row that are trained."""
    runs: list[list[int]] = []
    for place, (token, learned) in enumerate(zip(ids, trained, strict=True)):
        if learned:
            if place == 0 or not trained[place - 1]:
                runs.append([])
            runs[-1].append(token)
    return runs


def test_finetune_learns_the_answer_and_nothing_else(finished: Any, spans: SpanTokenizer) -> None:
    """Each row's trained part is one stretch at its end, and decodes to the spans of a chain, a recovery answer or a translation."""
    chains = {(row["query_en"].strip(), row["answer_en"].strip(), row["answer"].strip()): row["query"]
              for row in _lines(finished.folder / "bridge" / "chains.jsonl")}
    answers = {(row["answer"], row["finish"]) for row in _lines(finished.folder / "recover" / "samples.jsonl")}
    pairs = {side for row in _lines(finished.folder / "prepare" / "pairs.train.jsonl") for side in (row["english"], row["target"])}
    names = {spans.markers.english: "E", spans.markers.response: "R", spans.markers.target: "T"}
    end = spans.original.convert_tokens_to_ids("<|im_end|>")
    found: dict[str, int] = {}
    for ids, trained in _rows(finished, "finetune"):
        (learned,) = _trained_runs(ids, trained)
        cut = learned[-1] != end  # by recover.max_new_tokens: all its words are learned, and no end
        assert trained[-1] and ids[-1] == learned[-1] and learned.count(end) == 1 - cut
        prompt = spans.extended.decode(ids[: -len(learned)])
        assert prompt.startswith("<|im_start|>user\n") and prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        form, texts = "", []
        for token in learned if cut else learned[:-1]:
            if token in names:
                form += names[token]
                texts.append([])
            else:
                texts[-1].append(token)
        said = tuple(spans.decode(text).strip() for text in texts)
        answered = (said[0], "length" if cut else "stop") in answers
        kind = {"ERT": "chain", "T": "translation"}.get(form, "recovery" if answered else "English")
        if kind == "chain":
            assert said in chains and not cut
        elif kind != "recovery":
            assert form in ("R", "T") and said[0] in pairs and not cut
        assert all(token < spans.original_size for text, kind in zip(texts, form, strict=True) if kind != "T" for token in text), \
            "English is encoded with the original vocabulary"
        found[kind] = found.get(kind, 0) + 1
    kinds = json.loads((finished.folder / "finetune" / "manifest.json").read_text())["metrics"]["mixture"]
    assert (found["chain"], found["recovery"], found["translation"] + found["English"]) == tuple(
        kinds[kind]["rows"] for kind in ("chain", "recovery", "translation"))


def test_bitext_never_learns_the_first_token_nor_the_direction(finished: Any, spans: SpanTokenizer) -> None:
    markers = {spans.markers.english, spans.markers.target}
    both = 0
    for ids, trained in _rows(finished, "bitext"):
        assert ids[0] in markers and not trained[0]
        assert all(not learned for token, learned in zip(ids, trained, strict=True) if token in markers)
        both += sum(token in markers for token in ids) == 2
    assert both > 100


def test_shown_batches_are_what_is_trained(finished: Any, spans: SpanTokenizer) -> None:
    from transllm.pipeline import inspect_rows

    for shown, (ids, trained) in zip(inspect_rows(finished.folder, "finetune", 5), _rows(finished, "finetune"), strict=False):
        assert [learned for _, learned in shown] == trained and len(shown) == len(ids)
