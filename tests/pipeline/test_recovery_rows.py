"""What recovery learns: sampled answers first, greedy ones of the other prompts after them, nothing that is held out or empty."""

from __future__ import annotations

import json
from pathlib import Path

from transllm.pipeline.recover import recovery_rows


def _write(file: Path, rows: list[tuple[str, str, bool]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": prompt, "history": [], "system": None, "answer": answer, "held_out": held}) + "\n"
                            for prompt, answer, held in rows))


def test_sampled_answers_come_first_and_no_prompt_twice(tmp_path: Path) -> None:
    folder = tmp_path / "recover"
    _write(folder / "conversations.jsonl", [("a", "greedy a", False), ("b", "greedy b", False), ("c", "greedy c", False), ("d", "", False),
                                            ("h", "greedy h", True)])
    _write(folder / "samples.jsonl", [("b", "sampled b", False), ("a", "", False)])
    answers = [row["answer"] for row in recovery_rows(tmp_path)]
    assert answers[0] == "sampled b"
    assert sorted(answers[1:]) == ["greedy c"], "an empty sample is not replaced by its greedy answer: that would favour long answers"


def test_without_samples_recovery_is_on_the_greedy_answers(tmp_path: Path) -> None:
    _write(tmp_path / "recover" / "conversations.jsonl", [("a", "greedy a", False), ("b", "greedy b", False)])
    _write(tmp_path / "recover" / "samples.jsonl", [])
    assert sorted(row["answer"] for row in recovery_rows(tmp_path)) == ["greedy a", "greedy b"]


def test_the_same_words_after_another_history_are_another_question(tmp_path: Path) -> None:
    folder = tmp_path / "recover"
    folder.mkdir()
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "greedy a"}]
    row = {"prompt": "Why?", "history": [], "system": None, "held_out": False}
    (folder / "conversations.jsonl").write_text("".join(json.dumps(row | change) + "\n" for change in (
        {"answer": "first"}, {"answer": "later", "history": said}, {"answer": "told", "system": "Be brief."})))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row | {"answer": answer}) + "\n" for answer in ("one", "two")) + json.dumps(
        row | {"prompt": "Who?", "answer": "three"}) + "\n")
    answers = [row["answer"] for row in recovery_rows(tmp_path)]
    assert sorted(answers[:2]) == ["one", "three"] and answers[2] == "two", "second answers come after all first ones"
    assert sorted(answers[3:]) == ["later", "told"]
