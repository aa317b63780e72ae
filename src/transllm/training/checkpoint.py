"""Rotating checkpoints that are whole or absent."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from transllm.files import atomic

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage: ``step-00000123.pt``, the newest two are kept.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write one under a temporary name, flush, rename; only then remove older ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic(self._folder / f"step-{step:08d}.pt") as temporary:
            torch.save({"step": step, **state}, temporary)
        for old in self._files()[:-2]:
            old.unlink()

    def latest(self) -> dict[str, Any] | None:
        """The newest that can be read; a torn one is named, and the one before it is taken."""
        for file in reversed(self._files()):
            try:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            except (RuntimeError, OSError, EOFError, BadZipFile, pickle.UnpicklingError) as error:  # what torch says of a torn file varies
                log.warning("The checkpoint %s cannot be read (%s); taking the one before it.", file.name, type(error).__name__)
                continue
            return state
        return None

    def clear(self) -> None:
        """Remove all; the stage's result is what is kept."""
        for file in self._files():
            file.unlink()
        if self._folder.is_dir():
            self._folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.pt"))
