"""``transllm run`` as a launcher starts it: two processes, one run."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from transllm.files import read_jsonl


def _both(cli: Any, *args: str | Path, **environment: str) -> list[Any]:
    """Two processes that know each other, with what torchrun tells them. There is no torchrun: they end by themselves or not at all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [cli.start(*args, WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **environment)
            for rank in ("0", "1")]


def _losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_jsonl(folder / "log.jsonl") if "loss" in line]


def _close(folder: Path, expected: Path, file: str = "adapter_model.safetensors") -> None:
    """The same training, within what the order of sums and 16 steps of Adam make of float32."""
    assert _losses(folder) == pytest.approx(_losses(expected), rel=1e-3)
    mine, theirs = (load_file(path / file) for path in (folder, expected))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert (~torch.isclose(tensor, theirs[name], rtol=1e-2, atol=1e-3)).float().mean() < 0.02, name


def test_a_whole_run(home: Any, cli: Any, tmp_path: Path) -> None:
    """Frozen weights are shared out in some of its trainings; all that is not training is the main process's."""
    mine = home.at(tmp_path / "home")
    mine.write(pretrain={"micro_tokens": 64}, bitext={"tokens": 2000}, recover={"prompts": [{"files": "prompts.txt"}], "count": 6})
    commands = _both(cli, "run", mine.recipe, "--runs", tmp_path, "--until", "pretrain")
    main, other = (command.wait() for command in commands)
    assert (main.code, other.code, other.out, other.err) == (0, 0, "", ""), main.err + other.err
    manifest = json.loads((tmp_path / "tiny" / "pretrain" / "manifest.json").read_text())
    assert (manifest["metrics"]["processes"], manifest["metrics"]["sharded"]) == (2, False)
    alone = cli("run", mine.recipe, "--runs", tmp_path / "alone", "--until", "pretrain")
    assert alone.code == 0, alone.err
    _close(tmp_path / "tiny" / "pretrain", tmp_path / "alone" / "tiny" / "pretrain")

    main, other = (command.wait() for command in _both(cli, "run", mine.recipe, "--runs", tmp_path, ACCELERATE_USE_FSDP="true",
                                                       FSDP_VERSION="2"))
    assert (main.code, other.code, other.out, other.err) == (0, 0, "", ""), main.err + other.err
    assert "Chat:" in main.out and main.err.count("done already") == 3
    assert json.loads((tmp_path / "tiny" / "finetune" / "manifest.json").read_text())["metrics"]["sharded"]


def test_all_weights_train_shared_out(home: Any, cli: Any, tmp_path: Path) -> None:
    """Two stages, so that the second goes on from what two processes put together; it is stopped and goes on."""
    mine = home.at(tmp_path / "home")
    stage = {"tokens": 2000, "micro_tokens": 64, "learning_rate": 1e-3}
    mine.write(training={"train": "full"}, pretrain=stage, bitext=stage)
    sharing = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    run = tmp_path / "tiny"
    commands = _both(cli, "run", mine.recipe, "--runs", tmp_path, "--until", "bitext", **sharing)
    assert commands[0].until(lambda: len(_losses(run / "bitext")) >= 3)
    commands[1].signal(signal.SIGTERM)
    stopped = [command.wait() for command in commands]
    assert [one.code for one in stopped] == [143, 143], stopped
    done = [command.wait() for command in _both(cli, "run", mine.recipe, "--runs", tmp_path, "--until", "bitext", **sharing)]
    assert [one.code for one in done] == [0, 0], done
    assert done[0].err.count("asks for DeepSpeed's ZeRO stage 2. PyTorch's FSDP2 does") == 1 and not done[1].err, done
    metrics = json.loads((run / "bitext" / "manifest.json").read_text())["metrics"]
    assert (metrics["processes"], metrics["sharded"], metrics["train"]) == (2, True, "full")
    assert not (run / "bitext" / "checkpoints").exists()
    alone = cli("run", mine.recipe, "--runs", tmp_path / "alone", "--until", "bitext")
    assert alone.code == 0, alone.err
    for name in ("pretrain", "bitext"):
        for file in ("body.safetensors", "rows.safetensors"):
            _close(run / name, tmp_path / "alone" / "tiny" / name, file)


def test_a_process_that_has_a_part_of_the_state_is_killed(home: Any, cli: Any, tmp_path: Path) -> None:
    """What it had cannot be saved any more: the last checkpoint before stays, and the error says so."""
    mine = home.at(tmp_path / "home")
    mine.write(pretrain={"tokens": 200_000}, training={"train": "full", "checkpoint_minutes": 0.0001})
    run = tmp_path / "tiny"
    main, other = _both(cli, "run", mine.recipe, "--runs", tmp_path, "--until", "pretrain", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert main.until(lambda: len(_losses(run / "pretrain")) >= 4)
    other.signal(signal.SIGKILL)
    done = main.wait()
    assert done.code == 1 and "Traceback" not in done.err and done.err.count("error:") == 1, done.err
    assert "Run the same command again to go on from the last checkpoint" in done.err
    steps = [int(file.stem[5:]) for file in sorted((run / "pretrain" / "checkpoints").iterdir())]
    assert len(steps) == 2 and steps[-1] >= 2


def test_a_killed_process_ends_the_run(home: Any, cli: Any, tmp_path: Path) -> None:
    mine = home.at(tmp_path / "home")
    mine.write(pretrain={"tokens": 200_000}, training={"checkpoint_minutes": 60})
    run = tmp_path / "tiny"
    assert cli("run", mine.recipe, "--runs", tmp_path, "--until", "extend").code == 0
    main, other = _both(cli, "run", mine.recipe, "--runs", tmp_path, "--until", "pretrain")
    assert main.until(lambda: len(_losses(run / "pretrain")) >= 3)
    other.signal(signal.SIGKILL)
    killed = time.monotonic()
    done = main.wait()
    assert time.monotonic() - killed < 20 and other.wait().code == -signal.SIGKILL
    assert done.code == 1 and "Traceback" not in done.err and done.err.count("error:") == 1, done.err
    assert "Run the same command again to go on from the last checkpoint" in done.err
    (checkpoint,) = (run / "pretrain" / "checkpoints").iterdir()
    assert int(checkpoint.stem[5:]) == len(_losses(run / "pretrain")) >= 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_stops_both(home: Any, cli: Any, tmp_path: Path, rank: int) -> None:
    mine = home.at(tmp_path / "home")
    mine.write(pretrain={"tokens": 200_000}, training={"checkpoint_minutes": 60})
    run = tmp_path / "tiny"
    commands = _both(cli, "run", mine.recipe, "--runs", tmp_path, "--until", "pretrain")
    assert commands[0].until(lambda: len(_losses(run / "pretrain")) >= 3)
    commands[rank].signal(signal.SIGTERM)
    done = [command.wait() for command in commands]
    assert [one.code for one in done] == [143, 143]
    said = "".join(one.err for one in done)
    assert said.count("Stopped by SIGTERM after step") == 1 and "Traceback" not in said and "error:" not in said
    assert len(list((run / "pretrain" / "checkpoints").iterdir())) == 1


def test_an_error_is_told_once(home: Any, cli: Any, tmp_path: Path) -> None:
    """Of a stage that the main process does alone, and of a launcher's configuration."""
    mine = home.at(tmp_path / "home")
    mine.write(extend={"vocab_size": 40, "min_identical": 1.0})
    for environment, message in (({}, "error:"), ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
                                                         "offload")):
        done = [command.wait() for command in _both(cli, "run", mine.recipe, "--runs", tmp_path, **environment)]
        assert [one.code for one in done] == [1, 1]
        assert sum(one.err.count("error:") for one in done) == 1 and message in "".join(one.err for one in done), done
        mine.write(extend={"min_identical": 0.0})
