"""What users get wrong: a sentence what it is and what to do, a code that is not 0, no traceback, finished work kept."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STAGES = ("prepare", "extend", "pretrain", "bitext", "recover", "bridge", "finetune", "merge", "evaluate")


def _wrong(done: Any, *wanted: str) -> None:
    assert done.code not in (0, 130, 143) and done.code > 0, done
    assert "Traceback" not in done.err and "This is a bug" not in done.err, done.err
    message = done.err[done.err.index("error: "):].strip()
    for words in wanted:
        assert words in message, message
    assert message.endswith((".", ")", "'", '"')) or "\n  - " in message or "transllm " in message.splitlines()[-1], message


def _key(home: Any) -> None:
    home.write(bitext={"tokns": 5}, evaluate={"sentence": 3})


def _language(home: Any) -> None:
    home.write(language="xq")


def _missing(home: Any) -> None:
    (home.folder / "pairs.tsv").unlink()


def _empty(home: Any) -> None:
    (home.folder / "pairs.tsv").write_text("")


def _latin(home: Any) -> None:
    path = home.folder / "pairs.tsv"
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))


def _columns(home: Any) -> None:
    path = home.folder / "pairs.tsv"
    path.write_text("".join(line.split("\t")[0] + "\n" for line in path.read_text(encoding="utf-8").splitlines()), encoding="utf-8")


def _template(home: Any) -> None:
    (home.model / "chat_template.jinja").unlink()


def _model(home: Any) -> None:
    (home.model / "config.json").unlink()


def _broken_model(home: Any) -> None:
    (home.model / "model.safetensors").write_bytes(b"\x00" * 100)


def _broken_tokenizer(home: Any) -> None:
    (home.model / "tokenizer.json").write_text("{")


def _no_model(home: Any) -> None:
    home.write(model="./nowhere")


def _not_yaml(home: Any) -> None:
    home.recipe.write_text("model: [unclosed\nlanguage: es\n")


def _empty_recipe(home: Any) -> None:
    home.recipe.write_text("")


def _small(home: Any) -> None:
    (home.folder / "pairs.tsv").write_text("A wooden bridge.\tUn puente de madera.\n", encoding="utf-8")


def _no_prompts(home: Any) -> None:
    (home.folder / "prompts.txt").write_text("# only a comment\n")
    home.write(recover={"prompts": [{"files": "prompts.txt"}]})


@pytest.mark.parametrize(("spoil", "wanted"), [
    (_key, ("bitext", "tokns", "did you mean 'tokens'", "sentence", "did you mean 'sentences'", "2 problems")),
    (_language, ("'xq'", "no marker", "define it")),
    (_missing, ("data.parallel[0].files", "pairs.tsv")),
    (_empty, ("pairs.tsv is empty",)),
    (_latin, ("pairs.tsv", "UTF-8")),
    (_columns, ("pairs.tsv", "column")),
    (_template, ("no chat template", "chat_template: FILE")),
    (_model, ("model", "cannot be loaded")),
    (_broken_model, ("model", "cannot be loaded")),
    (_broken_tokenizer, ("model", "cannot be loaded")),
    (_no_model, ("nowhere",)),
    (_not_yaml, ("tiny.yaml",)),
    (_empty_recipe, ("is empty",)),
    (_small, ("held-out",)),
    (_no_prompts, ("prompts",)),
], ids=lambda value: value.__name__.strip("_") if callable(value) else "")
def test_bad_input_is_told_in_words(home: Any, cli: Any, tmp_path: Path, spoil: Callable[[Any], None], wanted: tuple[str, ...]) -> None:
    mine = home.at(tmp_path / "home")
    mine.write(pretrain={"tokens": 0}, bitext={"tokens": 0})
    spoil(mine)
    done = cli("run", mine.recipe, "--runs", tmp_path / "runs")
    lowered = type(done)(done.code, done.out, done.err.replace("Did you mean", "did you mean"))
    _wrong(lowered, *wanted)


def test_finished_stages_are_kept_when_a_later_one_fails(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path, without=STAGES[4:])
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.parent != run}
    wrong = "recover.prompts=[{files: pairs.tsv, format: parquet}]"
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", "recover", "--set", wrong)
    _wrong(done, "pairs.tsv")
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", "recover")
    assert done.code == 0 and done.err.count("done already") == 4, done.err


@pytest.mark.parametrize("change", ["model=./other", "language=fr"])
def test_run_folder_of_another_recipe(finished: Any, home: Any, cli: Any, tmp_path: Path, change: str) -> None:
    run = finished.copy(tmp_path / "runs")
    mine = home.at(tmp_path / "home")
    shutil.copytree(mine.model, mine.folder / "other")
    own = (run / "recipe.yaml").read_text()
    done = cli("run", mine.recipe, "--runs", tmp_path / "runs", "--set", change)
    _wrong(done, "belongs to another recipe", "Give this recipe another name, or another folder with --runs.")
    assert (run / "recipe.yaml").read_text() == own and (run / "merge" / "manifest.json").exists()


def test_run_folder_that_is_a_file(home: Any, cli: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("I am a file.")
    _wrong(cli("run", home.recipe, "--runs", tmp_path), "tiny")
    _wrong(cli("run", home.recipe, "--runs", tmp_path / "tiny"), "tiny")
    assert (tmp_path / "tiny").read_text() == "I am a file."
    _wrong(cli("status", tmp_path / "tiny"), "tiny")


def test_unknown_stage(home: Any, cli: Any, tmp_path: Path) -> None:
    _wrong(cli("run", home.recipe, "--runs", tmp_path, "--until", "finetunes"), "finetunes", "The stages are: prepare, extend")
    assert list(tmp_path.iterdir()) == []


def test_stage_folder_that_cannot_be_read_back(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    """Somebody deleted a file of a finished stage: the next one says which, and what to do."""
    run = finished.copy(tmp_path, without=STAGES[3:])
    (run / "extend" / "model.safetensors").unlink()
    _wrong(cli("run", home.recipe, "--runs", tmp_path, "--until", "bitext"), str(run / "extend"), "again")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB in memory; where it cannot be mounted, the test is skipped (the file limit's runs everywhere)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=24m") != 0:
        pytest.skip(f"no file system can be mounted here ({os.strerror(ctypes.get_errno())})")
    try:
        yield folder
    finally:
        libc.umount2(os.fsencode(folder), 2)


@pytest.mark.parametrize("stage", ["prepare", "extend", "pretrain", "recover", "bridge", "merge", "evaluate"])
def test_full_disk(finished: Any, home: Any, cli: Any, small_disk: Path, stage: str) -> None:
    run = finished.copy(small_disk, without=STAGES[STAGES.index(stage):])
    before = {path: path.read_bytes() for path in run.rglob("manifest.json")}
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    room = {"prepare": 24, "extend": 200, "merge": 200, "pretrain": 120, "recover": 8, "bridge": 8}.get(stage, 16) * 1024
    with ballast.open("wb") as file:
        file.write(b"x" * (free.f_bavail * free.f_frsize - room))
    done = cli("run", home.recipe, "--runs", small_disk)
    _wrong(done, "run the same command again")
    assert "disk is full" in done.err or "No space left on device" in done.err, done.err
    assert {path: path.read_bytes() for path in before} == before and not (run / stage / "manifest.json").exists()
    ballast.unlink()
    done = cli("run", home.recipe, "--runs", small_disk, "--until", stage)
    assert done.code == 0, done.err
    assert json.loads((run / stage / "manifest.json").read_text())["digest"] == \
        json.loads((finished.folder / stage / "manifest.json").read_text())["digest"]


@pytest.mark.parametrize("stage", ["extend", "pretrain", "merge"])
def test_file_that_may_not_grow(finished: Any, home: Any, cli: Any, tmp_path: Path, stage: str) -> None:
    """A quota on the size of files: another way in which writing fails."""
    run = finished.copy(tmp_path, without=STAGES[STAGES.index(stage):])
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", stage, file_limit=30_000)
    _wrong(done)
    assert not (run / stage / "manifest.json").exists()
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", stage)
    assert done.code == 0 and done.err.count("done already") == STAGES.index(stage), done.err


def test_no_room_for_a_checkpoint(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    """The disk is full when a later checkpoint is written: the one before is named, kept, and gone on from."""
    run = finished.copy(tmp_path, without=STAGES[2:])
    folder = run / "pretrain" / "checkpoints"
    command = cli.start("run", home.recipe, "--runs", tmp_path, "--until", "pretrain")
    assert command.until(lambda: len(list(folder.glob("step-*.pt"))) >= 2)
    command.signal(signal.SIGINT)
    assert command.wait().code == 130
    newest = max(folder.glob("step-*.pt"))
    size = newest.stat().st_size
    assert (run / "pretrain" / "log.jsonl").stat().st_size < size // 4, "only a checkpoint meets the limit"
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", "pretrain", file_limit=size - 2048)
    _wrong(done, f"The last good checkpoint is {newest.name} (step {int(newest.stem[5:])}); training goes on from it.")
    assert max(folder.glob("step-*.pt")) == newest and not list(folder.glob(".*"))
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", "pretrain")
    assert done.code == 0, done.err
    log, expected = ([{key: line.get(key) for key in ("step", "loss")} for line in map(json.loads, path.read_text().splitlines())]
                     for path in (run / "pretrain" / "log.jsonl", finished.folder / "pretrain" / "log.jsonl"))
    assert log == expected


def test_trackers(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    """Another set of trackers is the same training; a wrong name and a missing package are told before any work."""
    run = finished.copy(tmp_path)
    done = cli("run", home.recipe, "--runs", tmp_path, "--set", "training.trackers=[tensorboard]", "--until", "finetune")
    assert done.code == 0 and done.err.count("done already") == 7, done.err
    _wrong(cli("run", home.recipe, "--runs", tmp_path, "--set", "training.trackers=[tensorbord]"), "Did you mean 'tensorboard'?")
    if importlib.util.find_spec("mlflow") is None:
        _wrong(cli("run", home.recipe, "--runs", tmp_path, "--from", "pretrain", "--set", "training.trackers=[mlflow]"),
               "pip install 'transllm[mlflow]'")
    done = cli("run", home.recipe, "--runs", tmp_path, "--from", "pretrain", "--until", "pretrain", "--set",
               "training.trackers=[tensorboard]")
    assert done.code == 0 and len(list((run / "pretrain" / "tensorboard").glob("events.*"))) == 1, done.err


def test_a_rate_that_makes_the_loss_no_number(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path, without=STAGES[2:])
    _wrong(cli("inspect", "batch", run, "pretrain", "--failed"), "No step of the stage 'pretrain'")
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", "pretrain", "--set", "pretrain.learning_rate=1e30")
    _wrong(done, "The loss is not a number in step 2", "It begins in bin 1 of 1", "lora_A")
    shown = cli("inspect", "batch", run, "pretrain", "--failed", "--rows", "2")
    assert shown.code == 0 and shown.out.startswith("step: 2\nloss: nan\n") and shown.out.count("bin 1, row ") == 2, shown
    assert "⟦" in shown.out and "more rows: --rows" in shown.out
