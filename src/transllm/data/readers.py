"""Readers: one member in, rows out, each with its place for messages. They stream.

What spoils everything (an encoding, a missing column, a first row that is already wrong) is an error at once; a single
broken row is counted by its reason. Forms:

    txt      one document a line; empty lines are skipped. (Documents of several lines: use jsonl.)
    jsonl    one JSON object a line; a column may be a path such as ``translation.en``
    tsv      no quoting, as most corpora write it; columns by number (no header) or by name (first line is the header)
    csv      the usual quoting; columns likewise
    parquet  columns by name; needs pyarrow
    sqlite   a SELECT that gives (document id, text) or (document id, English, target)
"""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from transllm.data.members import Member
from transllm.data.package import extract
from transllm.errors import DataError, MissingExtraError, first_line

Drop = Callable[[str, str], None]
"""Called with (reason, place) for a broken row."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        texts: (text,) or (English, target), as they stand in the source.
        place: file and line, for messages.
        document: the document's id, where the source has one.
        message: whether it is a message of a program, with what belongs to programs in it.
    """

    texts: tuple[str, ...]
    place: str
    document: str | None = None
    message: bool = False


def read_txt(member: Member) -> Iterator[Row]:
    """One document a line; empty lines are skipped."""
    for number, line in member.lines():
        if line.strip():
            yield Row((line,), f"{member.name}, line {number}")


def read_aligned(english: Member, target: Member) -> Iterator[Row]:
    """Two text files, line by line (the form of OPUS and Moses).

    Raises:
        DataError: one has more lines; then the lines do not belong together.
    """
    left, right = english.lines(), target.lines()
    number = 0
    for number, line in left:
        other = next(right, None)
        if other is None:
            raise DataError(f"{target.name} ends before line {number} of {english.name}. Aligned files have the same number of lines.")
        if line.strip() or other[1].strip():
            yield Row((line, other[1]), f"{target.name}, line {number}")
    if next(right, None) is not None:
        raise DataError(f"{english.name} ends after line {number}, {target.name} goes on. Aligned files have the same number of lines.")


def read_jsonl(member: Member, columns: Sequence[str | int], drop: Drop) -> Iterator[Row]:
    """One JSON object a line."""
    good = 0
    for number, line in member.lines():
        if not line.strip():
            continue
        place = f"{member.name}, line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as problem:
            if not good:
                raise DataError(f"{place} is not JSON ({problem}). A .jsonl file holds one JSON object a line.") from problem
            drop("broken JSON", place)
            continue
        row = _from_record(record, columns, place, drop, strict=not good)
        if row is not None:
            good += 1
            yield row


def read_table(member: Member, columns: Sequence[str | int], drop: Drop, *, quoted: bool) -> Iterator[Row]:
    """tsv (``quoted=False``) or csv. Columns are all names, read off the first line, or all numbers from 0."""
    rows = _quoted(member) if quoted else ((number, line.split("\t")) for number, line in member.lines() if line.strip())
    indices: list[int] | None = None if any(isinstance(column, str) for column in columns) else [int(column) for column in columns]
    good = 0
    for number, cells in rows:
        place = f"{member.name}, line {number}"
        if indices is None:
            indices = _header(cells, columns, place)
        elif max(indices) >= len(cells):
            if not good:
                raise DataError(f"{place} has {len(cells)} column{'s' if len(cells) != 1 else ''}, "
                                f"the recipe wants column {max(indices)} (counted from 0). "
                                "Set 'columns' to columns that are there, or 'format' to what the file is.")
            drop("too few columns", place)
        else:
            good += 1
            yield Row(tuple(cells[index] for index in indices), place)


def read_parquet(member: Member, columns: Sequence[str | int], drop: Drop) -> Iterator[Row]:
    """Columns by name."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as problem:
        raise MissingExtraError("pyarrow", "data", "Reading parquet files") from problem
    # Parquet is read from its end, so a member of a wheel or a compressed one must be whole in memory.
    plain = member.inner is None and not member.compression
    source = str(member.path) if plain else pyarrow.BufferReader(member.read())
    try:
        file = parquet.ParquetFile(source)
        tops = [str(column) if str(column) in file.schema_arrow.names else str(column).split(".")[0] for column in columns]
        missing = sorted(set(tops) - set(file.schema_arrow.names))
        if missing:
            raise DataError(_no_column(member.name, missing, file.schema_arrow.names))
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=tops):
            for record in batch.to_pylist():
                number += 1
                row = _from_record(record, columns, f"{member.name}, row {number}", drop, strict=False)
                if row is not None:
                    yield row
    except (pyarrow.ArrowException, OSError) as problem:
        raise DataError(f"{member.name} cannot be read as parquet: {first_line(problem)}. "
                        "Fetch the file again, or set 'format'.") from problem


def read_records(records: Iterable[object], columns: Sequence[str | int], drop: Drop, *, name: str) -> Iterator[Row]:
    """Records of a hub data set; ``name`` stands in messages."""
    good = 0
    for number, record in enumerate(records, start=1):
        row = _from_record(record, columns, f"{name}, row {number}", drop, strict=not good)
        if row is not None:
            good += 1
            yield row


def read_sqlite(member: Member, query: str, drop: Drop, *, width: int | None = None) -> Iterator[Row]:
    """Rows of a SELECT. The database is opened read-only; one inside a wheel is extracted to the cache once.

    Args:
        width: how many columns the query must give; None takes 2 or 3.
    """
    if member.compression:
        raise DataError(f"{member.name} is compressed, and SQLite needs the plain file. Unpack it first.")
    path = member.path if member.inner is None else extract(member.path, member.inner)
    uri = f"{Path(path).resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            cursor = connection.execute(query)
            names = [entry[0] for entry in cursor.description or []]
            if len(names) not in ((2, 3) if width is None else (width,)):
                wanted = {2: "(document id, text)", 3: "(document id, English, target)"}
                form = " or ".join(wanted.values()) if width is None else wanted[width]
                raise DataError(f"The query on {member.name} gives {len(names)} columns. It must give {form}.")
            for number, values in enumerate(cursor, start=1):
                if any(value is None for value in values):
                    drop("empty column", f"{member.name}, row {number}")
                else:
                    yield Row(tuple(str(value) for value in values[1:]), f"{member.name}, row {number}", str(values[0]))
    except (sqlite3.Error, sqlite3.Warning) as problem:
        raise DataError(f"The query on {member.name} fails: {problem}.{_tables(uri)} Mend the query or the file.") from problem


def _tables(uri: str) -> str:
    """The tables of a database, as a sentence; empty where it cannot be read at all."""
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name").fetchall()
    except sqlite3.Error:
        return ""
    return f" It has the tables {', '.join(str(row[0]) for row in rows[:12])}."


def _quoted(member: Member) -> Iterator[tuple[int, list[str]]]:
    """Rows of a csv file. ``newline`` inside a quoted cell survives, because ends of lines are put back."""
    reader = csv.reader(line + "\n" for _, line in member.lines())
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as problem:
        raise DataError(f"{member.name}, line {reader.line_num} is not csv ({problem}). Check its quotes, or set 'format'.") from problem


def _header(cells: Sequence[str], columns: Sequence[str | int], place: str) -> list[int]:
    missing = [str(column) for column in columns if isinstance(column, str) and column not in cells]
    if missing:
        raise DataError(_no_column(place, missing, cells))
    return [cells.index(column) if isinstance(column, str) else column for column in columns]


def _no_column(place: str, missing: Sequence[str], present: Iterable[str]) -> str:
    there = ", ".join(f"'{name}'" for name in list(present)[:12])
    return f"{place} has no column {', '.join(repr(name) for name in missing)}. It has {there or 'none'}: set 'columns' to those you mean."


def _from_record(record: object, columns: Sequence[str | int], place: str, drop: Drop, *, strict: bool) -> Row | None:
    """Texts of a record by column names. ``strict``: a missing column is an error (nothing good was read so far)."""
    texts: list[str] = []
    for column in columns:
        found, value = _dig(record, str(column))
        if not found:
            if strict:
                present = [str(key) for key in record] if isinstance(record, dict) else []
                raise DataError(_no_column(place, [str(column)], present))
            drop("missing column", place)
            return None
        if value is None:
            drop("empty column", place)
            return None
        if not isinstance(value, str):
            if strict:
                raise DataError(f"{place}: column '{column}' is not text but {type(value).__name__}. "
                                f"Name a column of text; a nested one is written as '{column}.NAME'.")
            drop("column is not text", place)
            return None
        texts.append(value)
    return Row(tuple(texts), place)


def _dig(record: object, path: str) -> tuple[bool, object]:
    """(found, value) at a key, or along a dotted path of keys."""
    if isinstance(record, dict) and path in record:
        return True, record[path]
    value = record
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return False, None
        value = value[key]
    return True, value


def read_whole_json(member: Member) -> object:
    """A JSON file that is one value.

    Raises:
        DataError: it is not JSON; line and column are named.
    """
    text = member.text()
    try:
        return json.load(io.StringIO(text))
    except (json.JSONDecodeError, RecursionError) as problem:
        raise DataError(f"{member.name} is not JSON ({problem}). Mend the file, or leave it out of the pattern.") from problem
