"""The guide: whatever a model chooses, the answer comes out as a chain, and a chain that is one already is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transllm.tcot import Form, Guide, Kind, parse, what_was_overruled
from transllm.tcot.guide import in_a_loop
from transllm.tokenizer import Markers

E, R, T, STOP, EOS = 10, 11, 12, 13, 14
MARKERS = Markers(E, R, T)
STOPS = frozenset({STOP, EOS})
TEXT = st.lists(st.integers(0, 9), min_size=1, max_size=4)


def _write(chosen: list[int], *, room: int = 100, form: Form = "chain") -> tuple[list[int], dict[int, int]]:
    """What comes of these choices; when they run out the model wants to end."""
    guide = Guide(MARKERS, STOPS, STOP, room, form)
    ids: list[int] = []
    overruled: dict[int, int] = {}
    for place in range(room):
        token = chosen[place] if place < len(chosen) else STOP
        written = guide(ids, token)
        if written != token:
            overruled[place] = token
        ids.append(written)
        if written in STOPS:
            break
    return ids, overruled


@given(st.lists(st.integers(0, 14), max_size=60), st.integers(12, 80))
def test_any_choices_make_a_chain(chosen: list[int], room: int) -> None:
    ids, overruled = _write(chosen, room=room)
    chain = parse(ids, markers=MARKERS, stop_ids=STOPS)
    assert chain.kind is Kind.CHAIN and chain.problem in ("", "cut", "empty span")
    assert all(ids[place] in {E, R, T, STOP} for place in overruled), "only markers and the end are ever put in"
    wrote = [token for place, token in enumerate(ids) if place not in overruled]
    assert wrote == [token for place, token in enumerate([*chosen, *[STOP] * room][: len(ids)]) if place not in overruled]


@given(st.lists(st.integers(0, 14), max_size=60), st.integers(4, 80))
def test_any_choices_make_a_direct_answer(chosen: list[int], room: int) -> None:
    ids, overruled = _write(chosen, room=room, form="direct")
    said = parse(ids, markers=MARKERS, stop_ids=STOPS)
    assert said.kind is Kind.TARGET and said.problem in ("", "cut", "empty span")
    assert all(ids[place] in {T, STOP} for place in overruled), "only its marker and the end are ever put in"


@given(TEXT, TEXT, TEXT, st.sampled_from([STOP, EOS]))
def test_a_chain_is_left_alone(query: list[int], english: list[int], answer: list[int], end: int) -> None:
    whole = [E, *query, R, *english, T, *answer, end]
    assert _write(whole) == (whole, {})
    assert _write(whole, form="any") == (whole, {})


@pytest.mark.parametrize(("chosen", "written", "form"), [
    ([1, 2, STOP], [E, 2, R], "chain"),  # no marker at all
    ([STOP, 1], [E, 1], "chain"),
    ([R, 1, STOP], [E, 1, R], "chain"),  # straight to an English answer, which the user did not ask for
    ([E, 1, STOP, 2], [E, 1, R, 2], "chain"),
    ([E, 1, T, 2], [E, 1, R, 2], "chain"),
    ([E, 1, R, 2, EOS, 3, STOP], [E, 1, R, 2, T, 3, STOP], "chain"),
    ([E, 1, R, 2, R, 3, STOP], [E, 1, R, 2, T, 3, STOP], "chain"),  # the same step again
    ([E, 1, R, 2, T, 3, T, 4], [E, 1, R, 2, T, 3, STOP], "chain"),
    ([T, 1, STOP, 2], [E, 1, R, 2], "chain"),  # as if a translation had been asked for
    ([T, 1, 2, STOP], [T, 1, 2, STOP], "any"),  # it was
    ([T, 1, R], [T, 1, STOP], "any"),
    ([1, 2, EOS], [1, 2, EOS], "any"),
    ([1, 2, E], [1, 2, STOP], "any"),
    ([R, 1, STOP], [R, 1, STOP], "any"),
    ([R, 1, R], [R, 1, STOP], "any"),
    ([E, 1, STOP], [E, 1, R], "any"),
    ([E, 1, T, 2], [E, 1, R, 2], "any"),
    ([E, 1, R, 2, STOP], [E, 1, R, 2, T], "any"),
    ([STOP], [STOP], "any"),
])
def test_steps(chosen: list[int], written: list[int], form: Form) -> None:
    ids, overruled = _write(chosen, form=form)
    assert ids[: len(written)] == written
    noted = {place: token for place, token in overruled.items() if place < len(written)}
    assert noted == {place: chosen[place] for place, token in enumerate(written) if place < len(chosen) and chosen[place] != token}


def test_hidden_steps_leave_room_for_the_one_that_is_shown() -> None:
    endless = [E, *range(10)] * 1 + [number % 10 if number % 7 else number % 9 for number in range(200)]
    ids, overruled = _write(endless, room=80)
    chain = parse(ids, markers=MARKERS, stop_ids=STOPS)
    assert chain.kind is Kind.CHAIN and len(overruled) == 2
    assert len(chain.query_en) <= 20 and len(chain.query_en) + len(chain.answer_en) <= 36 and len(chain.answer) >= 40


def test_a_loop_gives_way_to_the_next_step() -> None:
    loop = [5, 6, 7, 8]
    ids, overruled = _write([E, 1, R, *loop * 20], room=1000)
    assert ids[: 3 + 16] == [E, 1, R, *loop * 3, 5, 6, 7, T]
    assert overruled[18] == 8
    ids, _ = _write([E, 1, R, 2, T, *loop * 20], room=1000)
    assert ids == [E, 1, R, 2, T, *loop * 3, 5, 6, 7, STOP]
    ids, _ = _write(loop * 20, room=1000, form="any")
    assert ids == [*loop * 3, 5, 6, 7, STOP]


@pytest.mark.parametrize(("ids", "looping"), [
    ([5, 6, 7, 8] * 4, True),
    ([1, 2, 3, *[5, 6, 7, 8] * 4], True),
    ([5, 6, 7, 8] * 3 + [5, 6, 7], False),  # not yet
    ([5, 6, 7, 8] * 4 + [9], False),  # it has left
    ([5] * 15, False),  # a line of dashes
    ([5] * 16, True),
    (list(range(40)) * 4, False),  # a refrain
    ([], False),
])
def test_a_loop_is_seen(ids: list[int], looping: bool) -> None:
    assert in_a_loop(ids) is looping


def test_what_was_overruled_is_said() -> None:
    ids, overruled = _write([1, 2, STOP, 3, R, 4, E])
    assert what_was_overruled(ids, overruled, markers=MARKERS, stop_ids=STOPS) == (
        "wanted more text where the query in English was due", "wanted its end where the answer in English was due",
        "wanted the answer in English again where the answer was due", "wanted the query in English again where its end was due")
