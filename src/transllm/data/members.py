"""A member is one file of a source: on disk, or inside a wheel. It is opened as bytes, unpacked, and read line by line.

Text is decoded as UTF-8 and nothing else: guessing an encoding turns a mistake into wrong letters. The error names the
line and the byte.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from transllm.errors import DataError, MissingExtraError

COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a source.

    Attributes:
        path: the file, or the wheel that holds it.
        inner: the name inside the wheel; None for a plain file.
        archive: the wheel, opened. It is shared by its members: reading the list of 36,000 names for each of 1,500 members
            takes minutes.
    """

    path: Path
    inner: str | None = None
    archive: zipfile.ZipFile | None = None

    @property
    def name(self) -> str:
        """The name that decides the format and stands in messages."""
        return self.inner if self.inner is not None else str(self.path)

    @property
    def compression(self) -> str:
        """The compression's ending, or ''."""
        return next((ending for ending in COMPRESSIONS if self.name.lower().endswith(ending)), "")

    @property
    def ending(self) -> str:
        """The ending below the compression, lower case with its dot: ``.tsv`` for ``a.tsv.gz``."""
        name = self.name[:len(self.name) - len(self.compression)] if self.compression else self.name
        return Path(name).suffix.lower()

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The unpacked bytes.

        Raises:
            DataError: the file cannot be read, or its compressed data are damaged (also while it is being read).
            MissingExtraError: it is .zst and zstandard is not installed.
        """
        damage = _damage(self.compression)
        try:
            raw = self.archive.open(self.inner) if self.archive is not None and self.inner is not None else self.path.open("rb")
        except OSError as problem:
            raise DataError(f"{self.name} cannot be read: {problem.strerror or problem}. Check the path and its permissions.") from problem
        with raw:  # the decompressors do not close what they read from
            try:
                with _unpack(raw, self.compression) as stream:
                    yield stream
            except damage as problem:
                raise DataError(f"{self.name} is damaged or not what its ending says ({problem}). "
                                "Fetch the file again, or rename it.") from problem

    def read(self) -> bytes:
        """All bytes at once, for formats that cannot be streamed (catalogues, parquet inside a wheel)."""
        with self.open() as stream:
            return stream.read()

    def lines(self) -> Iterator[tuple[int, str]]:
        """(line number from 1, text without its end), decoded as UTF-8; a byte order mark is taken off.

        Raises:
            DataError: a line is not UTF-8, or the compressed data are cut short.
        """
        offset = 0
        with self.open() as stream:
            for number, raw in enumerate(stream, start=1):
                yield number, _decode(raw, self.name, number, offset).rstrip("\r\n")
                offset += len(raw)

    def text(self) -> str:
        """The whole file as text."""
        return _decode(self.read(), self.name, None, 0)


def _damage(compression: str) -> tuple[type[Exception], ...]:
    """What the decompressors raise: they share no base class."""
    known = (EOFError, OSError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)
    return (*known, _zstandard().ZstdError) if compression == ".zst" else known


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as problem:
        raise MissingExtraError("zstandard", "data", "Reading .zst files") from problem
    return zstandard


def _decode(raw: bytes, name: str, line: int | None, offset: int) -> str:
    try:
        text = raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as problem:
        at = line if line is not None else raw.count(b"\n", 0, problem.start) + 1
        form = "looks like UTF-16" if offset == 0 and raw.startswith(_UTF16_MARKS) else "is not UTF-8"
        raise DataError(f"{name} {form}: line {at}, byte {offset + problem.start} is {raw[problem.start]:#04x}. "
                        f"Convert the file, for example: iconv -f LATIN1 -t UTF-8.") from problem
    return text


def _unpack(raw: IO[bytes], compression: str) -> IO[bytes]:
    if compression == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb"))
    if compression == ".xz":
        return cast(IO[bytes], lzma.LZMAFile(raw))
    if compression == ".bz2":
        return cast(IO[bytes], bz2.BZ2File(raw))
    if compression == ".zst":
        # A frame may follow a frame (pzstd, shards joined by cat); without this flag the rest would be dropped silently.
        # Its reader cannot be read by lines; the buffer can.
        return io.BufferedReader(_zstandard().ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=True))
    return raw
