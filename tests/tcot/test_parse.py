"""Parsing: any ids give a result; only whole chains are well formed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transllm.tcot import Chain, Kind, Renderer, parse
from transllm.tokenizer import Markers, SpanTokenizer

E, R, T, STOP, EOS = 10, 11, 12, 13, 14
MARKERS = Markers(E, R, T)
STOPS = {STOP, EOS}
TEXT = st.lists(st.integers(0, 9), min_size=1, max_size=4)


def _parse(ids: list[int]) -> Chain:
    return parse(ids, markers=MARKERS, stop_ids=STOPS)


@given(st.lists(st.one_of(st.integers(0, 20), st.integers(-(2**40), 2**40))))
def test_any_ids_give_a_chain(ids: list[int]) -> None:
    chain = _parse(ids)
    assert isinstance(chain, Chain) and isinstance(chain.kind, Kind)
    assert chain.ended == any(token in STOPS for token in ids)
    for span in (chain.query_en, chain.answer_en, chain.answer):
        assert not {E, R, T, STOP, EOS} & set(span)
        assert set(span) <= set(ids)
    if chain.well_formed:
        body = ids[: next(place for place, token in enumerate(ids) if token in STOPS)]
        assert body == [E, *chain.query_en, R, *chain.answer_en, T, *chain.answer]
        assert chain.query_en and chain.answer_en and chain.answer


@given(TEXT, TEXT, TEXT, st.sampled_from([STOP, EOS]), st.lists(st.integers(0, 20)))
def test_a_whole_chain_and_every_truncation_of_it(query: list[int], english: list[int], answer: list[int], end: int,
                                                  rest: list[int]) -> None:
    whole = [E, *query, R, *english, T, *answer, end]
    chain = _parse([*whole, *rest])
    assert chain == Chain(Kind.CHAIN, tuple(query), tuple(english), tuple(answer), True, "")
    assert chain.well_formed
    for length in range(len(whole)):
        cut = _parse(whole[:length])
        assert not cut.well_formed and not cut.ended and cut.problem
        assert cut.kind is (Kind.PLAIN if length == 0 else Kind.MALFORMED if T not in whole[:length] else Kind.CHAIN)
        assert cut.query_en == tuple(query[: max(0, length - 1)])
        assert cut.answer == tuple(answer[: max(0, length - len(query) - len(english) - 3)])


@pytest.mark.parametrize(("ids", "kind", "answer", "problem"), [
    ([R, 1, 2, STOP], Kind.ENGLISH, (1, 2), ""),
    ([T, 1, 2, STOP], Kind.TARGET, (1, 2), ""),
    ([E, 1, 2, STOP], Kind.MALFORMED, (), "no answer in the target language"),
    ([R, 1], Kind.ENGLISH, (1,), "cut"),
    ([1, 2, EOS], Kind.PLAIN, (1, 2), "no marker"),
    ([1, 2], Kind.PLAIN, (1, 2), "cut"),
    ([], Kind.PLAIN, (), "cut"),
    ([STOP], Kind.PLAIN, (), "no marker"),
    ([R, STOP], Kind.ENGLISH, (), "empty span"),
    ([E, R, 1, T, 2, STOP], Kind.CHAIN, (2,), "empty span"),
    ([E, 1, R, 1, T, STOP], Kind.CHAIN, (), "empty span"),
    ([5, E, 1, R, 1, T, 2, STOP], Kind.CHAIN, (2,), "text before the first marker"),
    ([E, 1, R, 2, STOP], Kind.MALFORMED, (), "no answer in the target language"),
    ([E, 1, T, 2, STOP], Kind.MALFORMED, (2,), "markers in the order ET"),
    ([T, 1, R, 2, E, 3, STOP], Kind.MALFORMED, (1,), "markers in the order TRE"),
    ([E, 1, R, 2, T, 3, T, 4, STOP], Kind.MALFORMED, (4,), "markers in the order ERTT"),
])
def test_kinds_and_problems(ids: list[int], kind: Kind, answer: tuple[int, ...], problem: str) -> None:
    chain = _parse(ids)
    assert (chain.kind, chain.answer, chain.problem) == (kind, answer, problem)
    assert not chain.well_formed


def test_best_effort_of_markers_out_of_order() -> None:
    chain = _parse([T, 1, R, 2, E, 3, R, 4, T, 5, STOP])
    assert (chain.query_en, chain.answer_en, chain.answer) == ((3,), (2,), (5,))


def test_rendered_chains_parse(tiny_spans: SpanTokenizer) -> None:
    renderer = Renderer(tiny_spans)
    texts = {"query_en": "Is <ES> a marker?", "answer_en": "No <RESPONSE>.", "answer": "No, señor <EN>."}
    chain = parse(renderer.answer(renderer.chain(**texts)), markers=tiny_spans.markers, stop_ids=renderer.stop_ids)
    assert chain.well_formed
    assert [tiny_spans.decode(span) for span in (chain.query_en, chain.answer_en, chain.answer)] == list(texts.values())
