"""The guards stop what goes wrong in silence, say where it began, and let alone what only looks odd."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transllm.errors import TrainingError
from transllm.files import read_jsonl
from transllm.model import Adapted
from transllm.progress import Silent
from transllm.recipe.schema import Training, TrainStage
from transllm.training import IGNORE, EncodedRow, Interrupted, Rows, loop, train, write_rows
from transllm.training.movement import _bits


class _Told(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def _run(adapted: Adapted, rows: Rows, folder: Path, training: Training, *, steps: int = 4, progress: Silent | None = None,
         held_out: Callable[[], float] | None = None, **settings: Any) -> None:
    stage = TrainStage.model_validate({"tokens": steps * 128, "batch_tokens": 128, "micro_tokens": 64, "sequence_length": 32,
                                       "learning_rate": 0.01, "warmup": 0.0, **settings})
    folder.mkdir(exist_ok=True)
    train(adapted, rows, stage=stage, training=training, folder=folder, seed=5, progress=progress or Silent(), label="bitext",
          held_out=held_out)


def _on_call(module: torch.nn.Module, number: int, change: Callable[[Any], Any]) -> None:
    """Change what a module gives at its n-th call (from 1)."""
    calls = iter(range(1, 10_000))
    module.register_forward_hook(lambda _, __, out: change(out) if next(calls) == number else None)


def test_memory_that_runs_out_says_what_to_lower(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                 tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "lanes_for", lambda *_, **__: 1)
    adapted = adapt()
    _on_call(adapted.base.get_decoder(), 3, lambda out: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.\nAnd more.")))
    with pytest.raises(TrainingError, match=r"step 2 of 'bitext' \(CUDA out of memory\)\. Lower bitext\.micro_tokens \(now 64\)"):
        _run(adapted, rows, tmp_path, make_training())


def test_a_last_update_that_spoils_the_weights_is_seen(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                       tmp_path: Path) -> None:
    found = iter([1.0, 1.0, math.nan])
    with pytest.raises(TrainingError, match="not a number after step 4"):
        _run(adapt(), rows, tmp_path, make_training(), held_out=lambda: next(found))


# NaN

@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_nan_is_traced_and_its_batch_saved(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                             tmp_path: Path, dropout: float) -> None:
    adapted = adapt(dropout=dropout)
    wrong = 7  # an old token

    def overflow(_: Any, inputs: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        return torch.where((inputs[0] == wrong).unsqueeze(-1), torch.full_like(out, math.inf), out)

    adapted.base.get_input_embeddings().register_forward_hook(overflow)
    plain = [EncodedRow([8 if token == wrong else token for token in row.ids], row.trained, row.n_bytes)
             for row in (rows.row(number) for number in range(32))]
    plain[20] = EncodedRow([*plain[20].ids[:5], wrong, *plain[20].ids[6:]], plain[20].trained, 40)
    with pytest.raises(TrainingError) as caught:
        _run(adapted, write_rows(plain, tmp_path / "rows"), tmp_path, make_training(dropout=dropout))
    saved = json.loads((tmp_path / "not_a_number.json").read_text())
    (number,) = [number for number, packed in enumerate(saved["bins"]) if 20 in packed["rows"]]
    assert [not math.isfinite(float(found["loss"])) for found in saved["found"]] == [index == number for index in range(len(saved["bins"]))]
    assert f"begins in bin {number + 1} of 2 (4 rows, loss nan)" in str(caught.value)
    assert f"step {saved['step']} " in str(caught.value) and "lora_" in str(caught.value) and not saved["weights"]
    assert saved["found"][number]["gradients"] and not saved["found"][1 - number]["gradients"]
    packed = saved["bins"][number]
    place = 16 * packed["rows"].index(20)
    assert packed["lengths"] == [16] * 4 and packed["ids"][place: place + 16] == plain[20].ids
    wanted = [token if learned else IGNORE for token, learned in zip(plain[20].ids[1:], plain[20].trained[1:], strict=True)]
    assert packed["labels"][place: place + 16] == [*wanted, IGNORE]
    assert len(read_jsonl(tmp_path / "log.jsonl")) == saved["step"] - 1


def test_a_nan_that_does_not_come_again_is_said_to_be_the_machine(
        adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path) -> None:
    adapted = adapt()
    _on_call(adapted.base.get_decoder().norm, 4, lambda out: out * math.nan)
    with pytest.raises(TrainingError, match="Computed again, the same step is finite: suspect the machine"):
        _run(adapted, rows, tmp_path, make_training())


# a leap of the loss

def _leaping(adapted: Adapted, step: int) -> None:
    """Both bins of a step see hidden states that are far off."""
    for number in (2 * step - 1, 2 * step):
        _on_call(adapted.base.get_decoder().norm, number, lambda out: out * -5)


def test_a_leap_is_told_and_nothing_else_is(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                            tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "lanes_for", lambda *_, **__: 1)
    adapted, told = adapt(), _Told()
    _leaping(adapted, 25)
    _run(adapted, rows, tmp_path, make_training(log_every=10), steps=30, learning_rate=1e-4, progress=told)
    (line,) = [line for line in read_jsonl(tmp_path / "log.jsonl") if line.get("event")]
    assert (line["event"], line["step"]) == ("loss_spike", 25) and line["z"] >= 8 and line["step_loss"] > line["median"]
    assert len(line["rows"]) == 2 and all(0 <= row < 60 for rows_of_bin in line["rows"] for row in rows_of_bin)
    assert len(told.said) == 1 and told.said[0].startswith("warning: The loss of step 25 leapt to")
    assert [line["step"] for line in read_jsonl(tmp_path / "log.jsonl") if "loss" in line] == [10, 20, 30]


def test_it_can_stop_there_and_go_on(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch looks back over a stop, so that a resumed training sees the same leap."""
    monkeypatch.setattr(loop, "lanes_for", lambda *_, **__: 1)
    first, second = adapt(), adapt()
    _on_call(first.base.get_decoder(), 2 * 22, lambda out: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted):
        _run(first, rows, tmp_path, make_training(), steps=30, learning_rate=1e-4)
    _leaping(second, 25 - 21)
    with pytest.raises(TrainingError, match=r"loss of step 25 leapt .*--failed.*stop_on_spike=false"):
        _run(second, rows, tmp_path, make_training(stop_on_spike=True), steps=30, learning_rate=1e-4)
    saved = json.loads((tmp_path / "loss_spike.json").read_text())
    assert saved["step"] == 25 and [len(packed["ids"]) for packed in saved["bins"]] == [64, 64]
    _run(adapt(), rows, tmp_path, make_training(), steps=30, learning_rate=1e-4)
    assert [line["step"] for line in read_jsonl(tmp_path / "log.jsonl")] == list(range(1, 31)), "another switch is the same training"


# movement

def test_a_frozen_weight_that_moves_is_an_error(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = adapt()
    name, weight = next((name, weight) for name, weight in adapted.peft.named_parameters() if "o_proj.base_layer" in name)
    made = loop.make_optimizer

    def wrong(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = made(*arguments)
        step = optimizer.step

        def stepping(*args: Any, **kwargs: Any) -> Any:
            weight.data.view(-1)[0] += 1e-6
            return step(*args, **kwargs)

        optimizer.step = stepping  # type: ignore[method-assign]
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", wrong)
    with pytest.raises(TrainingError, match=f"{name} should be frozen, but changed in the first step"):
        _run(adapted, rows, tmp_path, make_training())
    assert not (tmp_path / "checkpoints").exists() and read_jsonl(tmp_path / "log.jsonl") == []


def test_an_optimiser_that_holds_other_tensors_is_an_error(
        adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = adapt()
    lost = [name for name in adapted.trainable() if "layers.1" in name and "up_proj.lora_B" in name]
    monkeypatch.setattr(loop, "make_optimizer", lambda adapted, stage, training: _groups_without(adapted, lost))
    with pytest.raises(TrainingError, match=f"{lost[0]} had a gradient in step 1 but did not change: the optimiser does not hold"):
        _run(adapted, rows, tmp_path, make_training())


def _groups_without(adapted: Adapted, lost: list[str]) -> torch.optim.Optimizer:
    kept = [parameter for name, parameter in adapted.trainable().items() if name not in lost]
    return torch.optim.AdamW([{"params": kept, "rate_factor": 1.0}], lr=0.01)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_weight_without_a_gradient_is_an_error(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                 tmp_path: Path, decay: float) -> None:
    """LoRA's A has none in the first step and decay moves it, so it is the second step that tells."""
    adapted = adapt()
    name = next(name for name in adapted.trainable() if "layers.0" in name and "down_proj.lora_A" in name)
    adapted.trainable()[name].register_hook(torch.zeros_like)
    with pytest.raises(TrainingError, match=f"{name} should train, but had no gradient in the first two steps"):
        _run(adapted, rows, tmp_path, make_training(), weight_decay=decay)
    assert [line["step"] for line in read_jsonl(tmp_path / "log.jsonl")] == [1]


def test_a_weight_that_the_loss_does_not_see_is_an_error(
        adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path) -> None:
    adapted = adapt()
    adapted.base.get_decoder().layers[1].register_parameter("forgotten", torch.nn.Parameter(torch.ones(3, 3)))
    with pytest.raises(TrainingError, match="forgotten should train, but had no gradient in the first step:"):
        _run(adapted, rows, tmp_path, make_training())


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_rows_of_tokens_that_have_not_come_yet_are_waited_for(
        adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path, kind: str) -> None:
    adapted = adapt(kind)
    old = [EncodedRow([token % 20 for token in row.ids], row.trained, row.n_bytes) for row in (rows.row(number) for number in range(40))]
    _run(adapted, write_rows(old, tmp_path / "rows"), tmp_path, make_training())
    assert len(read_jsonl(tmp_path / "log.jsonl")) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("numbers", [1, 6, 7, 64])
def test_the_sum_of_bits_sees_the_smallest_change(dtype: torch.dtype, numbers: int) -> None:
    tensor = (torch.arange(numbers) + 1).to(dtype)
    odd = torch.cat([tensor, tensor])[1: numbers + 1]  # begins where no whole number of eight bytes does
    for parameter in (tensor, odd):
        before = _bits([parameter])
        parameter.view(torch.uint8)[-parameter.element_size()] ^= 1
        assert not torch.equal(_bits([parameter]), before)
        parameter.view(torch.uint8)[-parameter.element_size()] ^= 1
        assert torch.equal(_bits([parameter]), before)
