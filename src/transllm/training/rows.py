"""Encoded rows on disk: token ids, which of them are trained, and how many bytes of text those stand for.

Rows of any number are three flat arrays, memory-mapped, so memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transllm.errors import TrainingError
from transllm.files import write_json


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One document or conversation.

    Attributes:
        ids: token ids.
        trained: for each id, whether the model learns to predict it. The first never is: nothing stands before it.
        n_bytes: UTF-8 bytes of the text that the trained ids stand for; for bits per byte.
    """

    ids: list[int]
    trained: list[bool]
    n_bytes: int


@dataclass(frozen=True)
class Rows:
    """Rows read back, memory-mapped.

    Attributes:
        ids: (tokens,) int32.
        trained: (tokens,) bool.
        offsets: (rows + 1,) int64, where each row starts.
        n_bytes: (rows,) int32.
        digest: of all of the above.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    n_bytes: NDArray[np.int32]
    digest: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    def lengths_of(self, bins: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """Tokens of each row of some bins."""
        numbers = np.concatenate([np.asarray(members, dtype=np.int64) for members in bins])
        return np.asarray(self.offsets[numbers + 1] - self.offsets[numbers])

    def row(self, index: int) -> EncodedRow:
        """One row as lists."""
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return EncodedRow(self.ids[span].tolist(), self.trained[span].tolist(), int(self.n_bytes[index]))

    @classmethod
    def open(cls, folder: Path) -> Rows:
        """Open what ``write_rows`` wrote."""
        meta = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "trained", "offsets", "n_bytes")}
        return cls(**arrays, digest=meta["digest"])


def write_rows(rows: Iterable[EncodedRow], folder: Path) -> Rows:
    """Write rows and open them; ``rows.json`` comes last, so that a folder with it is whole.

    Raises:
        TrainingError: a row trains nothing (its loss would be 0 / 0), or there is no row at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").unlink(missing_ok=True)  # of an earlier try
    ids: list[NDArray[np.int32]] = []
    trained: list[NDArray[np.bool_]] = []
    lengths: list[int] = []
    n_bytes: list[int] = []
    for number, row in enumerate(rows):
        if len(row.ids) != len(row.trained) or not any(row.trained[1:]):
            raise TrainingError(f"Row {number} has no token to learn from. This is a bug in the stage that built it; please report it.")
        ids.append(np.asarray(row.ids, dtype=np.int32))
        trained.append(np.asarray(row.trained, dtype=np.bool_))
        lengths.append(len(row.ids))
        n_bytes.append(row.n_bytes)
    if not ids:
        raise TrainingError("There is no row to train on: the filters left nothing of the data. "
                            "Look at the counts in the manifests, or run 'transllm check RECIPE --data'.")
    arrays = {"ids": np.concatenate(ids), "trained": np.concatenate(trained),
              "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), "n_bytes": np.asarray(n_bytes, dtype=np.int32)}
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(array.tobytes())
        np.save(folder / f"{name}.npy", array)
    write_json(folder / "rows.json", {"digest": digest.hexdigest()[:16], "rows": len(lengths), "tokens": int(sum(lengths))})
    return Rows.open(folder)
