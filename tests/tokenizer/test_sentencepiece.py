"""SentencePiece: the fast and the slow form of an extended tokenizer agree, and what is special to this family holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerFast as Fast

from transllm.data.package import package_file
from transllm.data.types import MissingSourceError
from transllm.errors import ModelError
from transllm.languages import LANGUAGES
from transllm.tokenizer import (
    Learned,
    SpanTokenizer,
    compare,
    extend_tokenizer,
    family_of,
    fertility,
    learn_merges,
    marker_texts,
    sub_tokens,
)
from transllm.tokenizer.backend import plain_backend
from transllm.tokenizer.modelfile import model_file

KINDS = ["llama2", "mistral", "gemma", "unigram", "unigram_unknown"]
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def make_pair(make_original: Make, texts: Any) -> Callable[[str, str], SpanTokenizer]:
    """A tokenizer and its extension for a language."""
    def make(kind: str, code: str) -> SpanTokenizer:
        original = make_original(kind)
        learned = learn_merges(original, texts.thai if code == "th" else texts.spanish, texts.english, size=150, min_count=3,
                               latin=code != "th")
        extended = extend_tokenizer(original, learned, markers=marker_texts(LANGUAGES[code]), pad=None)
        return SpanTokenizer(original, extended, LANGUAGES[code])

    return make


def _file(path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("code", ["es", "th"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_and_the_slow_form_agree(make_pair: Make, kind: str, code: str, tmp_path: Path, texts: Any,
                                          random_texts: list[str]) -> None:
    spans: SpanTokenizer = make_pair(kind, code)
    spans.save(tmp_path)
    before, after = _file(tmp_path / "original_tokenizer" / "tokenizer.model"), _file(tmp_path / "tokenizer.model")
    assert before.get_piece_size() == spans.original_size
    assert after.get_piece_size() == spans.size
    assert [after.id_to_piece(number) for number in range(spans.size)] == spans.extended.convert_ids_to_tokens(list(range(spans.size)))
    sample = texts.english + texts.spanish + texts.thai + random_texts
    agreed = [text for text in sample if before.encode(text) == spans.encode_english(text)]
    assert len(agreed) > 0.95 * len(sample)
    assert [after.encode(text) for text in agreed] == spans.encode_target_batch(agreed)
    assert [before.encode(text) for text in texts.english] == [after.encode(text) for text in texts.english]
    # Markers are control pieces: SentencePiece never reads them in a text.
    for marker in (spans.markers.english, spans.markers.target, spans.pad_id):
        assert after.is_control(marker)
        assert marker not in after.encode(f"a {after.id_to_piece(marker)} b")


def test_saving_again_what_was_loaded_keeps_the_file(make_pair: Make, tmp_path: Path) -> None:
    make_pair("llama2", "es").save(tmp_path / "first")
    SpanTokenizer.load(tmp_path / "first").save(tmp_path / "second")
    for name in ("tokenizer.model", "original_tokenizer/tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "second")
    assert loaded("El corazón")["input_ids"] == make_pair("llama2", "es").extended("El corazón")["input_ids"]


def test_a_file_that_numbers_otherwise_is_not_written(make_original: Make, texts: Any, tmp_path: Path, caplog: Any) -> None:
    """Some families shift the ids of their file; an extension of it would be another tokenizer."""
    original: Fast = make_original("llama2")
    parsed = json.loads(original.backend_tokenizer.to_str())
    vocabulary = parsed["model"]["vocab"]
    vocabulary["▁t"], vocabulary["▁a"] = vocabulary["▁a"], vocabulary["▁t"]
    original.save_pretrained(tmp_path / "shifted")
    (tmp_path / "shifted" / "tokenizer.json").write_text(json.dumps(parsed))
    file = model_file(original)
    assert file is not None
    (tmp_path / "shifted" / "tokenizer.model").write_bytes(file.read_bytes())
    shifted = Fast.from_pretrained(tmp_path / "shifted")
    extended = extend_tokenizer(shifted, Learned([], [], {}), markers=marker_texts(LANGUAGES["es"]), pad=None)
    SpanTokenizer(shifted, extended, LANGUAGES["es"]).save(tmp_path / "extended")
    assert not (tmp_path / "extended" / "tokenizer.model").exists()
    assert "numbers its pieces otherwise" in caplog.text


def test_a_tiktoken_list_under_the_same_name_is_left_alone(gpt2_like: Fast, tmp_path: Path) -> None:
    gpt2_like.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    loaded = Fast.from_pretrained(tmp_path)
    assert loaded.vocab_file
    assert model_file(loaded) is None


@pytest.mark.parametrize("kind", ["llama2", "mistral", "gemma"])
def test_every_split_of_a_new_piece_is_a_merge_after_all_old_ones(make_pair: Make, kind: str) -> None:
    """As converters write a SentencePiece file down, which has no list of merges."""
    spans: SpanTokenizer = make_pair(kind, "es")
    old, new = (json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"] for tokenizer in (spans.original, spans.extended))
    assert new[:len(old)] == old
    added = [tuple(merge) for merge in new[len(old):]]
    assert len(added) == len(set(added))
    vocabulary = spans.extended.get_vocab()
    ranks = [vocabulary[left + right] for left, right in added]
    assert ranks == sorted(ranks)
    special = set(spans.extended.all_special_tokens)
    for number in range(spans.original_size, spans.size - 4):
        piece = spans.extended.convert_ids_to_tokens(number)
        splits = {(piece[:place], piece[place:]) for place in range(1, len(piece))}
        assert {merge for merge in added if "".join(merge) == piece} == {
            split for split in splits if set(split) <= vocabulary.keys() - special}


@pytest.mark.parametrize("kind", KINDS)
def test_no_new_piece_holds_a_space_inside_or_a_byte(make_pair: Make, kind: str) -> None:
    spans: SpanTokenizer = make_pair(kind, "th")
    pieces = spans.extended.convert_ids_to_tokens(list(range(spans.original_size, spans.size - 4)))
    assert len(pieces) > 100
    assert not any("▁" in piece[1:] or "<0x" in piece or " " in piece for piece in pieces)
    assert "ก" in pieces, "characters that the vocabulary lacks come in"


def test_characters_that_english_holds_too_stay_bytes(make_original: Make, texts: Any) -> None:
    original: Fast = make_original("llama2")
    learned = learn_merges(original, ["un café año"] * 20, [*texts.english, "a café"], size=30, min_count=2)
    assert "é" not in learned.pieces
    assert "ñ" in learned.pieces
    assert learned.dropped["english"] > 0
    extended = extend_tokenizer(original, learned, markers=["<EN>"], pad=None)
    assert compare(original, extended, ["a café", "the café and", "Café"]).identical == 3


def test_signs_that_any_language_writes_are_not_learned(make_original: Make, texts: Any) -> None:
    learned = learn_merges(make_original("llama2"), ["hola😀\tñ\n~"] * 20, texts.english, size=30, min_count=2)
    assert not {"😀", "\t", "\n", "~"} & set("".join(learned.pieces))
    assert "ñ" in learned.pieces


def test_double_spaces_are_cut_as_before(make_original: Make, texts: Any) -> None:
    """White space scores lowest in a SentencePiece file; new pieces must still come after it."""
    original: Fast = make_original("llama2")
    learned = learn_merges(original, texts.spanish, texts.english, size=150, min_count=3)
    extended = extend_tokenizer(original, learned, markers=["<EN>"], pad=None)
    spaced = [text.replace(" ", "  ") for text in texts.english]
    assert compare(original, extended, spaced).identical == len(spaced)


def test_a_new_piece_is_no_step_to_an_old_one_that_was_out_of_reach(make_original: Make, texts: Any) -> None:
    original: Fast = make_original("llama2")
    parsed = json.loads(original.backend_tokenizer.to_str())
    parsed["model"]["vocab"]["nadieñada"] = len(parsed["model"]["vocab"])
    odd = Fast(tokenizer_object=Tokenizer.from_str(json.dumps(parsed)), eos_token="<|im_end|>")  # type: ignore[no-untyped-call]
    target = ["nadie ñada nadieñada"] * 20
    assert "ña" in "".join(learn_merges(original, target, texts.english, size=40, min_count=2).pieces)
    learned = learn_merges(odd, target, texts.english, size=40, min_count=2)
    assert learned.dropped["existing"] > 0
    assert not any(piece in "nadieñada" for piece in learned.pieces if len(piece) > 1)


@pytest.mark.parametrize("kind", ["unigram", "unigram_unknown"])
def test_unigram_scores_keep_the_borders_of_the_original_cut(make_pair: Make, kind: str, texts: Any) -> None:
    """New pieces only join what the original cut apart, and take the fewest tokens."""
    spans: SpanTokenizer = make_pair(kind, "es")
    parts = sub_tokens(spans.original, spans.extended)
    kept = sum([part for token_id in new for part in parts.get(token_id, [token_id])] == old
               for old, new in zip(spans.encode_english_batch(texts.spanish), spans.encode_target_batch(texts.spanish), strict=True))
    # A character that was unknown is a piece now, so a cut beside it may be better than the one around it was.
    assert kept > 0.9 * len(texts.spanish) if kind == "unigram" else kept > 0
    assert fertility(spans.extended, texts.spanish).tokens < 0.7 * fertility(spans.original, texts.spanish).tokens


@pytest.mark.parametrize("kind", ["unigram", "unigram_unknown"])
def test_a_typed_name_of_a_special_token_is_text_in_a_unigram_model(make_pair: Make, kind: str) -> None:
    """There, special tokens are entries of the model like all others, and it would find them."""
    spans: SpanTokenizer = make_pair(kind, "es")
    assert spans.extended.backend_tokenizer.model.tokenize("</s>")[0].id == spans.extended.convert_tokens_to_ids("</s>")
    for text in ("</s>", "<EN>", "a<|im_end|>b</s>", "<s> <ES>"):
        for ids in (spans.encode_english(text), spans.encode_target(text)):
            assert not {token_id for token_id in ids if token_id != spans.original.unk_token_id} & set(spans.extended.all_special_ids)


def test_text_with_pieces_across_words_is_handled(make_original: Make, texts: Any) -> None:
    """Models trained without split_by_whitespace hold pieces such as "of▁the"."""
    original: Fast = make_original("llama2")
    parsed = json.loads(original.backend_tokenizer.to_str())
    _, left, right = original.tokenize("and the president")[:3]
    parsed["model"]["vocab"][left + right] = len(parsed["model"]["vocab"])
    parsed["model"]["merges"].append([left, right])
    crossing = Fast(tokenizer_object=Tokenizer.from_str(json.dumps(parsed)), eos_token="<|im_end|>")  # type: ignore[no-untyped-call]
    assert left + right in crossing.tokenize("and the president")
    assert "▁" in (left + right)[1:]
    learned = learn_merges(crossing, texts.spanish, texts.english, size=60, min_count=3)
    assert len(learned.pieces) == 60
    assert not any("▁" in piece[1:] for piece in learned.pieces)
    extended = extend_tokenizer(crossing, learned, markers=["<EN>"], pad=None)
    assert compare(crossing, extended, texts.english).identical == len(texts.english)
    assert fertility(extended, texts.spanish).tokens < 0.9 * fertility(crossing, texts.spanish).tokens


def test_pieces_of_another_family_are_refused(make_original: Make, texts: Any) -> None:
    learned = {kind: learn_merges(make_original(kind), texts.spanish, texts.english, size=20, min_count=3)
               for kind in ("llama2", "unigram")}
    for kind, other in (("llama2", "unigram"), ("unigram", "llama2"), ("gpt2", "unigram")):
        with pytest.raises(ModelError, match="this very tokenizer"):
            extend_tokenizer(make_original(kind), learned[other], markers=["<EN>"], pad=None)


def test_a_real_tokenizer(make_sentencepiece: Make, texts: Any, tmp_path: Path) -> None:
    """Mistral's own file, out of a wheel that is read and not installed."""
    try:
        path = package_file("mistral-common==1.13.1", "*tokenizer.model.v1")
    except MissingSourceError as error:
        pytest.skip(f"no real SentencePiece file at hand: {error}")
    original: Fast = make_sentencepiece("llama2", path.read_bytes(), tmp_path)
    learned = learn_merges(original, texts.thai, texts.english, size=200, min_count=3, latin=False)
    extended = extend_tokenizer(original, learned, markers=marker_texts(LANGUAGES["th"]), pad=None)
    spans = SpanTokenizer(original, extended, LANGUAGES["th"])
    spans.save(tmp_path / "extended")
    before, after = _file(path), _file(tmp_path / "extended" / "tokenizer.model")
    for sample in (texts.english, texts.thai, texts.spanish):
        assert before.encode(sample) == spans.encode_english_batch(sample)
        assert after.encode(sample) == spans.encode_target_batch(sample)
    assert compare(original, extended, [*texts.english, *texts.spanish]).identical == 1000
    assert fertility(extended, texts.thai).tokens < 0.4 * fertility(original, texts.thai).tokens
    falling = [after.get_score(number) for number in range(spans.original_size, spans.size)]
    assert max(falling) < min(before.get_score(number) for number in range(spans.original_size)) < -1e8
    assert all(left > right for left, right in pairwise(falling))
    assert plain_backend(extended).decode(spans.encode_target(texts.thai[0])) == texts.thai[0]


@pytest.mark.parametrize("kind", ["llama2", "mistral", "gemma"])
def test_learning_counts_the_tokens_that_the_tokenizer_then_makes(make_original: Make, kind: str, texts: Any) -> None:
    for sample, latin in ((texts.spanish, True), (texts.thai, False)):
        learned = learn_merges(make_original(kind), sample, texts.english, size=100, min_count=3, latin=latin)
        characters = len(learned.pieces) - len(learned.merges)
        assert [size for size, _ in learned.curve] == [characters, 100] and characters > 0
        extended = extend_tokenizer(make_original(kind), learned, markers=["<EN>"], pad=None)
        assert fertility(extended, sample).tokens == learned.curve[-1][1]
        assert not learned.whole_words, "no rule parts words at marks"


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_stand_for_bytes(make_original: Make, kind: str) -> None:
    family = family_of(make_original(kind))
    assert family.bytes_of("▁año") == " año".encode()
    assert family.bytes_of("<0xE1>") == b"\xe1"
    written = family.cut_bytes(family.backend, b"\xe1a")
    assert written == (None if kind == "unigram_unknown" else ["<0xE1>", "<0x61>"])
