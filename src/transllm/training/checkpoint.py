"""Rotating checkpoints that are whole or absent."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from transllm.files import DiskErrors, atomic

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage: ``step-00000123.pt``, the newest two are kept.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write one under a temporary name, flush, rename; only then remove older ones.

        Raises:
            OSError: the disk is full or refuses. What was there is as it was; a note on the error says what that is.
        """
        file = self._folder / f"step-{step:08d}.pt"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with DiskErrors(self._folder), atomic(file) as temporary:
                torch.save({"step": step, **state}, temporary)
        except OSError as error:
            last = self._files()[-1:]
            error.add_note(f"The last good checkpoint is {last[0].name} (step {int(last[0].stem[5:])}); training goes on from it."
                           if last else "There is no earlier checkpoint of this stage; it begins anew.")
            raise
        for old in self._files()[:-2]:
            old.unlink()
        return file

    def latest(self, *, mapped: bool = False) -> dict[str, Any] | None:
        """The newest that is whole; a torn or damaged one is named, and the one before it is taken.

        Args:
            mapped: leave the tensors in the file until they are read, so that processes of one machine have them in memory once.
        """
        files = self._files()
        for file in reversed(files):
            try:
                return _read(file, mapped=mapped)
            except (RuntimeError, OSError, EOFError, BadZipFile, pickle.UnpicklingError, ValueError, NotImplementedError) as error:
                # What is said of a torn file varies: zipfile, torch and pickle each have their own errors.
                log.warning("The checkpoint %s cannot be read (%s: %s); taking the one before it.", file.name, type(error).__name__,
                            str(error).partition("\n")[0])
        if files:
            log.warning("No checkpoint in %s can be read; training begins anew.", self._folder)
        return None

    def clear(self) -> None:
        """Remove all; the stage's result is what is kept."""
        for file in self._files():
            file.unlink()
        if self._folder.is_dir():
            self._folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.pt"))


def _read(file: Path, *, mapped: bool) -> dict[str, Any]:
    """Load a checkpoint whose every byte is what was written: torch.load itself accepts a file with flipped or zeroed bytes."""
    with ZipFile(file) as archive:
        damaged = archive.testzip()  # torch writes a CRC-32 of each record
    if damaged is not None:
        raise BadZipFile(f"the checksum of '{damaged}' is wrong")
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    return state
