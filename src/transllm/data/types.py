"""The types of this room: a document, a pair, and the counts that every reader and filter keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

from transllm.errors import DataError


@dataclass(frozen=True, slots=True)
class Document:
    """Running text in one language.

    Attributes:
        text: clean text, never empty; lines are separated by a newline.
        key: the identity on which the held-out cut is made (see ``split.part``).
        source: the origin of the source it came from.
    """

    text: str
    key: str
    source: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A text in English and in the target language.

    Attributes:
        english: clean English text.
        target: clean text in the target language.
        key: the identity on which the held-out cut is made; a document built from the same row has the same one.
        source: the origin of the source it came from.
    """

    english: str
    target: str
    key: str
    source: str


@dataclass(slots=True)
class Counts:
    """Rows kept and rows dropped by reason. ``read`` is their sum, so no row can be lost between the two."""

    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """All rows that were looked at."""
        return self.kept + sum(self.dropped.values())

    def keep(self, number: int = 1) -> None:
        """Count rows that stay."""
        self.kept += number

    def drop(self, reason: str, number: int = 1) -> None:
        """Count rows that go, and why."""
        self.dropped[reason] = self.dropped.get(reason, 0) + number

    def as_dict(self) -> dict[str, int | dict[str, int]]:
        """``{"read": n, "kept": n, "dropped": {"reason": n}}``, the form of the manifests; frequent reasons first."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(sorted(self.dropped.items(), key=lambda item: (-item[1], item[0])))}

    def __add__(self, other: Counts) -> Counts:
        total = Counts(self.kept + other.kept, dict(self.dropped))
        for reason, number in other.dropped.items():
            total.drop(reason, number)
        return total


_PLACES = 3


@dataclass(slots=True)
class SourceReport:
    """What became of one source.

    Attributes:
        origin: as the recipe names it.
        licence: the recipe's word, else the wheel's own; None where neither says one.
        counts: rows read, kept and dropped.
        documents: documents kept and dropped after rows were joined; None where pairs were read.
        missing: why an optional source gave nothing; None for one that was there.
        places: reason -> where it was met the first few times ("file, line 3"), so that a message can point at rows.
    """

    origin: str
    licence: str | None = None
    counts: Counts = field(default_factory=Counts)
    documents: Counts | None = None
    missing: str | None = None
    places: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, place: str) -> None:
        """Count a dropped row, and remember the places of the first few of its reason."""
        self.counts.drop(reason)
        known = self.places.setdefault(reason, [])
        if len(known) < _PLACES:
            known.append(place)

    def as_dict(self) -> dict[str, object]:
        """The form of the manifest's ``sources``."""
        form: dict[str, object] = {"origin": self.origin, "licence": self.licence, **self.counts.as_dict()}
        if self.documents is not None:
            form["documents"] = self.documents.as_dict()
        if self.missing is not None:
            form["missing"] = self.missing
        return form


class MissingSourceError(DataError):
    """A source is not there (no such file, package or data set): what ``optional: true`` forgives."""
