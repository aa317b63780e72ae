"""The rows of fine-tuning: chains with and without a history, and translations asked for in all words and both directions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from transllm import load_recipe
from transllm.pipeline import training_stages, transform
from transllm.pipeline.instructions import to_english, to_target
from transllm.pipeline.stage import Context
from transllm.progress import Silent
from transllm.tokenizer import SpanTokenizer
from transllm.training import Rows


@pytest.fixture(scope="module")
def made(home: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to *finetune*, with many translations."""
    folder = tmp_path_factory.mktemp("rows")
    mine = home.at(folder / "home")
    with (mine.folder / "pairs.tsv").open("a", encoding="utf-8") as file:
        file.writelines(f"Who painted the {what}?\t¿Quién pintó el {what}?\n" for what in ("bridge", "museum", "garden", "library"))
    mine.write(data={"held_out": 0.01, "development": 0.01}, pretrain={"tokens": 0}, bitext={"tokens": 500},
               finetune={"translation": 0.8, "recovery": 0.1, "to_target": 0.75, "history": 0.5, "tokens": 300,
                         "sequence_length": 256, "micro_tokens": 256, "batch_tokens": 256})
    return transform(load_recipe(mine.recipe), runs=folder / "runs", until="finetune").folder


def _texts(run: Path) -> list[tuple[str, str]]:
    """Prompt and trained text of each row, with the markers as text."""
    spans, rows = SpanTokenizer.load(run / "extend"), Rows.open(run / "finetune" / "rows")
    found = []
    for number in range(len(rows)):
        row = rows.row(number)
        start = row.trained.index(True)
        found.append((spans.extended.decode(row.ids[:start]), spans.extended.decode(row.ids[start:])))
    return found


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_share_of_chains_follows_earlier_turns_in_english(made: Path) -> None:
    chains = _lines(made / "bridge" / "chains.jsonl")
    turns = {f"user\n{row['query_en'].strip()}<|im_end|>\n<|im_start|>assistant\n{row['answer_en'].strip()}<|im_end|>\n":
             row["query"].strip() for row in chains}
    prompts = [prompt for prompt, said in _texts(made) if said.startswith("<EN>") and "<RESPONSE>" in said]
    long = [prompt for prompt in prompts if prompt.count("<|im_start|>user") > 1]
    assert len(prompts) == len(chains) and len(long) == len(chains) // 2 > 3
    assert {prompt.count("<|im_start|>user") for prompt in long} == {2, 3}
    said = Counter(row["query"].strip() for row in chains)  # a tiny model translates several queries alike
    for prompt in long:
        before = next(query for turn, query in turns.items() if prompt.startswith(f"<|im_start|>{turn}"))
        assert said[before] > 1 or not prompt.endswith(f"user\n{before}<|im_end|>\n<|im_start|>assistant\n"), "its own turn is no history"


def test_translations_are_asked_for_in_all_words_and_both_directions(made: Path, home: Any) -> None:
    pairs = _lines(made / "prepare" / "pairs.train.jsonl")
    language = load_recipe(home.recipe).target
    asked = {f"<|im_start|>user\n{message.content}<|im_end|>\n<|im_start|>assistant\n": (to, number, pair["english"])
             for pair in pairs for number in range(20)
             for to, message in (("target", to_target(pair["english"], language, number)),
                                 ("english", to_english(pair["target"], language, number)))}
    found = [asked[prompt] for prompt, _ in _texts(made) if prompt in asked]
    into_target = [number for to, number, _ in found if to == "target"]
    into_english = [(number, english) for to, number, english in found if to == "english"]
    assert len(found) > 40 and len(into_target) == round(0.75 * len(found))
    words = {number: english for number, english in into_english}
    assert set(into_target) >= set(range(20)) and len(words) > 8, "in English and in the language"
    taken = {english for to, _, english in found if to == "target"}
    questions = {pair["english"] for pair in pairs if pair["english"].endswith("?")} - taken
    assert questions and questions <= {english for _, english in into_english}, "all of the few that there are"
    assert len({english for _, english in into_english}) == len(into_english), "no pair is asked for twice"


def test_what_gives_an_answer_its_form_weighs_what_the_recipe_says(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        """What *finetune* would train with."""

    def train(*_: Any, heavy: dict[int, float], **__: Any) -> None:
        raise Asked(heavy)

    monkeypatch.setattr(training_stages, "train", train)
    recipe = load_recipe(made / "recipe.yaml", overrides=["finetune.form_weight=5"])
    spans = SpanTokenizer.load(made / "extend")
    with pytest.raises(Asked) as asked:
        training_stages.finetune(Context(recipe, made, tmp_path, Silent()))
    tokens = spans.extended.convert_tokens_to_ids(["<EN>", "<RESPONSE>", "<ES>", "<|im_end|>"])
    assert asked.value.args[0] == dict.fromkeys(tokens, 5.0)
