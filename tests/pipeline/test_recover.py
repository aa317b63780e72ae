"""recover as a whole stage: conversations of several turns, system prompts, several answers, rejects, and a stop at any reply."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import transllm.pipeline.recover as stage
from transllm import load_recipe
from transllm.data.prompts import seed_prompts
from transllm.errors import DataError
from transllm.generation import Conversation, Reply, ReplySampling
from transllm.pipeline.engine import ChosenEngine
from transllm.pipeline.recover import recovery_rows
from transllm.pipeline.stage import Context, begin, execute
from transllm.pipeline.stages import STAGES
from transllm.progress import Silent

MANY = {"prompts": [{"files": "prompts.txt"}, "self"], "count": 15, "max_new_tokens": 16, "batch_size": 8, "multi_turn": 0.8,
        "most_turns": 3, "system_prompts": ["Be brief.", "You are a pirate."], "system_share": 0.5, "answers": 2, "check_language": False,
        "near_duplicates": None, "delicate": {"files": "delicate.txt"}}
DELICATE = ["How did the captain hide the wooden bridge?", "Why has nobody seen the doctor last winter?"]


class Stopped:
    """An engine that notes what it is asked, and is interrupted after so many replies."""

    name = "stopped"

    def __init__(self, engine: ChosenEngine, left: int, asked: list[Conversation]) -> None:
        self._engine, self._left, self._asked = engine, left, asked
        self.choice = engine.choice

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        for reply in self._engine.generate(conversations, sampling=sampling):
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1
            yield reply
            self._asked.append(conversations[reply.index])

    def close(self) -> None:
        self._engine.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _recipe(home: Any, folder: Path, **settings: Any) -> Path:
    mine = home.at(folder)
    (folder / "delicate.txt").write_text("\n".join(DELICATE), encoding="utf-8")
    path: Path = mine.write(pretrain={"tokens": 0}, bitext={"tokens": 0}, recover={**MANY, **settings})
    return path


def _run(recipe: Path, run: Path) -> Path:
    """The stage alone: it needs no other."""
    (found,) = (one for one in STAGES if one.name == "recover")
    folder = run / "recover"
    folder.mkdir(parents=True, exist_ok=True)
    begin(folder, "the same")
    execute(found, Context(load_recipe(recipe), run, folder, Silent()), digest="the same", inputs={})
    return folder


@pytest.fixture(scope="module")
def folder(home: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recover")
    return _run(_recipe(home, place / "home"), place / "run")


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return _lines(folder / "conversations.jsonl") + [row for row in _lines(folder / "rejects.jsonl") if "-s" not in row["id"]]


def test_later_turns_go_on_from_what_was_said(rows: list[dict[str, Any]]) -> None:
    said = {row["id"]: row for row in rows}
    turns = Counter(len(row["history"]) // 2 for row in rows)
    assert turns[0] == 15 + 3 + 2 and turns[1] > 3 and turns[2] > 0, "too few conversations went on to show anything"
    for row in rows:
        key, turn, number = row["id"].split("-")
        assert (int(turn), number) == (len(row["history"]) // 2, "0")
        told = []
        for before in (said[f"{key}-{earlier}-0"] for earlier in range(int(turn))):
            assert before["system"] == row["system"] and before["finish"] == "stop" and not before.get("reason")
            told += [{"role": "user", "content": before["prompt"]}, {"role": "assistant", "content": before["answer"]}]
        assert row["history"] == told
    assert len({row["prompt"] for row in rows}) == len(rows), "a user asked the same again"


def test_held_out_and_delicate_conversations_have_one_turn(rows: list[dict[str, Any]]) -> None:
    held = [row for row in rows if row["held_out"]]
    assert len(held) == 3 and all(row["history"] == [] and row["system"] is None for row in held)
    assert sorted(row["prompt"] for row in rows if row["delicate"]) == sorted(DELICATE)
    assert not any(row["history"] or row["held_out"] for row in rows if row["delicate"])


def test_system_prompts_are_given_to_a_share(rows: list[dict[str, Any]]) -> None:
    first = [row["system"] for row in rows if not row["history"] and not row["held_out"]]
    assert {"Be brief.", "You are a pirate.", None} == set(first)


def test_several_samples_of_each_turn(folder: Path, rows: list[dict[str, Any]]) -> None:
    samples = [*_lines(folder / "samples.jsonl"), *(row for row in _lines(folder / "rejects.jsonl") if "-s" in row["id"])]
    learned = {row["id"]: row for row in rows if not row["held_out"]}
    assert Counter(sample["id"].rpartition("-")[0] for sample in samples) == {name.removesuffix("-0"): 2 for name in learned}
    for sample in samples:
        asked = learned[sample["id"].rpartition("-")[0] + "-0"]
        assert all(sample[key] == asked[key] for key in ("history", "prompt", "system"))
    both = {name: {sample["answer"] for sample in samples if sample["id"].startswith(f"{name[:-1]}s")} for name in learned}
    assert sum(len(answers) == 2 for answers in both.values()) > len(both) / 2, "the second sample is another draw"
    first = recovery_rows(folder.parent)[: len(both)]
    assert len({(row["prompt"], len(row["history"])) for row in first}) == len(first), "second samples come after all first ones"


def test_the_manifest_counts_all(folder: Path, rows: list[dict[str, Any]]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    counts, told = manifest["counts"], manifest["metrics"]
    rejected = [row for row in rows if row.get("reason")]
    assert counts["conversations"]["read"] == len(rows) and counts["conversations"]["kept"] == len(rows) - len(rejected)
    assert counts["conversations"]["dropped"] == Counter(row["reason"] for row in rejected)
    assert counts["delicate prompts"]["kept"] == told["refusals"]["delicate"]["answers"] == 2
    later = counts["later turns"]
    assert later["kept"] == sum(bool(row["history"]) for row in rows) and later["read"] == later["kept"] + sum(later["dropped"].values())
    assert sum(told["answers_by_turn"].values()) == counts["conversations"]["kept"]
    assert {source["origin"] for source in manifest["sources"]} == {"files:prompts.txt", "files:delicate.txt"}


@pytest.mark.parametrize("after", [3, 40, 55, 80])
def test_interrupted_at_any_reply_nothing_is_lost_or_said_twice(folder: Path, home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                after: int) -> None:
    asked: list[Conversation] = []
    opened = stage.engine_of

    def opens(context: Context) -> Stopped:
        return Stopped(opened(context), lefts.pop(0), asked)

    recipe = _recipe(home, tmp_path / "home")
    lefts = [after, 7, 10**9]
    monkeypatch.setattr(stage, "engine_of", opens)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _run(recipe, tmp_path / "run")
    mine = _run(recipe, tmp_path / "run")
    for name in ("candidates", "conversations", "samples", "rejects"):
        assert _lines(mine / f"{name}.jsonl") == _lines(folder / f"{name}.jsonl")
    replies = [row["id"] for row in _lines(mine / "replies.jsonl")]
    assert len(replies) == len(set(replies)) and sorted(replies) == sorted(row["id"] for row in _lines(folder / "replies.jsonl"))
    again = Counter(conversation for conversation in asked if conversation.turns)
    # The samples (two) and the greedy answer of a turn ask the same; the reply that was on its way when the stop came is asked again.
    assert max(again.values()) <= 3 and sum(again.values()) == len(replies)
    told, expected = (json.loads((place / "manifest.json").read_text()) for place in (mine, folder))
    assert all(told[key] == expected[key] for key in ("counts", "metrics", "sources", "tokens"))


def test_answers_that_become_chains_are_sampled_if_the_recipe_says_so(home: Any, tmp_path: Path) -> None:
    mine = _run(_recipe(home, tmp_path / "home", temperature=1.0, sampled=0.0, delicate=None, multi_turn=0.0), tmp_path / "run")
    rows = _lines(mine / "conversations.jsonl") + _lines(mine / "rejects.jsonl")
    assert Counter(row["id"].split("-")[2] for row in rows) == {"0": 18, "1": 15} and _lines(mine / "samples.jsonl") == []


def test_a_prompt_that_is_longer_than_the_context_is_counted(home: Any, tmp_path: Path) -> None:
    recipe = _recipe(home, tmp_path / "home", delicate=None, multi_turn=0.0, sampled=0.0, count=5, answers=1,
                     prompts=[{"files": "long.txt"}])
    long = " ".join(" ".join(seed_prompts()).split()[:150])
    (tmp_path / "home" / "long.txt").write_text("\n".join([long, *(tmp_path / "home" / "prompts.txt").read_text().splitlines()]))
    mine = _run(recipe, tmp_path / "run")
    assert {row["prompt"]: row["reason"] for row in _lines(mine / "rejects.jsonl")}[long] == "longer than the context"
    counts = json.loads((mine / "manifest.json").read_text())["counts"]["conversations"]
    assert counts["dropped"]["longer than the context"] == 1 and counts["kept"] == len(_lines(mine / "conversations.jsonl"))


def test_broken_rows_of_a_prompt_file(home: Any, tmp_path: Path) -> None:
    recipe = _recipe(home, tmp_path / "home", delicate=None, multi_turn=0.0, sampled=0.0, answers=1, count=5, max_broken=0.3,
                     prompts=[{"files": "prompts.jsonl", "columns": ["text"]}])
    good = [json.dumps({"text": line}) for line in (tmp_path / "home" / "prompts.txt").read_text().splitlines()]
    file = tmp_path / "home" / "prompts.jsonl"
    file.write_text("\n".join([good[0], "{no json", *good[1:], json.dumps({"txt": "Why?"})]))
    manifest = json.loads((_run(recipe, tmp_path / "run") / "manifest.json").read_text())
    (source,) = manifest["sources"]
    assert source["dropped"] == {"broken JSON": 1, "missing column": 1} and source["kept"] == len(good)
    assert source["places"] == {"broken JSON": [f"{file}, line 2"], "missing column": [f"{file}, line {len(good) + 2}"]}
    file.write_text("\n".join([good[0], *["{no json"] * len(good), *good[1:]]))
    told = rf"{len(good)} of {2 * len(good)} prompts of files:prompts.jsonl are broken .*line 2, .*line 3, .*max_broken"
    with pytest.raises(DataError, match=told):
        _run(recipe, tmp_path / "run")
