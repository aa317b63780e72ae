"""The loop: what it learns, what it leaves, and that a stop at any moment changes nothing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from transllm.errors import TrainingError
from transllm.files import read_jsonl
from transllm.model import Adapted
from transllm.progress import Silent
from transllm.recipe.schema import Training, TrainStage
from transllm.training import Checkpoints, EncodedRow, Interrupted, Rows, TrainReport, loop, train, write_rows
from transllm.training.interrupts import Interrupts
from transllm.training.schedule import learning_rate

STEPS = 6
TIMES = {"seconds", "tokens_per_second", "matrix_share", "memory_gib"}


def _stage(**settings: Any) -> TrainStage:
    return TrainStage.model_validate({"tokens": STEPS * 128, "batch_tokens": 128, "micro_tokens": 64, "sequence_length": 32,
                                      "learning_rate": 0.02, "warmup": 0.2, **settings})


def _train(adapted: Adapted, rows: Rows, folder: Path, training: Training, *, stage: TrainStage | None = None, progress: Any = None,
           held_out: Callable[[], float] | None = None) -> TrainReport:
    folder.mkdir(exist_ok=True)
    return train(adapted, rows, stage=stage or _stage(), training=training, folder=folder, seed=5, progress=progress or Silent(),
                 label="test", held_out=held_out)


def _log(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_jsonl(folder / "log.jsonl")]


class _StopAfter(Silent):
    """Progress that calls ``stop`` at the end of a step."""

    def __init__(self, step: int, stop: Callable[[], None]) -> None:
        self._left, self._stop = step + 1, stop  # the bar is advanced once before the first step

    def advance(self, n: float, note: str = "") -> None:
        self._left -= 1
        if self._left == 0:
            self._stop()

    @contextlib.contextmanager
    def task(self, label: str, total: float, unit: str) -> Iterator[_StopAfter]:
        yield self


def _ctrl_c() -> None:
    raise KeyboardInterrupt


def test_learning_rate() -> None:
    stage = _stage(learning_rate=1.0, warmup=0.1, min_learning_rate=0.2)
    rates = [learning_rate(step, 100, stage) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10] == 1.0 and rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[55] == pytest.approx(0.6), "halfway down the cosine, between 1 and the floor"
    assert rates[99] == pytest.approx(0.2, abs=1e-3)
    assert learning_rate(0, 1, _stage(learning_rate=1.0, warmup=0.0)) == 1.0


def test_it_learns_and_reports(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path) -> None:
    points = iter([3.0, 2.0, 1.0])
    report = _train(adapt(), rows, tmp_path, make_training(), stage=_stage(tokens=30 * 128), held_out=lambda: next(points))
    lines = read_jsonl(tmp_path / "log.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    # A step has 8 rows of 12 labels (3 of 15 places are not trained) and 40 bytes.
    assert steps[0]["bits_per_byte"] == pytest.approx(steps[0]["loss"] * 8 * 13 / math.log(2) / (8 * 40), rel=1e-6)
    assert steps[0].keys() >= {"step", "steps", "tokens", "loss", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second",
                               "matrix_share", "padding", "seconds", "memory_gib"}
    assert all(0 < line["matrix_share"] < 1 and line["padding"] == 0.0 for line in steps)
    assert steps[4]["tokens"] == 5 * 128
    assert [(line["step"], line["held_out_bits_per_byte"]) for line in lines if "loss" not in line] == [(0, 3.0), (15, 2.0), (30, 1.0)]
    assert (report.steps, report.tokens, report.labels) == (30, 30 * 128, 30 * 8 * 13)
    assert report.epochs == pytest.approx(4.0) and report.padding == pytest.approx(0.0)
    assert report.loss == pytest.approx(sum(line["loss"] for line in steps[-3:]) / 3)
    assert report.seconds > 0


def test_a_line_covers_all_steps_since_the_one_before(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                      tmp_path: Path) -> None:
    _train(adapt(), rows, tmp_path / "each", make_training())
    _train(adapt(), rows, tmp_path / "fourth", make_training(log_every=4))
    each, fourth = _log(tmp_path / "each"), _log(tmp_path / "fourth")
    assert [line["step"] for line in fourth] == [4, 6], "the last step has a line too"
    assert fourth[0]["loss"] == pytest.approx(sum(line["loss"] for line in each[:4]) / 4)
    assert fourth[1]["loss"] == pytest.approx(sum(line["loss"] for line in each[4:]) / 2)


@pytest.mark.parametrize(("steps", "lines"), [(6, 6), (30, 30), (45, 23)])
def test_a_short_training_has_a_curve_too(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path,
                                          steps: int, lines: int) -> None:
    _train(adapt(), rows, tmp_path, make_training(log_every=None), stage=_stage(tokens=steps * 128))
    assert [line["step"] for line in _log(tmp_path)][-1] == steps and len(_log(tmp_path)) == lines


@pytest.mark.parametrize("kind", ["tied", "untied", "padded"])
def test_what_should_train_does_and_nothing_else(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                 tmp_path: Path, kind: str) -> None:
    adapted = adapt(kind)
    before = {name: parameter.detach().clone() for name, parameter in adapted.peft.named_parameters()}
    _train(adapted, rows, tmp_path, make_training())
    changed = {name for name, parameter in adapted.peft.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(adapted.trainable())


def test_rows_have_a_rate_of_their_own_and_no_decay(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                    tmp_path: Path) -> None:
    slow, usual = adapt(), adapt()
    start = {name: tensor.clone() for name, tensor in slow.state().items() if "lora_" not in name}
    _train(slow, rows, tmp_path / "slow", make_training(new_rows_learning_rate=1e-9), stage=_stage(weight_decay=5.0))
    _train(usual, rows, tmp_path / "usual", make_training(), stage=_stage(weight_decay=5.0))
    (name,) = start
    assert (slow.state()[name] - start[name]).abs().max() < 1e-6, "neither moved nor decayed"
    assert (usual.state()[name] - start[name]).abs().max() > 1e-2
    plain = adapt()
    _train(plain, rows, tmp_path / "plain", make_training(), stage=_stage(weight_decay=0.0))
    lora = next(key for key in plain.state() if "lora_A" in key)
    assert usual.state()[lora].abs().sum() < 0.9 * plain.state()[lora].abs().sum(), "LoRA does decay"


def _assert_same(left: Adapted, right: Adapted) -> None:
    for name, tensor in left.state().items():
        assert torch.equal(tensor, right.state()[name]), name


@pytest.mark.parametrize(("where", "dropout", "log_every"), [
    ("held out", 0.3, 4), ("end of a step", 0.3, 4), ("inside a step", 0.3, 4), ("inside a step", 0.0, 1)])
def test_a_stop_and_going_on_is_no_stop(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path,
                                        where: str, dropout: float, log_every: int) -> None:
    settings = {"dropout": dropout, "log_every": log_every}
    training = make_training(**settings)
    straight = adapt(**settings)
    expected = _train(straight, rows, tmp_path / "straight", training, held_out=lambda: 1.0)

    first = adapt(**settings)
    calls = []

    def held_out() -> float:
        calls.append(1)
        if where == "held out" and len(calls) == 2:
            raise KeyboardInterrupt
        return 1.0

    if where == "inside a step":  # the third step, in its second bin: its dropout has drawn already
        passes = iter(range(100))
        first.base.get_decoder().register_forward_hook(lambda *_: _ctrl_c() if next(passes) == 5 else None)
    with pytest.raises(Interrupted):
        _train(first, rows, tmp_path / "stopped", training, held_out=held_out,
               progress=_StopAfter(3, _ctrl_c) if where == "end of a step" else None)
    assert Checkpoints(tmp_path / "stopped" / "checkpoints").latest()["step"] == (2 if where == "inside a step" else 3)  # type: ignore[index]

    torch.manual_seed(99)  # a new process has other random numbers
    second = adapt(**settings)
    report = _train(second, rows, tmp_path / "stopped", training, held_out=lambda: 1.0)
    _assert_same(straight, second)
    assert _log(tmp_path / "stopped") == _log(tmp_path / "straight")
    assert (report.steps, report.tokens, report.labels, report.loss) == (expected.steps, expected.tokens, expected.labels, expected.loss)


def test_the_same_model_can_go_on_after_an_interrupt(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                     tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "lanes_for", lambda *_, **__: 1)  # bins one by one, so that a step can be left half done
    straight, stopped = adapt(), adapt()
    _train(straight, rows, tmp_path / "straight", make_training())
    passes = iter(range(100))
    handle = stopped.base.get_decoder().register_forward_hook(lambda *_: _ctrl_c() if next(passes) == 5 else None)
    with pytest.raises(Interrupted):
        _train(stopped, rows, tmp_path / "stopped", make_training())
    handle.remove()
    assert any(parameter.grad is not None for parameter in stopped.trainable().values()), "half a step's gradient is left"
    _train(stopped, rows, tmp_path / "stopped", make_training())
    _assert_same(straight, stopped)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_it_and_are_given_back(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                            tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"after step 2 of 6 of 'test', which is saved in .*step-00000002\.pt\.$") as caught:
        _train(adapt(), rows, tmp_path, make_training(), progress=_StopAfter(2, lambda: os.kill(os.getpid(), number)))
    assert caught.value.number == number and signal.getsignal(number) is before
    assert Checkpoints(tmp_path / "checkpoints").latest()["step"] == 2  # type: ignore[index]


def test_a_signal_waits_for_what_is_done_as_a_whole() -> None:
    interrupts, done = Interrupts(), []
    with interrupts.listen(), pytest.raises(KeyboardInterrupt), interrupts.whole():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(1)
    assert done == [1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_disturb_the_saving(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                     tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    save, seen = torch.save, []

    def slow(state: object, path: Path) -> None:
        os.kill(os.getpid(), number)
        seen.append(path)
        save(state, path)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(torch, "save", slow)
    with pytest.raises(Interrupted):
        _train(adapt(), rows, tmp_path, make_training(), progress=_StopAfter(2, lambda: os.kill(os.getpid(), number)))
    assert len(seen) == 1
    assert Checkpoints(tmp_path / "checkpoints").latest()["step"] == 2  # type: ignore[index]


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(
        adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    save, seen = torch.save, []

    def slow(state: object, path: Path) -> None:
        seen.append(path)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        save(state, path)

    monkeypatch.setattr(torch, "save", slow)
    with pytest.raises(Interrupted) as caught:
        _train(adapt(), rows, tmp_path, make_training(checkpoint_minutes=1e-9))
    assert caught.value.number == signal.SIGTERM and Checkpoints(tmp_path / "checkpoints").latest()["step"] == 3  # type: ignore[index]


def test_a_kill_between_checkpoints(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                    tmp_path: Path) -> None:
    """What a kill -9 leaves: a checkpoint that is older than the log, a torn one beside it and half a line."""
    training = make_training(dropout=0.3, checkpoint_minutes=1e-9)
    straight = adapt(dropout=0.3)
    _train(straight, rows, tmp_path / "straight", training)
    left = tmp_path / "killed"

    def copy() -> None:
        shutil.copytree(tmp_path / "run", left)

    _train(adapt(dropout=0.3), rows, tmp_path / "run", training, progress=_StopAfter(5, copy))
    names = sorted(file.name for file in (left / "checkpoints").iterdir())
    assert names == ["step-00000003.pt", "step-00000004.pt"], "two are kept, the fifth was not written yet"
    newest = left / "checkpoints" / names[1]
    newest.write_bytes(newest.read_bytes()[:5000])
    with (left / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_jsonl(left / "log.jsonl")] == [1, 2, 3, 4, 5]

    resumed = adapt(dropout=0.3)
    _train(resumed, rows, left, training)
    _assert_same(straight, resumed)
    assert _log(left) == _log(tmp_path / "straight")


def test_a_checkpoint_of_other_rows_is_not_used(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Interrupted):
        _train(adapt(), rows, tmp_path / "run", make_training(), progress=_StopAfter(3, _ctrl_c))
    other = write_rows([rows.row(number) for number in range(40)], tmp_path / "rows")
    fresh, expected = adapt(), adapt()
    _train(fresh, other, tmp_path / "run", make_training())
    assert "The checkpoint of step 3 was made with other rows or settings" in caplog.text
    _train(expected, other, tmp_path / "straight", make_training())
    _assert_same(fresh, expected)
    assert _log(tmp_path / "run") == _log(tmp_path / "straight")


def test_a_checkpoint_of_other_settings_is_not_used(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                    tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for settings, stage, begins in (({"clip_gradient": 0.5}, {}, 1), ({}, {"learning_rate": 0.01}, 1), ({"log_every": 2}, {}, 4)):
        folder = tmp_path / str(len(caplog.records))
        with pytest.raises(Interrupted):
            _train(adapt(), rows, folder, make_training(), progress=_StopAfter(3, _ctrl_c))
        caplog.clear()
        done = []
        adapted = adapt()
        adapted.base.get_decoder().register_forward_hook(lambda *_, done=done: done.append(1))  # type: ignore[misc]
        _train(adapted, rows, folder, make_training(**settings), stage=_stage(**stage))
        assert len(done) == 2 * (STEPS + 1 - begins) and bool(caplog.records) == (begins == 1), settings
        shutil.rmtree(folder)


def test_not_a_number_stops_and_names_the_rows(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                               tmp_path: Path) -> None:
    adapted = adapt()

    def spoil() -> None:
        with torch.no_grad():
            next(iter(adapted.trainable().values()))[0, 0] = math.nan

    with pytest.raises(TrainingError, match=r"Weights were not numbers before the step: .*not_a_number\.json"):
        _train(adapted, rows, tmp_path, make_training(), progress=_StopAfter(2, spoil))
    named = json.loads((tmp_path / "not_a_number.json").read_text())
    assert named["step"] == 3 and named["weights"] == [next(iter(adapted.trainable()))]
    assert [line["step"] for line in _log(tmp_path)] == [1, 2]
    assert Checkpoints(tmp_path / "checkpoints").latest() is None, "nothing that is not a number is kept"


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_several_bins_are_one_big_batch(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows, tmp_path: Path,
                                        kind: str) -> None:
    """All rows in one step, cut in bins that hold unlike numbers of labels: the gradient is the mean over all labels."""
    uneven = write_rows([EncodedRow(row.ids, [False, *[place < 1 + number % 14 for place in range(15)]], 40)
                         for number, row in enumerate(rows.row(number) for number in range(16))], tmp_path / "rows")
    found = []
    for micro in (256, 64, 16):
        adapted = adapt(kind)
        stage = _stage(tokens=256, batch_tokens=256, micro_tokens=micro, warmup=0.0)
        _train(adapted, uneven, tmp_path / str(micro), make_training(), stage=stage)
        found.append((adapted.state(), _log(tmp_path / str(micro))))
    (expected, log), *others = found
    assert len(log) == 1
    for state, lines in others:
        assert lines[0]["loss"] == pytest.approx(log[0]["loss"], rel=1e-5)
        assert lines[0]["gradient_norm"] == pytest.approx(log[0]["gradient_norm"], rel=1e-4)
        for name, tensor in state.items():
            # Adam's first step is the sign of the gradient: where that is nearly zero, rounding may turn it.
            assert ((tensor - expected[name]).abs() > 1e-4).float().mean() < 0.01, name


def test_small_updates_are_not_lost_beside_bfloat16(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                    tmp_path: Path) -> None:
    """Forty steps of 2e-6, a two-hundredth of what bfloat16 can tell apart at 0.1: they add up as in float32, and are lost if the trained
    numbers are kept in bfloat16, which is tried too."""
    class Rounding(Silent):
        def __init__(self, adapted: Adapted | None) -> None:
            self._adapted = adapted

        def advance(self, n: float, note: str = "") -> None:
            for parameter in self._adapted.trainable().values() if self._adapted is not None else ():
                parameter.data = parameter.data.bfloat16().float()

        @contextlib.contextmanager
        def task(self, label: str, total: float, unit: str) -> Iterator[Rounding]:
            yield self

    stage = _stage(tokens=40 * 128, learning_rate=2e-6, weight_decay=0.0)
    moved = {}
    for name, dtype, rounded in (("float32", torch.float32, False), ("bfloat16", torch.bfloat16, False), ("lost", torch.bfloat16, True)):
        adapted = adapt(dtype=dtype)
        before = {key: tensor.bfloat16().float() if rounded else tensor.clone() for key, tensor in adapted.state().items()}
        _train(adapted, rows, tmp_path / name, make_training(), stage=stage, progress=Rounding(adapted if rounded else None))
        # LoRA's B starts at zero, where bfloat16 is as fine as one likes.
        moved[name] = torch.cat([(tensor - before[key]).flatten() for key, tensor in adapted.state().items() if "lora_B" not in key])
    length = {name: float(difference.norm()) for name, difference in moved.items()}
    assert length["float32"] > 5e-4
    assert torch.cosine_similarity(moved["bfloat16"], moved["float32"], dim=0) > 0.9
    assert length["bfloat16"] == pytest.approx(length["float32"], rel=0.1)
    assert (moved["lost"] == 0).float().mean() > 0.9, "the control: what it would be without float32"


def test_the_mode_after_held_out_is_training_again(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                   tmp_path: Path) -> None:
    adapted = adapt(dropout=0.3)
    straight = adapt(dropout=0.3)

    def held_out() -> float:
        adapted.base.eval()
        return 1.0

    _train(adapted, rows, tmp_path / "one", make_training(dropout=0.3), held_out=held_out)
    _train(straight, rows, tmp_path / "two", make_training(dropout=0.3))
    _assert_same(adapted, straight)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_lanes_are_one_big_batch_and_the_same_each_time(adapt: Callable[..., Adapted], make_training: Callable[..., Training], rows: Rows,
                                                        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    trained = {}
    for name, width in (("one", 1), ("two", 2), ("two again", 2)):
        monkeypatch.setattr(loop, "lanes_for", lambda *_, width=width, **__: width)
        trained[name] = adapt(dropout=dropout)
        _train(trained[name], rows, tmp_path / name, make_training(dropout=dropout))
    _assert_same(trained["two"], trained["two again"])
    for name, parameter in trained["one"].trainable().items():
        torch.testing.assert_close(trained["two"].trainable()[name], parameter, rtol=1e-3, atol=1e-5)
