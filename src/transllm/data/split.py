"""The cut into training, development and held-out parts, made by a stable hash before anything else.

The hash has no seed and depends on the row's key alone: adding a source, another order, another run or another machine
never moves a row to another part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Literal, TypeVar

from transllm.data.filters import fingerprint, normalise
from transllm.data.types import Counts, Document, Pair

Part = Literal["train", "development", "held_out"]
IN_HELD_OUT = "in held-out part"

_Text = TypeVar("_Text", Document, Pair)


def text_key(text: str) -> str:
    """The key of a row that has no document id: a hash of its normalised text (16 hex digits)."""
    return f"{fingerprint(text):016x}"


def part(key: str, *, held_out: float, development: float) -> Part:
    """The part that a key belongs to.

    Args:
        key: of a pair, a document or a conversation (any text; case, spaces and punctuation do not count).
        held_out, development: shares of all keys, 0 to 1.
    """
    # Normalising an id such as "1.10" keeps it apart from "11.0": punctuation becomes a space, it does not vanish.
    digest = blake2b(normalise(key).encode("utf-8", "replace"), digest_size=8, person=b"transllm cut").digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < held_out:
        return "held_out"
    return "development" if place < held_out + development else "train"


def held_texts(rows: Iterable[Document | Pair | str]) -> set[int]:
    """Fingerprints of all texts of held-out rows, for ``exclude``. Both sides of a pair count."""
    marks: set[int] = set()
    for row in rows:
        marks.update(fingerprint(text) for text in _texts(row))
    return marks


def exclude(rows: Iterable[_Text], held: set[int], *, counts: Counts) -> Iterator[_Text]:
    """Training rows none of whose texts equals a held-out text; the others are counted as "in held-out part".

    The cut by key cannot see that two sources hold the same sentence under two keys, or that two English texts have one
    translation; this can. Rows that pass are not counted here.
    """
    for row in rows:
        if any(fingerprint(text) in held for text in _texts(row)):
            counts.drop(IN_HELD_OUT)
        else:
            yield row


def _texts(row: Document | Pair | str) -> tuple[str, ...]:
    if isinstance(row, str):
        return (row,)
    return (row.text,) if isinstance(row, Document) else (row.english, row.target)
