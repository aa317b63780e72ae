"""Killed in the middle of every stage: the same command goes on, and the result is that of a run that nobody disturbed."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transllm.pipeline import status, transform
from transllm.recipe import load_recipe

STAGES = ("prepare", "extend", "pretrain", "bitext", "recover", "bridge", "finetune", "merge", "evaluate")
TRAINED = ("pretrain", "bitext", "finetune")
TIMES = {"seconds", "tokens_per_second", "matrix_share", "memory_gib", "training_seconds", "seconds_per_answer"}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _halfway(folder: Path, stage: str) -> Callable[[], bool]:
    """A condition that holds while the stage is at work and has something on disk, but not all."""
    def checkpoints() -> bool:
        return bool(list(folder.glob("checkpoints/step-*.pt")))

    conditions: dict[str, Callable[[], bool]] = {
        "prepare": lambda: (folder / "pairs.train.jsonl").exists(),
        "extend": lambda: (folder / "config.json").exists(),
        "recover": lambda: (folder / "replies.jsonl").exists() and (folder / "replies.jsonl").stat().st_size > 300,
        "bridge": lambda: (folder / "translated.jsonl").exists() and (folder / "translated.jsonl").stat().st_size > 300,
        "merge": lambda: (folder / "config.json").exists(),
        "evaluate": lambda: (folder / "pretrain.json").exists(),
        **dict.fromkeys(TRAINED, checkpoints)}
    return conditions[stage]


def _timeless(value: Any) -> Any:
    """The value without what no two runs share."""
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _result(folder: Path) -> dict[str, Any]:
    """All that a stage wrote, in a form that is equal where the result is."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file():
            continue
        if name == "manifest.json":
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found[name] = _timeless({key: value for key, value in manifest.items() if key not in ("finished", "peak_memory_gib")})
        elif name == "adapter_config.json":
            config = json.loads(path.read_text(encoding="utf-8"))
            config["target_modules"].sort()  # peft writes a set
            found[name] = {key: value for key, value in config.items() if key != "base_model_name_or_path"}
        elif path.suffix == ".jsonl":
            found[name] = _timeless(_lines(path))
        elif path.suffix == ".json" and folder.name == "evaluate":
            found[name] = _timeless(json.loads(path.read_text(encoding="utf-8")))
        else:
            found[name] = path.read_bytes()
    if folder.name == "recover":  # replies come in another order after a stop; what is made of them does not
        found["replies.jsonl"].sort(key=lambda row: row["id"])
    return found


def _same(run: Path, stage: str, finished: Any) -> None:
    mine, expected = _result(run / stage), _result(finished.folder / stage)
    assert mine.keys() == expected.keys()
    for name in expected:
        assert mine[name] == expected[name], f"{stage}/{name} is not that of an undisturbed run"


def _stop(cli: Any, recipe: Path, runs: Path, stage: str, number: signal.Signals, condition: Callable[[], bool]) -> Any:
    """Start a run up to a stage and signal it in the middle of that stage.

    The stages of these tests last a second or two, and on a busy machine a signal can come after the end: then all is put back and
    tried again.
    """
    run = runs / "tiny"
    before = runs / "before"
    if run.exists():
        shutil.copytree(run, before)
    for _ in range(8):
        command = cli.start("run", recipe, "--runs", runs, "--until", stage)
        caught = command.until(condition)
        if caught:
            command.signal(number)
        done = command.wait()
        if caught and not (run / stage / "manifest.json").exists():
            shutil.rmtree(before, ignore_errors=True)
            return done
        shutil.rmtree(run)
        if before.exists():
            shutil.copytree(before, run)
    pytest.fail(f"the stage was always over before it could be stopped: {done.err}")


@pytest.mark.parametrize("stage", STAGES)
def test_kill_in_the_middle_of_a_stage(finished: Any, home: Any, cli: Any, tmp_path: Path, stage: str) -> None:
    run = finished.copy(tmp_path, without=STAGES[STAGES.index(stage):])
    done = _stop(cli, home.recipe, tmp_path, stage, signal.SIGKILL, _halfway(run / stage, stage))
    assert done.code == -signal.SIGKILL
    assert {row.name: row.state for row in status(run)}[stage] == "unfinished"
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", stage)
    assert done.code == 0, done.err
    assert done.err.count("done already") == STAGES.index(stage), "finished stages were not kept"
    _same(run, stage, finished)
    if stage == "evaluate":
        metrics, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (run, finished.folder))
        assert _timeless(metrics) == _timeless(expected)


def test_a_stage_begins_alike_in_any_process(finished: Any, home: Any, tmp_path: Path) -> None:
    """Killed before its first checkpoint, a stage begins again, in a process that has drawn other random numbers."""
    run = finished.copy(tmp_path, without=STAGES[STAGES.index("pretrain"):])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(777)
    try:
        transform(load_recipe(home.recipe), runs=tmp_path, until="pretrain")
    finally:
        torch.set_num_threads(threads)
    _same(run, "pretrain", finished)


def test_killed_again_and_again(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    """Each sitting gets one checkpoint further."""
    run = finished.copy(tmp_path, without=STAGES[STAGES.index("bitext"):])
    folder = run / "bitext"
    seen: list[str] = []
    for _ in range(3):
        _stop(cli, home.recipe, tmp_path, "bitext", signal.SIGKILL,
              lambda: any(path.name > max(seen, default="") for path in folder.glob("checkpoints/step-*.pt")))
        seen.append(max(path.name for path in folder.glob("checkpoints/step-*.pt")))
    assert seen == sorted(set(seen)), "it began anew"
    assert cli("run", home.recipe, "--runs", tmp_path, "--until", "bitext").code == 0
    _same(run, "bitext", finished)


def test_torn_checkpoint_is_passed_over(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    """What a power cut leaves: the newest file is cut off, the one before is whole."""
    run = finished.copy(tmp_path, without=STAGES[STAGES.index("pretrain"):])
    folder = run / "pretrain"
    _stop(cli, home.recipe, tmp_path, "pretrain", signal.SIGKILL, lambda: len(list(folder.glob("checkpoints/step-*.pt"))) >= 2)
    newest = max(folder.glob("checkpoints/step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    with (folder / "log.jsonl").open("ab") as log:
        log.write(b'{"step": 9')
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", "pretrain")
    assert done.code == 0 and newest.name in done.err, done.err
    _same(run, "pretrain", finished)


def test_torn_lines_are_written_again(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path, without=STAGES[STAGES.index("recover"):])
    _stop(cli, home.recipe, tmp_path, "recover", signal.SIGKILL, _halfway(run / "recover", "recover"))
    for name in ("candidates", "replies"):
        path = run / "recover" / f"{name}.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
    assert cli("run", home.recipe, "--runs", tmp_path, "--until", "recover").code == 0
    rows = _lines(run / "recover" / "conversations.jsonl")
    assert len(rows) == len({row["prompt"] for row in rows}) == 18
    expected = {row["prompt"]: row["answer"] for row in _lines(finished.folder / "recover" / "conversations.jsonl")}
    assert {row["prompt"]: row["answer"] for row in rows} == expected


def test_self_prompting_goes_on_where_it_was(home: Any, cli: Any, tmp_path: Path) -> None:
    """After more rounds than the number of barren ones at which it gives up: they must not be walked through again."""
    mine = home.at(tmp_path / "home")
    mine.write(recover={"prompts": ["self"], "count": 30}, pretrain={"tokens": 0}, bitext={"tokens": 0})
    prompts = tmp_path / "runs" / "tiny" / "recover" / "candidates.jsonl"
    _stop(cli, mine.recipe, tmp_path / "runs", "recover", signal.SIGKILL,
          lambda: prompts.exists() and prompts.read_bytes().count(b"\n") >= 24)
    known = _lines(prompts)
    assert not (prompts.parent / "replies.jsonl").exists(), "the stop came too late"
    done = cli("run", mine.recipe, "--runs", tmp_path / "runs", "--until", "recover")
    assert done.code == 0, done.err
    rows = _lines(prompts)
    assert rows[: len(known)] == known and len(rows) > len(known)
    answered = _lines(prompts.parent / "conversations.jsonl")
    assert len({row["prompt"] for row in answered}) == len(answered) == 33
    whole = cli("run", mine.recipe, "--runs", tmp_path / "undisturbed", "--until", "recover")
    assert whole.code == 0, whole.err
    assert _lines(tmp_path / "undisturbed" / "tiny" / "recover" / "candidates.jsonl") == rows


def test_killed_at_random(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    """At any moment of a training stage: while it loads, inside a step, while a checkpoint or the log is written."""
    run = finished.copy(tmp_path, without=STAGES[STAGES.index("bitext"):])
    moments, killed = random.Random(11), 0
    for _ in range(12):
        command = cli.start("run", home.recipe, "--runs", tmp_path, "--until", "bitext")
        begun = time.monotonic()
        wait = moments.uniform(0.05, 1.2)
        if not command.until(lambda begun=begun, wait=wait: time.monotonic() - begun > wait):
            assert command.wait().code == 0
            break
        command.signal(signal.SIGKILL)
        killed += command.wait().code == -signal.SIGKILL
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", "bitext")
    assert done.code == 0 and killed, done.err
    for left in run.rglob(".*.tmp"):  # what a kill leaves of a file that was being written; no more than one a kill
        killed -= 1
        left.unlink()
    assert killed >= 0
    _same(run, "bitext", finished)


@pytest.mark.parametrize(("stage", "number"), [
    ("pretrain", signal.SIGINT), ("recover", signal.SIGINT), ("bridge", signal.SIGINT), ("evaluate", signal.SIGINT),
    ("prepare", signal.SIGTERM), ("bitext", signal.SIGTERM), ("recover", signal.SIGTERM)])
def test_ctrl_c_and_preemption(finished: Any, home: Any, cli: Any, tmp_path: Path, stage: str, number: signal.Signals) -> None:
    run = finished.copy(tmp_path, without=STAGES[STAGES.index(stage):])
    done = _stop(cli, home.recipe, tmp_path, stage, number, _halfway(run / stage, stage))
    assert done.code == 128 + number
    assert "Traceback" not in done.err and done.err.rstrip().endswith("Run the same command again to go on."), done.err
    assert ("Stopped by SIGTERM" in done.err) == (number == signal.SIGTERM), done.err
    assert not list(run.rglob(".*.tmp")), "half-written files are put away"
    if stage in TRAINED:
        (named,) = re.findall(r"which is saved in (\S+\.pt)\.", done.err)
        assert Path(named).exists() and re.search(rf"after step {int(Path(named).stem[5:])} of \d+ of '{stage}'", done.err), done.err
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", stage)
    assert done.code == 0, done.err
    _same(run, stage, finished)


def test_ctrl_c_at_any_place_of_a_training_step(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    """Saved in the middle of a step, weights would be a step ahead of their number. Several stops find several places."""
    mine = home.at(tmp_path / "home")
    mine.write(training={"checkpoint_minutes": 10})  # the only checkpoints are those of the stops
    assert cli("run", mine.recipe, "--runs", tmp_path / "undisturbed", "--until", "bitext").code == 0
    finished = type(finished)(tmp_path / "undisturbed" / "tiny", finished.done, 0)
    run = finished.copy(tmp_path, without=("bitext",))
    log = run / "bitext" / "log.jsonl"
    for stop in range(5):
        before = len(_lines(log)) if log.exists() else 0

        def late(before: int = before, stop: int = stop) -> bool:
            if not log.exists() or log.read_bytes().count(b"\n") < before + 4:
                return False
            time.sleep(0.003 * stop)
            return True

        done = _stop(cli, mine.recipe, tmp_path, "bitext", signal.SIGINT, late)
        assert done.code == 130, done.err
        assert len(list(run.glob("bitext/checkpoints/step-*.pt"))) == min(stop + 1, 2)
    assert cli("run", mine.recipe, "--runs", tmp_path, "--until", "bitext").code == 0
    _same(run, "bitext", finished)


def test_one_process_at_a_time(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path, without=STAGES[STAGES.index("pretrain"):])
    first = cli.start("run", home.recipe, "--runs", tmp_path, "--until", "pretrain")
    assert first.until(_halfway(run / "pretrain", "pretrain"))
    first.signal(signal.SIGSTOP)
    second = cli("run", home.recipe, "--runs", tmp_path)
    assert second.code == 1 and second.out == ""
    message = second.err.strip()
    assert message == (f"error: Another process (process {first.pid}) is at work in '{run}'. "
                       "Wait for it, stop it, or give another folder with --runs.")
    first.signal(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    third = cli("run", home.recipe, "--runs", tmp_path, "--until", "pretrain")
    assert third.code == 0, third.err
    _same(run, "pretrain", finished)


def test_killed_while_a_stage_is_cleared(finished: Any, home: Any, cli: Any, tmp_path: Path) -> None:
    """A folder whose files are half gone must not pass for a finished stage: the manifest goes first."""
    run = finished.copy(tmp_path)
    for number in range(300):  # so that clearing takes a moment
        (run / "merge" / f"a{number}").write_text("x")
    command = cli.start("run", home.recipe, "--runs", tmp_path, "--from", "merge", "--until", "merge")
    command.until(lambda: len(list((run / "merge").glob("a*"))) < 300 or not (run / "merge").exists())
    command.signal(signal.SIGKILL)
    command.wait()
    assert not (run / "merge" / "manifest.json").exists()
    done = cli("run", home.recipe, "--runs", tmp_path, "--until", "merge")
    assert done.code == 0, done.err
    _same(run, "merge", finished)
