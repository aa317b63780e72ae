"""A run again: nothing is done twice, and what changed is done with all that depends on it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transllm import RunError, load_recipe
from transllm.pipeline import Silent, status, transform
from transllm.recipe import dump_recipe

STAGES = ("prepare", "extend", "pretrain", "bitext", "recover", "bridge", "finetune", "merge", "evaluate")
AFTER_BITEXT = {"bridge", "finetune", "merge", "evaluate"}
AFTER_EXTEND = {"pretrain", "bitext", *AFTER_BITEXT}


class Noted(Silent):
    """Remembers which stages were worked on."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    @contextlib.contextmanager
    def task(self, label: str, total: float, unit: str) -> Iterator[Silent]:
        with super().task(label, total, unit) as task:
            yield task


def _worked(recipe: Path, runs: Path, **options: Any) -> list[str]:
    noted = Noted()
    transform(load_recipe(recipe), runs=runs, progress=noted, **options)
    return noted.stages


def _files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of all files of the stages."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.rglob("*") if path.is_file() and path.parent != folder}


def _stale(run: Path) -> set[str]:
    return {stage.name for stage in status(run) if stage.state != "done"}


def test_second_run_does_nothing(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path)
    before, metrics = _files(run), (run / "metrics.json").read_bytes()
    done = cli("run", home.recipe, "--runs", tmp_path)
    assert done.code == 0, done.err
    assert done.err.count("done already") == len(STAGES)
    assert _files(run) == before and (run / "metrics.json").read_bytes() == metrics
    assert "Spanish bits per byte" in done.out, "the table is shown again"


def test_the_run_folders_own_recipe_goes_on_too(finished: Any, tmp_path: Path) -> None:
    """What 'status' and the report name as the next command."""
    run = finished.copy(tmp_path)
    assert _worked(run / "recipe.yaml", tmp_path) == []


def test_a_project_that_was_moved_is_still_done(finished: Any, home: Any, tmp_path: Path) -> None:
    """Recipe, files, model and run under another folder, with other times: as a copy or a checkout leaves them, and so as ``mv`` does."""
    finished.copy(tmp_path / "runs")
    mine = home.at(tmp_path / "elsewhere")
    for file in filter(Path.is_file, mine.folder.rglob("*")):
        os.utime(file, ns=(0, 0))
    assert _worked(mine.recipe, tmp_path / "runs") == []


@pytest.mark.parametrize(("changes", "expected"), [
    ({"evaluate.sentences": 3}, {"evaluate"}),
    ({"merge.max_kl": 0.02}, {"merge", "evaluate"}),
    ({"finetune.learning_rate": 1e-3}, {"finetune", "merge", "evaluate"}),
    ({"bridge.count": 10}, {"bridge", "finetune", "merge", "evaluate"}),
    ({"recover.count": 14}, {"recover", "bridge", "finetune", "merge", "evaluate"}),
    ({"evaluate.answers": 4}, {"recover", "bridge", "finetune", "merge", "evaluate"}),
    ({"bitext.replay": 0.2}, {"bitext", *AFTER_BITEXT}),
    ({"extend.vocab_size": 30}, {"extend", *AFTER_EXTEND}),
    ({"training.lora.r": 2}, AFTER_EXTEND),
    ({"data.held_out": 0.2}, set(STAGES) - {"recover"}),
    ({"seed": 4}, set(STAGES)),
    ({"training.checkpoint_minutes": 3.0, "training.log_every": 5, "recover.batch_size": 9, "name": "tiny"}, set()),
])
def test_what_a_changed_setting_makes_stale(finished: Any, home: Any, tmp_path: Path, changes: dict[str, Any], expected: set[str]) -> None:
    run = finished.copy(tmp_path)
    dump_recipe(load_recipe(home.recipe, overrides=[f"{key}={value}" for key, value in changes.items()]), run / "recipe.yaml")
    assert _stale(run) == expected


def _append(name: str, text: str) -> Callable[[Any], None]:
    def change(home: Any) -> None:
        with (home.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)
    return change


def _touch(name: str) -> Callable[[Any], None]:
    return lambda home: os.utime(home.folder / name, ns=(0, 0))


def _swap(name: str) -> Callable[[Any], None]:
    """One byte becomes another; size and time stay."""
    def change(home: Any) -> None:
        file = home.folder / name
        content, when = bytearray(file.read_bytes()), file.stat().st_mtime_ns
        content[-2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(when, when))

    return change


@pytest.fixture(scope="module")
def other(finished: Any, home: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A home of its own whose run is done, so that its files may change. The digests are made to be those of its paths."""
    folder = tmp_path_factory.mktemp("other")
    mine = home.at(folder / "home")
    (folder / "home" / "chat.jinja").write_text((mine.model / "chat_template.jinja").read_text())
    mine.write(model={"source": "./model", "chat_template": "chat.jinja"})
    run = finished.copy(folder / "runs")
    dump_recipe(load_recipe(mine.recipe), run / "recipe.yaml")
    return mine, run


@pytest.mark.parametrize(("change", "expected"), [
    (_append("pairs.tsv", "One more.\tUna más.\n"), set(STAGES) - {"recover"}),
    (_touch("pairs.tsv"), set()),
    (_swap("pairs.tsv"), set(STAGES) - {"recover"}),
    (_append("prompts.txt", "What is one more prompt?\n"), {"recover", *AFTER_BITEXT}),
    (_append("queries.txt", "¿Una pregunta más?\n"), {"evaluate"}),
    (_append("model/tokenizer.json", "\n"), {"extend", "recover", *AFTER_EXTEND}),
    (_touch("model/model.safetensors"), set()),
    (_swap("model/model.safetensors"), {"extend", "recover", *AFTER_EXTEND}),
    (_append("chat.jinja", "{# another #}"), {"extend", "recover", *AFTER_EXTEND}),
], ids=["pairs longer", "pairs touched", "pairs of the same size and time", "prompts", "queries", "tokenizer", "weights touched",
        "weights of the same size and time", "template"])
def test_what_a_changed_file_makes_stale(other: tuple[Any, Path], tmp_path: Path, change: Callable[[Any], None],
                                         expected: set[str]) -> None:
    mine, run = other
    kept = {name: (path, path.read_bytes(), path.stat().st_mtime_ns) for name in ("pairs.tsv", "prompts.txt", "queries.txt", "chat.jinja",
            "model/tokenizer.json", "model/model.safetensors") for path in [mine.folder / name]}
    before = _digests(run)
    try:
        change(mine)
        after = _digests(run)
    finally:
        for path, content, when in kept.values():
            path.write_bytes(content)
            os.utime(path, ns=(when, when))
    assert {name for name in STAGES if before[name] != after[name]} == expected
    assert _digests(run) == before


def _digests(run: Path) -> dict[str, str]:
    """The digest that each stage would have now."""
    from transllm.pipeline.run import _digest
    from transllm.pipeline.stages import STAGES as ALL

    recipe = load_recipe(run / "recipe.yaml")
    digests: dict[str, str] = {}
    for stage in ALL:
        digests[stage.name] = _digest(stage, recipe, digests)[0]
    return digests


def test_files_behind_a_recursive_glob_are_watched(home: Any, tmp_path: Path) -> None:
    mine = home.at(tmp_path / "home")
    deep = mine.folder / "text" / "deep"
    deep.mkdir(parents=True)
    (mine.folder / "pairs.tsv").rename(deep / "pairs.tsv")
    mine.write(data={"parallel": [{"files": "text/**/*.tsv", "columns": [0, 1]}]})
    run = tmp_path / "runs"
    run.mkdir()
    dump_recipe(load_recipe(mine.recipe), run / "recipe.yaml")
    before = _digests(run)
    _append("text/deep/pairs.tsv", "One more.\tUna más.\n")(mine)
    assert _digests(run)["prepare"] != before["prepare"]


def test_changed_evaluation_runs_alone(finished: Any, home: Any, tmp_path: Path) -> None:
    mine = home.at(tmp_path / "home")
    run = finished.copy(tmp_path / "runs")
    before = _files(run)
    recipe = load_recipe(home.recipe, overrides=["evaluate.sentences=3"])
    noted = Noted()
    result = transform(recipe, runs=tmp_path / "runs", progress=noted)
    assert noted.stages == ["evaluate"] and mine.folder.exists()
    assert result.metrics is not None and result.metrics.settings["sentences"] == 3
    after = _files(run)
    assert {name for name in before if before[name] != after.get(name)} == {name for name in before if name.startswith("evaluate/")}


def test_a_stage_that_was_taken_away_takes_what_read_it_along(finished: Any, home: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path)
    shutil.rmtree(run / "bridge")
    assert _worked(home.recipe, tmp_path, until="bridge") == ["bridge"]
    assert _stale(run) == {"finetune", "merge", "evaluate"}, "also for a later sitting: what they were made from is gone"
    assert _worked(home.recipe, tmp_path) == ["finetune", "merge", "evaluate"]


def test_until_and_from(home: Any, finished: Any, tmp_path: Path) -> None:
    recipe = load_recipe(home.recipe)
    noted = Noted()
    part = transform(recipe, runs=tmp_path, until="extend", progress=noted)
    assert noted.stages == ["prepare", "extend"] and part.metrics is None and part.report is not None
    assert sorted(path.name for path in part.folder.iterdir() if path.is_dir()) == ["extend", "prepare"]
    assert [stage.state for stage in status(part.folder)] == ["done"] * 2 + ["waiting"] * 7
    assert _worked(home.recipe, tmp_path, until="extend") == []
    assert _worked(home.recipe, tmp_path, until="pretrain", start="extend") == ["extend", "pretrain"]
    with pytest.raises(RunError, match=r"no stage 'finetun'.*finetune"):
        transform(recipe, runs=tmp_path, until="finetun")
    with pytest.raises(RunError, match="no stage 'x'"):
        transform(recipe, runs=tmp_path, start="x")
    with pytest.raises(RunError, match=r"'finetune'.*'extend'"):
        transform(recipe, runs=tmp_path, start="finetune", until="extend")
    assert _worked(home.recipe, tmp_path, until="pretrain") == [], "an error must not cost finished work"


def test_a_merge_that_is_not_the_adapter_model_is_refused(finished: Any, home: Any, tmp_path: Path) -> None:
    """merge.max_kl can fail: half precision with a limit below its rounding."""
    from transllm import ModelError

    run = finished.copy(tmp_path, without=("merge", "evaluate"))
    recipe = load_recipe(home.recipe, overrides=["merge.dtype=bfloat16", "merge.max_kl=1e-12"])
    with pytest.raises(ModelError, match="not the adapter model"):
        transform(recipe, runs=tmp_path)
    assert not (run / "merge" / "manifest.json").exists() and (run / "finetune" / "manifest.json").exists()


def test_stages_of_no_tokens_are_skipped(home: Any, tmp_path: Path) -> None:
    recipe = load_recipe(home.recipe, overrides=["pretrain.tokens=0", "bitext.tokens=0", "finetune.tokens=0", "recover.count=2",
                                                 "evaluate.answers=2"])
    noted = Noted()
    done = transform(recipe, runs=tmp_path, progress=noted)
    assert noted.stages == list(STAGES) and done.metrics is not None
    merged, extended = done.metrics.stages["merge"], done.metrics.stages["extend"]
    assert merged.bits_per_byte_target == extended.bits_per_byte_target, "nothing was trained"


def test_no_chains(home: Any, tmp_path: Path) -> None:
    """All translations are refused: without fine-tuning that is no error, with it there is nothing to learn from."""
    from transllm import DataError

    nothing = ["pretrain.tokens=0", "bitext.tokens=0", "bridge.min_length_ratio=9999", "recover.count=2", "evaluate.answers=2"]
    with pytest.raises(DataError, match="No example is left"):
        transform(load_recipe(home.recipe, overrides=nothing), runs=tmp_path)
    noted = Noted()
    done = transform(load_recipe(home.recipe, overrides=[*nothing, "finetune.tokens=0"]), runs=tmp_path, progress=noted)
    assert noted.stages == ["bridge", "finetune", "merge", "evaluate"] and done.metrics is not None
    assert done.metrics.stages["merge"].kl_to_original is not None
