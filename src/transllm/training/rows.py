"""Encoded rows on disk: token ids, which of them are trained, how many bytes of text those stand for, which the original said, and what
else might have stood in a place.

Rows of any number are a few flat arrays, memory-mapped, so memory does not grow with the data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from transllm.errors import TrainingError
from transllm.files import write_json

_ARRAYS: tuple[tuple[str, type[np.generic]], ...] = (("ids", np.int32), ("trained", np.bool_), ("offsets", np.int64), ("n_bytes", np.int32),
                                                  ("heard", np.int32), ("heard_offsets", np.int64), ("mirrors", np.int32),
                                                  ("drawn", np.int32), ("drawn_offsets", np.int64), ("drawn_at", np.int32))
DRAWS = 16
"""Tokens drawn for a place."""


@dataclass(frozen=True, slots=True)
class ByOriginal:
    """Words in a row that the original chat model said, as it said them; what is learned from them can be its distribution.

    Attributes:
        ids: the English conversation as the original reads it, up to the last of these words.
        at: place of the first of them in the row.
        n_bytes: UTF-8 bytes of text that they stand for.
        words: how many they are, the last of ``ids``.
    """

    ids: Sequence[int]
    at: int
    words: int
    n_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Places of a row that are learned from a distribution, by tokens drawn from it.

    The mean gradient of drawn tokens is that of the whole distribution, and so many numbers fit on a disk. (The likeliest tokens alone
    would make a model surer than the one that it learns from.)

    Attributes:
        at: the first of these places: where the first of the tokens that are learned so stands.
        tokens: (places, DRAWS) what was drawn for each.
    """

    at: int
    tokens: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One document or conversation.

    Attributes:
        ids: token ids.
        trained: for each id, whether the model learns to predict it. The first never is: nothing stands before it.
        n_bytes: UTF-8 bytes of the text that the trained ids stand for; for bits per byte.
        by_original: those of them that the original said, or None.
        drawn: those of them that are learned from a distribution, or None.
    """

    ids: Sequence[int]
    trained: Sequence[bool]
    n_bytes: int
    by_original: ByOriginal | None = None
    drawn: Drawn | None = None


@dataclass(frozen=True)
class Rows:
    """Rows read back, memory-mapped.

    Attributes:
        ids: (tokens,) int32.
        trained: (tokens,) bool.
        offsets: (rows + 1,) int64, where each row starts.
        n_bytes: (rows,) int32.
        heard: token ids of all ``ByOriginal``.
        heard_offsets: (rows + 1,) int64, where each of these starts; a row that has none has no tokens there.
        mirrors: (rows * 3,) int32, the three numbers of each.
        drawn: the tokens of all ``Drawn``.
        drawn_offsets: (rows + 1,) int64, where each of these starts.
        drawn_at: (rows,) int32, where each begins in its row.
        digest: of all of the above.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    n_bytes: NDArray[np.int32]
    heard: NDArray[np.int32]
    heard_offsets: NDArray[np.int64]
    mirrors: NDArray[np.int32]
    drawn: NDArray[np.int32]
    drawn_offsets: NDArray[np.int64]
    drawn_at: NDArray[np.int32]
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
        row = self.view(index)
        return replace(row, ids=list(map(int, row.ids)), trained=list(map(bool, row.trained)))

    def view(self, index: int) -> EncodedRow:
        """One row; ids and mask are parts of the arrays."""
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return EncodedRow(cast(Sequence[int], self.ids[span]), cast(Sequence[bool], self.trained[span]), int(self.n_bytes[index]),
                          self.by_original(index), self._drawn(index))

    def by_original(self, index: int) -> ByOriginal | None:
        """What the original said in a row."""
        span = slice(int(self.heard_offsets[index]), int(self.heard_offsets[index + 1]))
        if span.start == span.stop:
            return None
        at, words, n_bytes = map(int, self.mirrors[3 * index: 3 * index + 3])
        return ByOriginal(cast(Sequence[int], self.heard[span]), at, words, n_bytes)

    def _drawn(self, index: int) -> Drawn | None:
        span = slice(int(self.drawn_offsets[index]), int(self.drawn_offsets[index + 1]))
        return None if span.start == span.stop else Drawn(int(self.drawn_at[index]), self.drawn[span].reshape(-1, DRAWS))

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether the folder holds whole rows; those of an earlier version, which had fewer arrays, are none."""
        return (folder / "rows.json").exists() and all((folder / f"{name}.npy").exists() for name, _ in _ARRAYS)

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
        ids, trained, offsets, n_bytes, heard, heard_offsets, mirrors, drawn, drawn_offsets, drawn_at = arrays
        for starts in (offsets, heard_offsets, drawn_offsets):
            starts.append([0])
        for number, row in enumerate(rows):
            if len(row.ids) != len(row.trained) or not any(row.trained[1:]):
                raise TrainingError(f"Row {number} has no token to learn from. This is a bug in the stage that built it; please report it.")
            ids.append(row.ids)
            trained.append(row.trained)
            offsets.append([ids.length])
            n_bytes.append([row.n_bytes])
            said = row.by_original
            if said is not None:
                _check(number, row, said)
            heard.append(said.ids if said is not None else [])
            heard_offsets.append([heard.length])
            mirrors.append([said.at, said.words, said.n_bytes] if said is not None else [0, 0, 0])
            if row.drawn is not None and not all(row.trained[row.drawn.at: row.drawn.at + len(row.drawn.tokens)]):
                raise TrainingError(f"Row {number} learns from a distribution where nothing is learned. This is a bug in the stage that "
                                    "built it; please report it.")
            drawn.append(row.drawn.tokens.ravel() if row.drawn is not None else [])
            drawn_offsets.append([drawn.length])
            drawn_at.append([row.drawn.at if row.drawn is not None else 0])
    if not n_bytes.length:
        raise TrainingError("There is no row to train on: the filters left nothing of the data. "
                            "Look at the counts in the manifests, or run 'transllm check RECIPE --data'.")
    digest = hashlib.sha256(b"".join(array.digest for array in arrays)).hexdigest()[:16]
    write_json(folder / "rows.json", {"digest": digest, "rows": n_bytes.length, "tokens": ids.length})
    return Rows.open(folder)


def _check(number: int, row: EncodedRow, said: ByOriginal) -> None:
    own, theirs = list(row.ids[said.at: said.at + said.words]), list(said.ids[-said.words:])
    if not 0 < said.words < len(said.ids) or said.at < 1 or own != theirs or not all(row.trained[said.at: said.at + said.words]):
        raise TrainingError(f"Row {number} is not what the original said. This is a bug in the stage that built it; please report it.")


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

    def append(self, numbers: Sequence[int] | Sequence[bool] | NDArray[np.int32]) -> None:
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
