"""Pairs and documents from the sources of a recipe: read, cleaned, filtered, counted, streamed.

The same rows serve as pairs and as documents of one side, under the same key, so that what is held out in one form is
not trained on in the other. A row's key is its document id where the source has one (then whole documents are held
out), else a hash of its English text (for text of one language: of the text).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Generic, Literal, TypeVar

from transllm.data.filters import DocumentFilter, PairFilter, clean, clean_message
from transllm.data.origins import Place, Wanted, raw_rows
from transllm.data.readers import Row
from transllm.data.split import text_key
from transllm.data.types import Counts, Document, MissingSourceError, Pair, SourceReport
from transllm.errors import DataError
from transllm.languages import Language
from transllm.recipe.schema import Source

Side = Literal["english", "target"]
_Item = TypeVar("_Item")

# These say nothing against a source (catalogues repeat "Save" a hundred times), so they do not count for max_dropped.
_HARMLESS = frozenset({"duplicate", "too short", "no translation", "fuzzy translation"})
_FEW = 20
"""Of so few rows no share is taken."""


class Reading(Generic[_Item]):
    """A stream of pairs or documents with a report for each source; the reports are complete when the stream ends.

    Attributes:
        reports: in the order of the sources; a source has one as soon as its reading starts.
    """

    def __init__(self) -> None:
        self.reports: list[SourceReport] = []
        self._items: Iterator[_Item] = iter(())

    def __iter__(self) -> Iterator[_Item]:
        return self

    def __next__(self) -> _Item:
        return next(self._items)


def read_pairs(sources: Sequence[Source], *, language: Language, folder: Path, cache: Path | None = None, limit: int | None = None,
               min_characters: int = 2, max_dropped: float = 0.5) -> Reading[Pair]:
    """Clean pairs of all sources, one after the other, without duplicates.

    Args:
        folder: where relative paths start (the recipe's folder).
        cache: where wheels are kept; None is the platform's cache folder.
        limit: stop after so many pairs.
        min_characters: pairs with a shorter English side are dropped.
        max_dropped: an error when a larger share of a source's rows is dropped (duplicates, untranslated and short messages do not
            count).

    Raises:
        MissingSourceError: a source that is not optional is not there.
        DataError: a source is not what the recipe says.
    """
    reading: Reading[Pair] = Reading()
    reading._items = _limited(_pairs(sources, _Way(language, Place(folder, cache), max_dropped, reading.reports,
                                             PairFilter(min_characters=min_characters))), limit)
    return reading


def read_words(sources: Sequence[Source], *, language: Language, folder: Path, cache: Path | None = None,
               limit: int | None = None) -> Reading[Pair]:
    """Pairs of words, of a lexicon: as ``read_pairs``, but one letter can be a word, and any number of rows may be dropped: many words are
    alike in both languages."""
    return read_pairs(sources, language=language, folder=folder, cache=cache, limit=limit, min_characters=1, max_dropped=1.0)


def read_documents(sources: Sequence[Source], *, side: Side, language: Language, folder: Path, cache: Path | None = None,
                   limit: int | None = None, min_characters: int = 2, max_dropped: float = 0.5,
                   parallel: Sequence[Source] = ()) -> Reading[Document]:
    """Clean documents of all sources, without duplicates.

    Consecutive rows with the same document id become one document, its rows joined by a newline (verses into chapters,
    subtitles into films).

    Args:
        sources: ``data.target`` or ``data.english``. Empty: one side of ``parallel``.
        side: the side of pairs to take where the source itself names none.
        limit: stop after so many documents.
        folder, cache, min_characters, max_dropped: as for ``read_pairs``.

    Raises: as ``read_pairs``.
    """
    reading: Reading[Document] = Reading()
    way = _Way(language, Place(folder, cache), max_dropped, reading.reports, PairFilter(min_characters=min_characters))
    reading._items = _limited(_documents(sources or parallel, "documents" if sources else "pairs", side, way), limit)
    return reading


@dataclass(slots=True)
class _Way:
    """What the reading of all sources shares."""

    language: Language
    place: Place
    max_dropped: float
    reports: list[SourceReport]
    keep_pair: PairFilter
    keep_document: DocumentFilter = field(default_factory=DocumentFilter)


def documents_of_pairs(pairs: Iterable[Pair], *, side: Side, counts: Counts) -> Iterator[Document]:
    """One side of pairs that were read already, as documents: neighbours with the same key are one document."""
    keep = DocumentFilter()
    for (key, source), group in groupby(pairs, key=lambda pair: (pair.key, pair.source)):
        document = Document("\n".join(pair.english if side == "english" else pair.target for pair in group), key, source)
        reason = keep(document)
        if reason is None:
            counts.keep()
            yield document
        else:
            counts.drop(reason)


def _pairs(sources: Sequence[Source], way: _Way) -> Iterator[Pair]:
    for source in sources:
        report = _report(source, way)
        for row in _rows(source, "pairs", way, report):
            pair = _pair(row, source, way, report)
            if pair is not None:
                yield pair
        _check(report, way.max_dropped)


def _documents(sources: Sequence[Source], wanted: Wanted, side: Side, way: _Way) -> Iterator[Document]:
    for source in sources:
        report = _report(source, way)
        report.documents = Counts()
        for document in _joined(_side_rows(source, wanted, source.side or side, way, report), source.origin):
            reason = way.keep_document(document)
            if reason is None:
                report.documents.keep()
                yield document
            else:
                report.documents.drop(reason)


def _side_rows(source: Source, wanted: Wanted, side: Side, way: _Way, report: SourceReport) -> Iterator[tuple[str, str, bool]]:
    """(text, key, belongs to a document of several rows). Rows of pairs pass the filter of pairs first: what is no good pair
    (untranslated, empty) is no good text of either language."""
    for row in _rows(source, wanted, way, report):
        several = row.document is not None
        if len(row.texts) == 2:
            pair = _pair(row, source, way, report)
            if pair is not None:
                yield (pair.english if side == "english" else pair.target), pair.key, several
            continue
        text = clean(row.texts[0])
        if text:
            report.counts.keep()
            yield text, row.document if row.document is not None else text_key(text), several
        else:
            report.drop("empty", row.place)
    _check(report, way.max_dropped)


def _pair(row: Row, source: Source, way: _Way, report: SourceReport) -> Pair | None:
    """The clean pair of a row, counted; None where the filter drops it."""
    tidy = clean_message if row.message else clean
    english, target = tidy(row.texts[0]), tidy(row.texts[1])
    pair = Pair(english, target, row.document if row.document is not None else text_key(english), source.origin)
    reason = way.keep_pair(pair)
    if reason is not None:
        report.drop(reason, row.place)
        return None
    report.counts.keep()
    return pair


def _joined(rows: Iterator[tuple[str, str, bool]], origin: str) -> Iterator[Document]:
    numbered = ((text, key, key if several else number) for number, (text, key, several) in enumerate(rows))
    for _, group in groupby(numbered, key=lambda row: row[2]):
        members = list(group)
        yield Document("\n".join(text for text, _, _ in members), members[0][1], origin)


def _rows(source: Source, wanted: Wanted, way: _Way, report: SourceReport) -> Iterator[Row]:
    """Raw rows; a missing optional source is noted and gives none."""
    try:
        yield from raw_rows(source, wanted=wanted, language=way.language, place=way.place, report=report)
    except MissingSourceError as problem:
        # Not after the first row: half a source read silently would be worse than an error.
        if not source.optional or report.counts.read:
            raise
        report.missing = str(problem)


def _report(source: Source, way: _Way) -> SourceReport:
    report = SourceReport(source.origin, source.licence)
    way.reports.append(report)
    return report


def _check(report: SourceReport, max_dropped: float) -> None:
    """An error for a source that gave nothing, or of which too much went."""
    if report.missing is not None:
        return
    counts = report.counts
    if counts.read == 0:
        raise DataError(f"The source {report.origin} holds no rows. Check its files, 'pattern' and 'query'.")
    bad = {reason: number for reason, number in counts.dropped.items() if reason not in _HARMLESS}
    total = sum(bad.values())
    if (counts.read > _FEW and total / counts.read > max_dropped) or (counts.kept == 0 and total):
        worst = max(bad, key=lambda reason: bad[reason])
        listed = ", ".join(f"{reason} {number:,}" for reason, number in sorted(bad.items(), key=lambda item: -item[1]))
        raise DataError(f"The source {report.origin} loses {total:,} of {counts.read:,} rows ({listed}; the first '{worst}': "
                        f"{report.places.get(worst, ['unknown'])[0]}). Check its columns and format, or raise 'max_dropped' "
                        f"({max_dropped:g}).")


def _limited(items: Iterator[_Item], limit: int | None) -> Iterator[_Item]:
    """The first ``limit`` items. Not islice: that would read one item more after a limit of 0."""
    if limit is not None and limit <= 0:
        return
    for number, item in enumerate(items, start=1):
        yield item
        if number == limit:
            return
