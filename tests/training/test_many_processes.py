"""Several processes on one run: the losses of one process, whatever their number, however they share, and whichever of them ends."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transllm.files import read_jsonl
from transllm.tokenizer import SpanTokenizer
from transllm.training import EncodedRow, write_rows

WORKER = Path(__file__).with_name("processes_worker.py")
_spec = importlib.util.spec_from_file_location("processes_worker", WORKER)
assert _spec is not None and _spec.loader is not None
processes_worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(processes_worker)
SOURCE = str(Path(__file__).parents[2] / "src")
# One process and two add up the same numbers in another order; float32, 4 steps of Adam.
LOSS, WEIGHT = {"rel": 1e-5}, {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module")
def work(make_folders: Callable[[str], Any], tiny_spans: SpanTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A training's description; four steps of three bins, so that two processes have unlike numbers of bins with unlike numbers of labels,
    and the last step has one bin only."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(60):
        ids = torch.randint(0, 20, (16,), generator=generator)
        ids[3::5] = tiny_spans.original_size + number % (tiny_spans.size - tiny_spans.original_size)
        rows.append(EncodedRow(ids.tolist(), [False, *[place < 1 + number % 14 for place in range(15)]], 40))
    folder = tmp_path_factory.mktemp("rows")
    write_rows(rows, folder)

    def make(target: Path, **settings: Any) -> dict[str, Any]:
        return {"folder": str(target), "rows": str(folder), "model": str(make_folders(settings.pop("kind", "tied")).extended),
                "original_size": tiny_spans.original_size, "size": tiny_spans.size, "stage": {"tokens": 3 * 192 + 64}, **settings}

    return make


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE, "HF_HUB_OFFLINE": "1"}


def _two(works: list[dict[str, Any]], folder: Path) -> None:
    """Do some trainings with two processes."""
    file = folder / "works.json"
    file.write_text(json.dumps(works))
    done = subprocess.run([sys.executable, str(WORKER), str(file), "2"], env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _log(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_jsonl(folder / "log.jsonl") if "loss" in line]


def _trained(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    trained: dict[str, torch.Tensor] = torch.load(folder / f"state-{rank}.pt")["trained"]
    return trained


def _same(folder: Path, expected: Path) -> None:
    mine, theirs = _log(folder), _log(expected)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == [1, 2, 3, 4]
    for left, right in zip(mine, theirs, strict=True):
        assert (left["tokens"], left["learning_rate"]) == (right["tokens"], right["learning_rate"])
        assert left["loss"] == pytest.approx(right["loss"], **LOSS), left["step"]
        assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-4)
    for name, tensor in _trained(folder).items():
        # Adam's first steps are signs of gradients: where one is nearly zero, rounding may turn it.
        far = ~torch.isclose(tensor, _trained(expected)[name], **WEIGHT)
        assert far.float().mean() < 0.01, name


CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "untied": {"kind": "untied"}, "dropout": {"dropout": 0.3}, "padded": {"kind": "padded"}, "sharded": {"shard": True},
    "sharded untied": {"shard": True, "kind": "untied", "dropout": 0.3},
    "sharded checkpointing": {"shard": True, "gradient_checkpointing": True}, "sharded bfloat16": {"shard": True, "dtype": "bfloat16"}}


@pytest.fixture(scope="module")
def both(work: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases with one process, which is this one, and with two; and a training that goes from one to two and back to one."""
    folder = tmp_path_factory.mktemp("both")
    across = work(folder / "across", dropout=0.3)
    processes_worker.run({**across, "at": 1, "rank": 0, "signal": "SIGTERM"})
    works = [work(folder / f"{name} 2", **settings) for name, settings in CASES.items()]
    _two([{**across, "at": 1, "rank": 1, "signal": "SIGINT"}, *works], folder)
    processes_worker.run(across)
    for name, settings in CASES.items():
        processes_worker.run(work(folder / f"{name} 1", **{**settings, "shard": False}))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(both: Path, name: str) -> None:
    if CASES[name].get("dtype") is None:
        _same(both / f"{name} 2", both / f"{name} 1")
    else:
        for left, right in zip(_log(both / f"{name} 2"), _log(both / f"{name} 1"), strict=True):
            assert left["loss"] == pytest.approx(right["loss"], rel=1e-2)
    for key, tensor in _trained(both / f"{name} 2").items():
        assert torch.equal(tensor, _trained(both / f"{name} 2", 1)[key]), "the processes went apart"


def test_a_checkpoint_loads_under_another_number(both: Path) -> None:
    """One process makes the first step, two the second, until a signal reaches one of them, and one the rest."""
    assert sorted(path.name for path in (both / "across" / "checkpoints").iterdir()) == ["step-00000001.pt", "step-00000002.pt"]
    _same(both / "across", both / "dropout 1")


def test_frozen_weights_are_shared_out(both: Path) -> None:
    def kept(name: str) -> list[int]:
        return [torch.load(both / name / f"state-{rank}.pt")["kept"] for rank in (0, 1)]

    whole = kept("plain 2")[0]
    assert kept("plain 2") == [whole, whole] and kept("sharded 2") == [whole // 2, whole // 2]


def test_a_killed_process_ends_the_run_with_a_checkpoint(both: Path, work: Callable[..., Any], tmp_path: Path) -> None:
    """kill -9 of one of two under torchrun, after the second step and before any checkpoint is due."""
    killed = work(tmp_path / "killed")
    works = tmp_path / "works.json"
    works.write_text(json.dumps([{**killed, "at": 2, "rank": 1, "signal": "SIGKILL"}]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, str(WORKER), str(works)], env=_environment(), capture_output=True, text=True)
    assert done.returncode != 0, "torchrun's own stop may come before the error is told, but not before the checkpoint"
    (saved,) = (tmp_path / "killed" / "checkpoints").iterdir()
    assert int(saved.stem[5:]) in (1, 2), "the second step is lost if the last of its sums was still on its way"
    processes_worker.run(killed)
    _same(tmp_path / "killed", both / "plain 1")
