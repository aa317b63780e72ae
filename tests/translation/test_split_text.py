"""Texts are cut into sentences and joined again without a loss."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transllm.translation import split_text


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize(("text", "sentences"), [
    ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
    ('He said "go." Then he left.', ['He said "go."', "Then he left."]),
    ("(It rained.) We stayed.", ["(It rained.)", "We stayed."]),
    ("It costs 3.50 dollars.", ["It costs 3.50 dollars."]),
    ("你好。再见！", ["你好。", "再见！"]),
    ("- first item\n- second item", ["first item", "second item"]),
    ("1. Wash it.\n2) Cut it.\n\n## Then\n  * Eat.", ["Wash it.", "Cut it.", "Then", "Eat."]),
    ("3.5 metres\n-5 degrees\n#tag", ["3.5 metres", "-5 degrees", "#tag"]),
    ("**Bold** text", ["**Bold** text"]),
    ("42\n---\n3 + 4 = 7", []),
    ("", []),
])
def test_sentences(text: str, sentences: list[str]) -> None:
    assert list(split_text(text).sentences) == sentences


@pytest.mark.parametrize("text", [
    'He said "go." Then he left. (Why?) Nobody knows.',
    "Steps:\n\n1. Wash it. Dry it.\n2) Cut it.\n\n## Then\n  * Eat.\n\n42\n---\n",
    "  indented\ttext  \n\ttab. And more.\r\n",
])
def test_what_is_joined_again_is_the_text(text: str) -> None:
    parts = split_text(text)
    assert parts.join(parts.sentences) == text
    upper = parts.join([sentence.upper() for sentence in parts.sentences])
    assert upper == text.upper(), "lead marks, blanks and line breaks stay where they are"


@given(st.text(st.sampled_from("ab1 .!?\"'”)]。！-*#\n\t()ñ"), max_size=60) | st.text(max_size=40), st.integers(1, 30))
def test_any_text_comes_back_up_to_blanks(text: str, longest: int) -> None:
    parts = split_text(text, longest=longest)
    joined = parts.join(parts.sentences)
    assert _squeezed(joined) == _squeezed(text)
    assert joined.count("\n") == text.count("\n")
    assert all(sentence == sentence.strip() and 0 < len(sentence) <= longest for sentence in parts.sentences)
    assert parts.frame.count(None) == len(parts.sentences)


def test_long_sentences_are_cut_at_blanks() -> None:
    text = "word " * 300
    parts = split_text(text.strip(), longest=100)
    assert all(len(sentence) <= 100 and sentence.endswith("word") for sentence in parts.sentences)
    assert parts.join(parts.sentences) == text.strip()
    assert [len(sentence) for sentence in split_text("x" * 250, longest=100).sentences] == [100, 100, 50]
