"""A run on a device that is not the processor: nothing is on the wrong one, and what is learned is what the processor learns."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest

from transllm.files import read_jsonl

PRETEND = {"PRETEND_DEVICE": "1"}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0}
PLAIN: dict[str, Any] = {"training": {"lora": LORA, "compile": "off"}, "pretrain": {"tokens": 800},
                         "bitext": {"tokens": 1500}, "finetune": {"tokens": 800}}
# All that works otherwise with an accelerator's tensors: layers computed again, peft's own layers, the original's logits, drawn words.
OTHERWISE: dict[str, Any] = PLAIN | {
    "training": {"lora": LORA | {"variant": "dora"}, "compile": "off", "gradient_checkpointing": True, "precision": "bfloat16"},
    "recover": {"by": "both"}, "bridge": {"translator": "self"}, "finetune": {"tokens": 800, "own": 0.2, "own_words": "distribution"}}


def _figures(run: Path, stage: str) -> list[list[float]]:
    names = ("loss", "gradient_norm", "bits_per_byte", "held_out_bits_per_byte", "kl_to_original")
    return [[line[name] for name in names if name in line] for line in read_jsonl(run / stage / "log.jsonl")]


@pytest.fixture(scope="module")
def ran(home: Any, cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run a recipe with changes, on the accelerator or not; gives the run's folder."""
    def run(changes: dict[str, Any], until: str, **environment: str) -> Path:
        folder = tmp_path_factory.mktemp("accelerated")
        recipe = home.at(folder / "home").write(**changes)
        done = cli.start("run", recipe, "--runs", folder, "--until", until, **environment).wait()
        assert done.code == 0, done.err
        return folder / "tiny"

    return run


@pytest.fixture(scope="module")
def plain(ran: Callable[..., Path]) -> Path:
    return ran(PLAIN, "merge", **PRETEND)


def test_it_learns_what_a_processor_learns(ran: Callable[..., Path], plain: Path) -> None:
    processor = ran(PLAIN, "finetune")
    for stage in ("pretrain", "bitext"):
        there, here = _figures(plain, stage), _figures(processor, stage)
        assert len(there) == len(here) > 5
        for on_accelerator, on_processor in zip(there, here, strict=True):
            assert on_accelerator == pytest.approx(on_processor, rel=5e-3)
    # What the model wrote may part where two tokens are nearly as likely, and so may what is learned from it.
    there, here = ([line[0] for line in _figures(run, "finetune")] for run in (plain, processor))
    assert statistics.mean(there) == pytest.approx(statistics.mean(here), rel=0.05)
    manifest = json.loads((plain / "finetune" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["metrics"]["compiled_kernels"] is False, "those are a processor's"


def test_what_else_it_can_be_asked_for(ran: Callable[..., Path]) -> None:
    there, here = ran(OTHERWISE, "finetune", **PRETEND), ran(OTHERWISE, "pretrain")
    for on_accelerator, on_processor in zip(_figures(there, "pretrain"), _figures(here, "pretrain"), strict=True):
        assert on_accelerator[0] == pytest.approx(on_processor[0], rel=0.05), "the loss, in bfloat16"
    finetuned = _figures(there, "finetune")
    assert any(len(line) == 4 for line in finetuned), "held against the original"
    assert all(math.isfinite(figure) for line in finetuned for figure in line)


def test_it_goes_on_where_it_was_stopped(home: Any, cli: Any, plain: Path, tmp_path: Path) -> None:
    recipe = home.at(tmp_path / "home").write(**PLAIN)
    log = tmp_path / "tiny" / "pretrain" / "log.jsonl"
    command = cli.start("run", recipe, "--runs", tmp_path, "--until", "pretrain", **PRETEND)
    assert command.until(lambda: log.is_file() and log.read_bytes().count(b"\n") >= 3)
    command.signal(SIGTERM)
    stopped = command.wait()
    assert stopped.code == 128 + SIGTERM and "saved" in stopped.err
    again = cli.start("run", recipe, "--runs", tmp_path, "--until", "pretrain", **PRETEND).wait()
    assert again.code == 0, again.err
    assert _figures(tmp_path / "tiny", "pretrain") == _figures(plain, "pretrain")


def test_it_can_be_talked_to(cli: Any, plain: Path) -> None:
    done = cli.start("chat", plain, "--max-tokens", "8", text="¿Qué hay en la biblioteca?\n", **PRETEND).wait()
    assert done.code == 0 and done.out.strip(), done.err


def test_the_device_tells_what_is_on_the_wrong_one() -> None:
    """Without this the tests above would say little."""
    script = """
        import pretend_device
        import torch
        there, here = torch.ones(3, device="pretend"), torch.ones(3)
        assert (there + 1).device.type == torch.accelerator.current_accelerator().type == "pretend"
        assert there.to("cpu").tolist() == [1, 1, 1]
        assert there[torch.tensor([0, 2])].device.type == "pretend"
        for wrong in (lambda: there + here, lambda: there.numpy(), lambda: there.index_select(0, torch.tensor([0])),
                      lambda: there.index_put_((torch.tensor([0]),), torch.ones(1)), lambda: here[there.long()]):
            try:
                wrong()
            except (RuntimeError, TypeError):
                continue
            raise SystemExit("nobody noticed")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
