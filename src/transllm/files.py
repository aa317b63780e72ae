"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
_TORCH_CANNOT_WRITE = ("iostream error", "unexpected pos", "PytorchStreamWriter")
_FULL_BELOW = 2**20


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it takes the name ``path``, on error it is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class DiskErrors:
    """Inside, errors of the disk are ``OSError``, whoever writes.

    safetensors and tokenizers tell a full disk as errors of their own that end in "(os error 28)", numpy as an error without a
    number, torch as a position in its file.

    Args:
        folder: what is written to; named in the error.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        number = self._number(error)
        if number is not None:
            raise OSError(number, os.strerror(number), str(self._folder)) from error

    def _number(self, error: BaseException | None) -> int | None:
        """The system's number of an error that hides it; None for all others."""
        if error is None or (isinstance(error, OSError) and error.errno is not None):
            return None
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found:
            return int(found[1]) if int(found[1]) in _OF_THE_DISK else None
        if "requested and" in str(error) or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _TORCH_CANNOT_WRITE)):
            return errno.ENOSPC if shutil.disk_usage(self._folder).free < _FULL_BELOW else errno.EIO
        return None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all. Half a surrogate pair (a model can write one) becomes a character reference."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all. NaN is refused: a figure that is not a number is null or an error."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file that grows a line at a time; a last line without its end (the writer was killed) is left out."""
    if not path.exists():
        return []
    text = path.read_bytes()
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines() if line.strip()]


class JsonLines:
    """A file that grows a line at a time and can go on after a kill.

    Args:
        path: the file; a torn last line is cut off when it is opened.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            whole = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(whole.rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")

    def write(self, *values: Any) -> None:
        """Append values, one line each, and hand them to the system at once."""
        self._file.write("".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values))
        self._file.flush()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
