"""Keep an answer to the form of a chain while it is written.

A small model sometimes ends where the next step of the chain should come, opens a step twice, or says the same for ever. The
guide sees each token that the model chooses, before it is written, and writes the marker that belongs there instead. The model's own
words are never changed, and what was overruled is counted, so that a guided chain is not taken for one that the model wrote alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from transllm.tokenizer import Markers

Form = Literal["chain", "direct", "any"]

_TIMES = 4  # that a step may say the same
_LONGEST_LOOP = 32  # tokens that are said again
_SHORTEST_LOOP = 16  # tokens of all the times together

# Only the last step is shown. The hidden ones leave it room: these shares of all tokens, from the start of the answer.
_QUERY_UNTIL, _ENGLISH_UNTIL = 0.25, 0.45


@dataclass(frozen=True, slots=True)
class Guide:
    """Called with what an answer says so far and the token chosen next; returns the token to write.

    Attributes:
        markers: the marker ids.
        stop_ids: ids that end a turn.
        end_id: the one of them to write where a turn must end.
        room: tokens that the answer may have.
        form: "chain": it must be one. "direct": the answer in the target language at once. "any": the model may choose between these
            two and an answer in English, and is kept to what it chose.
    """

    markers: Markers
    stop_ids: frozenset[int]
    end_id: int
    room: int
    form: Form = "chain"

    def __call__(self, ids: Sequence[int], token: int) -> int:
        names = {self.markers.english: "E", self.markers.response: "R", self.markers.target: "T"}
        places = [place for place, written in enumerate(ids) if written in names]
        form = "".join(names[ids[place]] for place in places)
        if not ids and self.form != "any":
            return self.markers.english if self.form == "chain" else self.markers.target
        if not ids and token in names:
            return token
        following = {"E": self.markers.response, "ER": self.markers.target}.get(form, self.end_id)
        if token in names:
            return following
        is_hidden = form in ("E", "ER")
        if token in self.stop_ids:
            return following if is_hidden else token
        step = [*ids[places[-1] + 1 if places else 0:], token]
        is_long = is_hidden and len(ids) >= self.room * (_QUERY_UNTIL if form == "E" else _ENGLISH_UNTIL)
        return (following if is_hidden else self.end_id) if is_long or in_a_loop(step) else token


def in_a_loop(ids: Sequence[int]) -> bool:
    """Whether the end is one run of tokens over and over, often enough, and long enough to be no line of dashes."""
    for length in range(1, min(_LONGEST_LOOP, len(ids) // _TIMES) + 1):
        span = length * max(_TIMES, -(-_SHORTEST_LOOP // length))
        if len(ids) >= span and ids[-1] == ids[-1 - length] and list(ids[-span:]) == list(ids[-length:]) * (span // length):
            return True
    return False


def what_was_overruled(ids: Sequence[int], overruled: Mapping[int, int], *, markers: Markers, stop_ids: Collection[int]) -> tuple[str, ...]:
    """What the model wanted where a guide wrote otherwise, in words, in order.

    Args:
        ids: what was written.
        overruled: for places in it, the token that the model had chosen.
    """
    names = {markers.english: "the query in English", markers.response: "the answer in English", markers.target: "the answer"}
    found = []
    for place, token in sorted(overruled.items()):
        written = names.get(ids[place], "its end")
        wanted = "its end" if token in stop_ids else f"{names[token]} again" if token in names else "more text"
        found.append(f"wanted {wanted} where {written} was due")
    return tuple(found)
