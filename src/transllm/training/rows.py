"""Encoded rows on disk: token ids, which of them are trained, how many bytes of text those stand for, and whose words they are.

Rows of any number are three flat arrays, memory-mapped, so memory does not grow with the data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transllm.errors import TrainingError
from transllm.files import write_json

_ARRAYS: tuple[tuple[str, type[np.generic]], ...] = (("ids", np.int32), ("trained", np.bool_), ("offsets", np.int64), ("n_bytes", np.int32),
                                                  ("by_original", np.bool_))


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One document or conversation.

    Attributes:
        ids: token ids.
        trained: for each id, whether the model learns to predict it. The first never is: nothing stands before it.
        n_bytes: UTF-8 bytes of the text that the trained ids stand for; for bits per byte.
        by_original: an answer of the original model, which can be held against it (``mirror.py``). Its first trained id is a marker
            that the original does not know; all other ids are the original's.
    """

    ids: list[int]
    trained: list[bool]
    n_bytes: int
    by_original: bool = False


@dataclass(frozen=True)
class Rows:
    """Rows read back, memory-mapped.

    Attributes:
        ids: (tokens,) int32.
        trained: (tokens,) bool.
        offsets: (rows + 1,) int64, where each row starts.
        n_bytes: (rows,) int32.
        by_original: (rows,) bool.
        digest: of all of the above.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    n_bytes: NDArray[np.int32]
    by_original: NDArray[np.bool_]
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
        return EncodedRow(self.ids[span].tolist(), self.trained[span].tolist(), int(self.n_bytes[index]), bool(self.by_original[index]))

    @classmethod
    def open(cls, folder: Path) -> Rows:
        """Open what ``write_rows`` wrote."""
        meta = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name, _ in _ARRAYS}
        return cls(**arrays, digest=meta["digest"])


def write_rows(rows: Iterable[EncodedRow], folder: Path) -> Rows:
    """Write rows and open them; ``rows.json`` comes last, so that a folder with it is whole.

    Raises:
        TrainingError: a row trains nothing (its loss would be 0 / 0), or there is no row at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").unlink(missing_ok=True)  # of an earlier try
    with contextlib.ExitStack() as files:
        arrays = [files.enter_context(_Growing(folder / f"{name}.npy", dtype)) for name, dtype in _ARRAYS]
        ids, trained, offsets, n_bytes, by_original = arrays
        offsets.append([0])
        for number, row in enumerate(rows):
            if len(row.ids) != len(row.trained) or not any(row.trained[1:]):
                raise TrainingError(f"Row {number} has no token to learn from. This is a bug in the stage that built it; please report it.")
            ids.append(row.ids)
            trained.append(row.trained)
            offsets.append([ids.length])
            n_bytes.append([row.n_bytes])
            by_original.append([row.by_original])
    if not n_bytes.length:
        raise TrainingError("There is no row to train on: the filters left nothing of the data. "
                            "Look at the counts in the manifests, or run 'transllm check RECIPE --data'.")
    digest = hashlib.sha256(b"".join(array.digest for array in arrays)).hexdigest()[:16]
    write_json(folder / "rows.json", {"digest": digest, "rows": n_bytes.length, "tokens": ids.length})
    return Rows.open(folder)


class _Growing:
    """An array file that is written as its numbers come, so that no more than a buffer of them is in memory.

    The header is written twice: numpy leaves room in it for the length to grow.
    """

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._hash = hashlib.sha256()
        self.length = 0

    @property
    def digest(self) -> bytes:
        """Of the numbers."""
        return self._hash.digest()

    def append(self, numbers: Sequence[int]) -> None:
        """Write some more."""
        data = np.asarray(numbers, dtype=self._dtype).tobytes()
        self._hash.update(data)
        self._file.write(data)
        self.length += len(numbers)

    def _header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.length,)})

    def __enter__(self) -> _Growing:
        self._file = self._path.open("wb")
        self._header()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._file:
            self._file.seek(0)
            self._header()
