"""Streaming shows whole characters only, and all of them in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transllm.generation import TextStream
from transllm.tokenizer import SpanTokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12)


def _stream(spans: SpanTokenizer, ids: list[int]) -> tuple[list[str], str]:
    written: list[str] = []
    stream = TextStream(spans.decode, written.append)
    for token in ids:
        stream.add(token)
    before = list(written)
    assert stream.close() == spans.decode(ids)
    return before, "".join(written)


@pytest.mark.parametrize("text", ["สวัสดีครับ", "👩‍👩‍👧‍👦 ok 🇪🇸!", "¿Qué tal, señor?", "日本語。", "e\u0301", "plain"])
def test_no_half_characters(tiny_spans: SpanTokenizer, text: str) -> None:
    ids = tiny_spans.encode_english(text)
    written, shown = _stream(tiny_spans, ids)
    assert shown == text == "".join(written), "nothing is left for the end"
    assert "" not in written and not any("\ufffd" in part for part in written)
    assert len(written) > 1


@given(TEXT)
def test_any_text_comes_out_whole(tiny_spans: SpanTokenizer, text: str) -> None:
    written, shown = _stream(tiny_spans, tiny_spans.encode_target(text))
    assert shown == text and not any("\ufffd" in part for part in written)


@given(st.lists(st.integers(4, 340), max_size=12))
def test_any_ids_are_all_shown_in_the_end(tiny_spans: SpanTokenizer, ids: list[int]) -> None:
    _, shown = _stream(tiny_spans, ids)
    assert shown == tiny_spans.decode(ids)


def test_a_character_that_never_ends_is_shown_at_the_close(tiny_spans: SpanTokenizer) -> None:
    ids = tiny_spans.encode_english("a👩")[:-1]
    written, shown = _stream(tiny_spans, ids)
    assert "".join(written) == "a"
    assert shown == tiny_spans.decode(ids) and shown.endswith("\ufffd")
