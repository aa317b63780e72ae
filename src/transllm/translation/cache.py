"""What was translated before, in one file: a rerun after a changed setting of a filter translates nothing again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transllm.errors import DataError
from transllm.translation.translator import Direction, SentenceTranslator, Translation

_SECONDS = 2.0
"""So often what is new goes to the disk: a kill loses no more, and a paid translator is paid once."""
_AT_ONCE = 500


class TranslationCache:
    """Translations by sentence, direction and translator, in SQLite.

    A translator is told apart by all that decides what it writes (``identity``: weights, settings, code). Several processes may use one
    file: SQLite locks it, and a process that is killed leaves it whole.

    Args:
        path: the file; it and its folder are made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS translations (key BLOB PRIMARY KEY, text TEXT NOT NULL, cut INTEGER NOT NULL) "
                             "WITHOUT ROWID")

    def get(self, texts: Sequence[str], *, to: Direction, translator: SentenceTranslator) -> dict[str, Translation]:
        """What is known of the texts."""
        keys = {self._key(text, to, translator): text for text in texts}
        found: dict[str, Translation] = {}
        with self._open() as database:
            for start in range(0, len(keys), _AT_ONCE):
                some = list(keys)[start: start + _AT_ONCE]
                rows = database.execute(f"SELECT key, text, cut FROM translations WHERE key IN ({','.join('?' * len(some))})", some)
                found |= {keys[key]: Translation(text, bool(cut)) for key, text, cut in rows}
        return found

    def keep(self, texts: Sequence[str], made: Iterator[tuple[int, Translation]], *, to: Direction,
             translator: SentenceTranslator) -> Iterator[tuple[int, Translation]]:
        """Pass translations on, and write them as they come; what came is kept when the translator fails."""
        new: list[tuple[bytes, str, int]] = []
        written = time.monotonic()
        try:
            for index, translation in made:
                new.append((self._key(texts[index], to, translator), _storable(translation.text), int(translation.cut)))
                if time.monotonic() - written > _SECONDS:
                    self._write(new)
                    new, written = [], time.monotonic()
                yield index, translation
        finally:
            self._write(new)

    def _write(self, rows: Sequence[tuple[bytes, str, int]]) -> None:
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO translations VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction: none is held while the translator works."""
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise DataError(f"The cache of translations '{self._path}' cannot be used ({error}). Take the file away (its translations are "
                            "then made anew), or set bridge.translator.cache to false.") from error

    @staticmethod
    def _key(text: str, to: Direction, translator: SentenceTranslator) -> bytes:
        known: dict[str, Any] = {"text": text, "to": to, "name": translator.name, **translator.identity}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).digest()


def _storable(text: str) -> str:
    """The text without halves of surrogate pairs, which a model can write and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
