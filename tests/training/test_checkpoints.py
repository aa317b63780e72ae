"""Checkpoints: two are kept, a torn one is passed over, none is half written."""

from __future__ import annotations

import logging
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
