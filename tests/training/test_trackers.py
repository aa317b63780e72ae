"""Trackers get the numbers of the log, and no point of a stopped training twice."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transllm.errors import MissingExtraError
from transllm.files import read_jsonl
from transllm.model import Adapted
from transllm.progress import Silent
from transllm.recipe.schema import Training, TrainStage
from transllm.training import Interrupted, Rows, train
from transllm.training.trackers import Trackers


def _events(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all points that TensorBoard would show: a session that starts at a step takes back what lies there."""
    from tensorboardX.proto.event_pb2 import Event

    shown: list[tuple[int, str, float]] = []
    for file in sorted(folder.glob("events.*")):
        content, place = file.read_bytes(), 0
        while place < len(content):
            length = int.from_bytes(content[place: place + 8], "little")
            event = Event.FromString(content[place + 12: place + 12 + length])
            place += 16 + length
            if event.HasField("session_log") and event.session_log.status == 1:
                shown = [point for point in shown if point[0] < event.step]
            shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return shown


def test_tensorboard_shows_the_log_whatever_stopped_it(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                       tmp_path: Path) -> None:
    training = make_training(trackers=["tensorboard", "tensorboard"])
    stage = TrainStage(tokens=6 * 128, batch_tokens=128, micro_tokens=64, sequence_length=32)
    first = adapt()
    passes = iter(range(1, 100))

    def stop(*_: object) -> None:
        if next(passes) == 9:  # in the fifth step
            raise KeyboardInterrupt

    first.base.get_decoder().register_forward_hook(stop)
    for adapted in (first, adapt()):
        try:
            train(adapted, rows, stage=stage, training=training, folder=tmp_path, seed=5, progress=Silent(), label="x",
                  held_out=lambda: 1.5)
        except Interrupted:
            (tmp_path / "checkpoints" / "step-00000004.pt").rename(tmp_path / "checkpoints" / "step-00000004.lost")
            assert len(read_jsonl(tmp_path / "log.jsonl")) == 6
    shown = _events(tmp_path / "tensorboard")
    wanted = [(line["step"], key, value) for line in read_jsonl(tmp_path / "log.jsonl") for key, value in line.items()
              if key not in ("step", "steps")]
    assert sorted((step, name) for step, name, _ in shown) == sorted((step, name) for step, name, _ in wanted)
    for step, name, value in wanted:
        assert (step, name, pytest.approx(value, rel=1e-5)) in shown


def test_a_full_disk_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    """tensorboardX's own writer would wait at the end of the process for a thread that could not write."""
    code = f"""
import pathlib, resource
from transllm.training.trackers import Trackers
trackers = Trackers(["tensorboard"], folder=pathlib.Path({str(tmp_path)!r}), step=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
try:
    for step in range(1, 300):
        trackers.log({{"step": step, **{{f"a{{number}}": 0.5 for number in range(12)}}}})
except OSError as error:
    print("errno", error.errno, step)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")})
    assert done.stdout.startswith(f"errno {errno.EFBIG} "), done


def test_a_tracker_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'wandb' of training.trackers needs .* pip install 'transllm\[wandb\]'"):
        Trackers(["wandb"], folder=tmp_path, step=0)


def test_any_tracker_of_accelerate_starts_and_goes_on_in_its_run(tmp_path: Path) -> None:
    """In a process that has used nothing else of accelerate; with a package in the place of W&B's, which takes what it is told."""
    code = f"""
import pathlib, sys, types
class Run:
    def log(self, values, step): print("log", step, values)
    def finish(self): print("finish")
def init(**settings):
    print("init", sorted(settings), settings["id"], settings["resume"])
    return Run()
wandb = types.ModuleType("wandb")
wandb.init = init
wandb.__spec__ = types.SimpleNamespace()
sys.modules["wandb"] = wandb
from transllm.training.trackers import Trackers
for step in (0, 2):
    trackers = Trackers(["wandb"], folder=pathlib.Path({str(tmp_path / "run" / "bitext")!r}), step=step)
    trackers.log({{"step": step + 1, "steps": 9, "loss": 0.5, "event": "x"}})
    trackers.finish()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")})
    first, log, end, *second = done.stdout.splitlines()
    assert log == "log 1 {'loss': 0.5}" and end == "finish", done
    assert re.fullmatch(r"init \['dir', 'id', 'name', 'project', 'resume'\] run-bitext-[0-9a-f]{8} allow", first)
    assert second == [first, "log 3 {'loss': 0.5}", "finish"], "the second sitting is the same run"


def test_a_service_that_fails_is_told_of_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Service:
        def __init__(self, name: str) -> None:
            self.name, self.seen = name, list[Any]()

        def log(self, numbers: dict[str, float], *, step: int) -> None:
            if self.name == "broken" and step == 2:
                raise ConnectionError("no answer from the server")
            self.seen.append((step, numbers))

        def finish(self) -> None:
            self.seen.append("finish")

    trackers = Trackers([], folder=tmp_path, step=0)
    trackers._trackers = [Service("broken"), Service("whole")]
    broken, whole = trackers._trackers
    for step in (1, 2, 3):
        trackers.log({"step": step, "loss": 0.5})
    trackers.finish()
    assert [one if one == "finish" else one[0] for one in whole.seen] == [1, 2, 3, "finish"] and len(broken.seen) == 1
    assert caplog.text.count("'broken' has failed (ConnectionError: no answer from the server)") == 1


def test_none_writes_nothing(tmp_path: Path) -> None:
    trackers = Trackers([], folder=tmp_path, step=0)
    trackers.log({"step": 1, "loss": 1.0})
    trackers.finish()
    assert list(tmp_path.iterdir()) == []
