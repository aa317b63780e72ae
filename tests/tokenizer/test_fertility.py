"""Fertility, comparison and segments: counts that add up and pieces that concatenate."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast as Fast

from transllm.tokenizer import Fertility, compare, fertility, segment
from transllm.tokenizer.family import family_of


def test_counts_and_ratios(original: Fast) -> None:
    texts = ["el niño  come", "ไทย", ""]
    tokens = sum(len(original.encode(text, add_special_tokens=False)) for text in texts)
    measured = fertility(original, iter(texts))
    assert (measured.tokens, measured.words, measured.characters, measured.bytes) == (tokens, 4, 16, 23)
    assert (measured.tokens_per_word, measured.tokens_per_character, measured.tokens_per_byte) == (tokens / 4, tokens / 16, tokens / 23)
    assert fertility(original, []) == Fertility(0.0, 0.0, 0.0, 0, 0, 0, 0)


def test_special_tokens_in_a_text_count_as_text(original: Fast) -> None:
    assert fertility(original, ["<|im_end|>"]).tokens > 1


def test_more_texts_than_a_batch(original: Fast, texts: Any) -> None:
    assert fertility(original, texts.english * 5).tokens == 5 * fertility(original, texts.english).tokens


def test_comparison_counts_every_sentence(original: Fast, extended: Fast, texts: Any) -> None:
    compared = compare(original, extended, texts.english * 2 + texts.spanish, keep=4)
    assert compared.sentences == 1500
    assert 1000 <= compared.identical < 1100
    assert len(compared.differences) == 4
    for difference in compared.differences:
        assert difference["text"] in texts.spanish
        assert "".join(difference["before"]) == "".join(difference["after"]) == difference["text"]
        assert len(difference["before"]) > len(difference["after"])
    assert compare(original, original, texts.spanish).identical == 500


def test_segments_concatenate_to_the_text(original: Fast, extended: Fast, random_texts: list[str]) -> None:
    for tokenizer in (original, extended):
        for text in [*random_texts[:40], " a  b ", "ñ", "🙂🙂", "\n\n \t", "<EN> <|im_end|>", ""]:
            pieces = segment(tokenizer, text)
            assert "".join(piece for piece, _ in pieces) == text


def test_a_character_of_several_tokens_is_shown_with_the_last(kind: str, original: Fast) -> None:
    pieces = segment(original, "a🙂b")
    if kind == "unigram_unknown":
        assert [piece for piece, _ in pieces] == ["a", "🙂", "b"]
        return
    assert [piece for piece, _ in pieces] == ["a", "", "", "", "🙂", "b"]
    assert len({token_id for _, token_id in pieces}) == 6


def test_a_space_is_shown_with_its_token(original: Fast) -> None:
    pieces = segment(original, " the  city, and the library ")
    bytes_of = family_of(original).bytes_of
    # At the head of a text, a SentencePiece tokenizer may hold one space more, or one less.
    assert [piece for piece, _ in pieces][2:] == [
        bytes_of(original.convert_ids_to_tokens(token_id)).decode(errors="replace") for _, token_id in pieces][2:]
