"""Several processes on one run: the losses of one process, whatever their number, however they share, and whichever of them ends."""

from __future__ import annotations

import importlib.util
import json
import math
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
from transllm.training import EncodedRow, Rows, write_rows
from transllm.training.schedule import plan_steps

WORKER = Path(__file__).with_name("processes_worker.py")
_spec = importlib.util.spec_from_file_location("processes_worker", WORKER)
assert _spec is not None and _spec.loader is not None
processes_worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(processes_worker)
SOURCE = str(Path(__file__).parents[2] / "src")
STEPS = 3 * 192 + 64  # tokens
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
                "original_size": tiny_spans.original_size, "size": tiny_spans.size, "stage": {"tokens": STEPS}, **settings}

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


FULL: dict[str, Any] = {"train": "full", "stage": {"tokens": STEPS, "learning_rate": 0.002}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "untied": {"kind": "untied"}, "dropout": {"dropout": 0.3}, "padded": {"kind": "padded"}, "sharded": {"shard": True},
    "sharded untied": {"shard": True, "kind": "untied", "dropout": 0.3, "again": False},
    "sharded checkpointing": {"shard": True, "gradient_checkpointing": True}, "sharded bfloat16": {"shard": True, "dtype": "bfloat16"},
    "full": FULL, "full sharded": {"shard": True, "saves": True, **FULL},
    "full sharded untied": {"shard": True, "kind": "untied", "again": False, **FULL},
    "full sharded checkpointing": {"shard": True, "gradient_checkpointing": True, **FULL},
    "full sharded gain": {"shard": True, "gain": True, **FULL},
    "full sharded bfloat16": {"shard": True, "dtype": "bfloat16", **FULL}}


@pytest.fixture(scope="module")
def both(work: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases with one process, which is this one, and with two; and trainings that go from one to two and back to one. In one of two
    processes a gradient is not a number."""
    folder = tmp_path_factory.mktemp("both")
    across = [work(folder / "across", dropout=0.3), work(folder / "full across", **FULL)]
    for one in across:
        processes_worker.run({**one, "at": 1, "rank": 0, "signal": "SIGTERM"})
    works = [work(folder / f"{name} 2", **settings) for name, settings in CASES.items()]
    spoilt = [work(folder / f"{name} spoilt", shard=True, spoilt=1, **settings) for name, settings in (("lora", {}), ("full", FULL))]
    stopped = [{**one, "at": 1, "rank": 1, "signal": "SIGINT", "shard": one.get("train") == "full"} for one in across]
    _two([*stopped, *works, *spoilt], folder)
    for one in across:
        processes_worker.run(one)
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
    other = _trained(both / f"{name} 2", 1)
    for key, tensor in _trained(both / f"{name} 2").items():
        if name.startswith("full sharded") and not any(end in key for end in ("embed_tokens", "lm_head")):
            assert not other[key].numel(), "what is put together is the main process's alone"
        else:
            assert torch.equal(tensor, other[key]), "the processes went apart"


@pytest.mark.parametrize(("name", "same"), [("across", "dropout 1"), ("full across", "full 1")])
def test_a_checkpoint_loads_under_another_number(both: Path, name: str, same: str) -> None:
    """One process makes the first step, two the second, until a signal reaches one of them, and one the rest. Where all weights train,
    the two share them."""
    assert sorted(path.name for path in (both / name / "checkpoints").iterdir()) == ["step-00000001.pt", "step-00000002.pt"]
    _same(both / name, both / same)


def _kept(folder: Path, what: str = "kept") -> list[int]:
    return [torch.load(folder / f"state-{rank}.pt")[what] for rank in (0, 1)]


def test_frozen_weights_are_shared_out(both: Path) -> None:
    whole = _kept(both / "plain 2")[0]
    assert _kept(both / "plain 2") == [whole, whole] and _kept(both / "sharded 2") == [whole // 2, whole // 2]


def test_weights_that_train_are_shared_out_with_their_moments(both: Path) -> None:
    rows = sum(tensor.numel() for name, tensor in _trained(both / "full 2").items() if "embed_tokens" in name)
    for what, whole in (("kept", 0), ("moments", rows)):
        every = _kept(both / "full 2", what)
        assert every[0] == every[1] > whole
        assert _kept(both / "full sharded 2", what) == [whole + (every[0] - whole) // 2] * 2, what


def test_processes_that_share_what_trains_agree_when_to_save(both: Path) -> None:
    assert sorted(path.name for path in (both / "full sharded 2" / "checkpoints").iterdir()) == ["step-00000002.pt", "step-00000003.pt"]


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_gradient_that_is_not_a_number_is_found_in_the_bin_of_its_process(both: Path, work: Callable[..., Any], name: str) -> None:
    """Not in those of the others, whose parts of the sum it spoils too."""
    saved = json.loads((both / f"{name} spoilt" / "not_a_number.json").read_text())
    first, second, _ = plan_steps(Rows.open(Path(work(both)["rows"])), processes_worker.stage_of(work(both)), seed=5)[0]
    assert [packed["rows"] for packed in saved["bins"]] == [second, first], "the first is there for company"
    assert all(found["gradients"] and math.isfinite(float(found["loss"])) for found in saved["found"]) and not saved["weights"]


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


@pytest.mark.parametrize(("settings", "steps"), [({}, [2]), (FULL, [])])
def test_a_process_killed_inside_a_pass_is_noticed(work: Callable[..., Any], tmp_path: Path, settings: dict[str, Any],
                                                   steps: list[int]) -> None:
    """In the third step, where the other waits for the weights of a layer. It saves what is whole."""
    file = tmp_path / "works.json"
    file.write_text(json.dumps([work(tmp_path / "killed", shard=True, killed=1, **settings)]))
    done = subprocess.run([sys.executable, str(WORKER), str(file), "2"], env=_environment(), capture_output=True, text=True)
    assert done.returncode != 0 and "LostProcessError: The connection to the other processes" in done.stderr, done.stderr
    assert [int(saved.stem[5:]) for saved in (tmp_path / "killed").glob("checkpoints/*")] == steps
