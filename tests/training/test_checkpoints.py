"""Checkpoints: two are kept, a torn one is passed over, none is half written."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transllm.training import Checkpoints


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def _state(step: int) -> dict[str, object]:
    return {"trained": {"w": torch.full((50,), float(step))}, "tokens": 10 * step}


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    for step in (1, 20, 3):
        checkpoints.save(step, _state(step))
    assert _names(tmp_path / "checkpoints") == ["step-00000003.pt", "step-00000020.pt"]
    latest = Checkpoints(tmp_path / "checkpoints").latest()
    assert latest is not None and latest["step"] == 20 and latest["tokens"] == 200
    assert torch.equal(latest["trained"]["w"], torch.full((50,), 20.0))
    checkpoints.clear()
    assert not (tmp_path / "checkpoints").exists()
    checkpoints.clear()


@pytest.mark.parametrize("damage", ["half", "long", "empty", "text", "zeros"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _state(1))
    big = {"trained": {f"a.rather.long.name.{number}": torch.zeros(1000) for number in range(50)}}
    checkpoints.save(2, big)
    file = tmp_path / "step-00000002.pt"
    whole = file.read_bytes()
    assert len(whole) > 150_000
    # A file of more than 64 kB that lacks its end is another error of torch's than a short one.
    file.write_bytes({"half": whole[: len(whole) // 2], "long": whole[:5000], "empty": b"", "text": b"not a checkpoint",
                      "zeros": bytes(len(whole))}[damage])
    with caplog.at_level(logging.WARNING):
        latest = checkpoints.latest()
    assert latest is not None and latest["step"] == 1
    assert "step-00000002.pt" in caplog.text
    (tmp_path / "step-00000001.pt").write_bytes(whole[:100])
    assert checkpoints.latest() is None


def test_any_flipped_or_zeroed_byte_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """torch.load alone takes such a file for whole; what it may miss still is a byte that means nothing."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _state(1))
    checkpoints.save(2, {"trained": {"w": torch.arange(4000.0)}, "tokens": 20})
    file = tmp_path / "step-00000002.pt"
    whole, places = file.read_bytes(), random.Random(1)
    seen = 0
    for number in range(300):
        place, damaged = places.randrange(len(whole)), bytearray(whole)
        damaged[place: place + 8] = bytes([whole[place] ^ 1 << number % 8]) if number % 2 else bytes(8)
        file.write_bytes(damaged)
        latest = checkpoints.latest()
        assert latest is not None
        seen += latest["step"] == 1
        if latest["step"] == 2:
            assert torch.equal(latest["trained"]["w"], torch.arange(4000.0)) and latest["tokens"] == 20
    assert seen > 280 and "taking the one before it" in caplog.text


def test_a_disk_that_refuses_leaves_the_last_one_and_says_so(tmp_path: Path) -> None:
    """In a process of its own, because the limit on the size of files cannot be raised again."""
    code = f"""
import pathlib, resource, torch
from transllm.training import Checkpoints
checkpoints = Checkpoints(pathlib.Path({str(tmp_path)!r}))
checkpoints.save(7, {{"w": torch.ones(50)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoints.save(8, {{"w": torch.ones(50_000)}})
except OSError as error:
    print(type(error).__name__, error.errno is not None, *error.__notes__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")})
    assert done.stdout.strip() == ("OSError True The last good checkpoint is step-00000007.pt (step 7); training goes on from it."), done
    assert _names(tmp_path) == ["step-00000007.pt"] and Checkpoints(tmp_path).latest()["step"] == 7  # type: ignore[index]


def test_a_kill_while_writing_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _state(1))

    def killed(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, _state(2))
    assert _names(tmp_path) == ["step-00000001.pt"]
