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
    assert [sentence.text for sentence in split_text(text).sentences] == sentences


@pytest.mark.parametrize("text", [
    'He said "go." Then he left. (Why?) Nobody knows.',
    "Steps:\n\n1. Wash it. Dry it.\n2) Cut it.\n\n## Then\n  * Eat.\n\n42\n---\n",
    "  indented\ttext  \n\ttab. And more.\r\n",
])
def test_what_is_joined_again_is_the_text(text: str) -> None:
    parts = split_text(text)
    assert parts.join([sentence.text for sentence in parts.sentences]) == text
    upper = parts.join([sentence.text.upper() for sentence in parts.sentences])
    assert upper == text.upper(), "lead marks, blanks and line breaks stay where they are"


@given(st.text(st.sampled_from("ab1 .!?\"'”)]。！-*#\n\t()ñ"), max_size=60) | st.text(max_size=40), st.integers(1, 30))
def test_any_text_comes_back_up_to_blanks(text: str, longest: int) -> None:
    parts = split_text(text, longest=longest)
    joined = parts.join([sentence.restore(sentence.text) for sentence in parts.sentences])
    assert _squeezed(joined) == _squeezed(text)
    assert joined.count("\n") == text.count("\n")
    assert all(one.text == one.text.strip() and 0 < len(one.text) <= longest for one in parts.sentences)
    assert parts.frame.count(None) == len(parts.sentences)


def test_long_sentences_are_cut_at_blanks() -> None:
    text = "word " * 300
    parts = split_text(text.strip(), longest=100)
    cut = [sentence.text for sentence in parts.sentences]
    assert all(len(sentence) <= 100 and sentence.endswith("word") for sentence in cut)
    assert parts.join(cut) == text.strip()
    assert [len(sentence.text) for sentence in split_text("x" * 250, longest=100).sentences] == [100, 100, 50]


def test_whole_lines_are_cut_where_they_are_too_long() -> None:
    text = "One is here. Two is here. Three is here.\nFour."
    assert [one.text for one in split_text(text, whole_lines=True).sentences] == ["One is here. Two is here. Three is here.", "Four."]
    assert [one.text for one in split_text(text, whole_lines=True, longest=26).sentences] == [
        "One is here. Two is here.", "Three is here.", "Four."]


@pytest.mark.parametrize(("text", "sentences"), [
    ("Run `a. b` now.", [("Run \U000f0000 now.", ("`a. b`",))]),
    ("See https://x.org/a?b=1. Or ask me@x.org!", [("See \U000f0000.", ("https://x.org/a?b=1",)), ("Or ask \U000f0000!", ("me@x.org",))]),
    ("Do:\n```py\n# not this. no\n```\nDone.", [("Do:", ()), ("Done.", ())]),
    ("Do:\n```py\nnever closed. no", [("Do:", ())]),
    ("| A b | `c|d` |\n|---|:-:|\n| 1 | e \\| f |", [("A b", ()), ("e \\| f", ())]),
    ("a | b is no table", [("a | b is no table", ())]),
    ("> - [x] Quoted.", [("Quoted.", ())]),
])
def test_what_is_kept_from_the_translator(text: str, sentences: list[tuple[str, tuple[str, ...]]]) -> None:
    assert [(one.text, one.pieces) for one in split_text(text).sentences] == sentences
