"""Read a chain back from token ids. Any list of ids gives a typed result; nothing raises.

Parsing works on ids, never on decoded text: a marker is one id, and text that looks like a marker is not one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from transllm.tokenizer import Markers


class Kind(Enum):
    """What an answer turned out to be."""

    CHAIN = "chain"
    ENGLISH = "answer in English"
    TARGET = "answer in the target language"
    PLAIN = "plain text without a marker"
    MALFORMED = "markers out of order"


@dataclass(frozen=True, slots=True)
class Chain:
    """A parsed answer; the spans are token ids without markers.

    Attributes:
        kind: what it is.
        query_en: the query in English.
        answer_en: the answer in English.
        answer: what is shown: target text of a chain, the text itself of other kinds.
        ended: whether the model ended its turn by itself.
        problem: what keeps it from being well formed; empty if it is.
    """

    kind: Kind
    query_en: tuple[int, ...]
    answer_en: tuple[int, ...]
    answer: tuple[int, ...]
    ended: bool
    problem: str

    @property
    def well_formed(self) -> bool:
        """A whole chain that ended by itself, with no span empty."""
        return self.kind is Kind.CHAIN and not self.problem


def parse(ids: Sequence[int], *, markers: Markers, stop_ids: Collection[int]) -> Chain:
    """Parse an answer, from the first id after the prompt.

    Args:
        ids: what the model wrote; everything after the first stop id is ignored.
        markers: the marker ids.
        stop_ids: ids that end a turn.
    """
    end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
    ended = end is not None
    body = list(ids[:end])
    names = {markers.english: "E", markers.response: "R", markers.target: "T"}
    form = ""
    spans: list[list[int]] = [[]]
    for token in body:
        if token in names:
            form += names[token]
            spans.append([])
        else:
            spans[-1].append(token)
    lead, parts = spans[0], [tuple(span) for span in spans[1:]]
    problem = "" if ended else "cut"
    if lead and form:
        problem = "text before the first marker"
    elif any(not part for part in parts):
        problem = problem or "empty span"
    if not form:
        return Chain(Kind.PLAIN, (), (), tuple(lead), ended, problem or "no marker")
    if form == "ERT":
        return Chain(Kind.CHAIN, parts[0], parts[1], parts[2], ended, problem)
    if form == "R":
        return Chain(Kind.ENGLISH, (), parts[0], parts[0], ended, problem)
    if form == "T":
        return Chain(Kind.TARGET, (), (), parts[0], ended, problem)
    if "ERT".startswith(form):  # the chain stops before its last step
        return Chain(Kind.MALFORMED, parts[0], parts[1] if form == "ER" else (), (), ended, "no answer in the target language")
    return Chain(Kind.MALFORMED, *_best_effort(form, parts), ended, f"markers in the order {form}")


def _best_effort(form: str, parts: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """First English span, first answer and last target span of a malformed chain, as far as there are any."""
    def first(kind: str) -> tuple[int, ...]:
        return parts[form.index(kind)] if kind in form else ()

    return first("E"), first("R"), parts[form.rindex("T")] if "T" in form else ()
