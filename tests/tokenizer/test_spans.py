"""Spans: each language in its own vocabulary, typed markers stay text, folders come back as they went."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerFast as Fast

from transllm.errors import ModelError
from transllm.languages import LANGUAGES
from transllm.tokenizer import Learned, Markers, SpanTokenizer, extend_tokenizer, learn_merges, marker_texts

# What the original itself does not give back: other forms of a letter, a space at the head of a text, characters that it does not know.
LOSSY = ("qwen", "mistral", "unigram_unknown")


def test_ids_and_sizes(spans: SpanTokenizer) -> None:
    vocabulary = spans.extended.get_vocab()
    assert marker_texts(LANGUAGES["es"]) == ["<EN>", "<RESPONSE>", "<ES>"]
    assert spans.markers == Markers(vocabulary["<EN>"], vocabulary["<RESPONSE>"], vocabulary["<ES>"])
    assert spans.original_size == len(spans.original)
    assert spans.size == len(spans.extended)
    assert spans.pad_id == vocabulary["<|pad|>"]


def test_english_takes_the_original_vocabulary(spans: SpanTokenizer, texts: Any) -> None:
    for text in [*texts.english[:50], *texts.spanish[:50]]:
        ids = spans.encode_english(text)
        assert ids == spans.original.encode(text, add_special_tokens=False)
        assert max(ids) < spans.original_size
        assert spans.decode(ids) == text or spans.original.unk_token_id in ids
    target = spans.encode_target(texts.spanish[0])
    assert max(target) >= spans.original_size
    assert len(target) < len(spans.encode_english(texts.spanish[0]))
    assert spans.decode(target) == texts.spanish[0]


def test_nothing_typed_becomes_a_special_token(kind: str, spans: SpanTokenizer) -> None:
    text = "a <EN> b<RESPONSE><ES> <|im_end|><|im_start|>system\n<|pad|> <|endoftext|>"
    special = {token_id for token_id, token in spans.extended.added_tokens_decoder.items() if token.special} - {spans.extended.unk_token_id}
    assert len(special) >= 6
    assert special & set(spans.extended.encode(text)), "parsed as usual, the specials are found"
    for ids in (spans.encode_english(text), spans.encode_target(text), spans.encode_target_batch([text])[0]):
        assert not special & set(ids)
        assert spans.decode(ids) == text or kind == "unigram_unknown"


def test_nothing_is_added_cut_or_padded(spans: SpanTokenizer) -> None:
    assert spans.encode_english("") == spans.encode_target("") == []
    long = "palabra " * 5000
    assert len(spans.encode_target(long)) > spans.extended.model_max_length
    assert spans.extended.bos_token_id not in spans.encode_english("hello")


def test_settings_of_the_hugging_face_tokenizers_do_not_matter(spans: SpanTokenizer, texts: Any) -> None:
    before = spans.encode_target_batch(texts.spanish[:5])
    spans.extended(texts.spanish[:5], padding=True, truncation=True, max_length=8)
    assert spans.encode_target_batch(texts.spanish[:5]) == before


def test_batches_equal_single_texts(kind: str, spans: SpanTokenizer, random_texts: list[str]) -> None:
    assert spans.encode_english_batch(iter(random_texts)) == [spans.encode_english(text) for text in random_texts]
    assert spans.encode_target_batch(random_texts) == [spans.encode_target(text) for text in random_texts]
    assert spans.encode_target_batch([]) == []
    if kind not in LOSSY:
        assert [spans.decode(ids) for ids in spans.encode_target_batch(random_texts)] == random_texts
        assert [spans.decode(ids) for ids in spans.encode_english_batch(random_texts)] == random_texts


def test_decode_skips_markers_and_takes_any_ids(spans: SpanTokenizer) -> None:
    markers = spans.markers
    ids = [markers.english, *spans.encode_english("Hi."), markers.response, markers.target, *spans.encode_target("Hola."), spans.pad_id]
    assert spans.decode(ids).split() in (["Hi.Hola."], ["Hi.", "Hola."])
    assert spans.decode([]) == ""
    assert spans.decode(spans.encode_target("ñ")[:1]) in ("ñ", "�", ""), "a piece, a half of one, or the space before it"


def test_save_and_load(spans: SpanTokenizer, tmp_path: Path, random_texts: list[str], texts: Any) -> None:
    spans.save(tmp_path)
    sample = random_texts + texts.spanish
    for loaded in (SpanTokenizer.load(tmp_path), SpanTokenizer.load(tmp_path, language=LANGUAGES["es"])):
        assert loaded.encode_target_batch(sample) == spans.encode_target_batch(sample)
        assert loaded.encode_english_batch(sample) == spans.encode_english_batch(sample)
        assert (loaded.markers, loaded.pad_id, loaded.original_size, loaded.size, loaded.language) == (
            spans.markers, spans.pad_id, spans.original_size, spans.size, spans.language)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == spans.size
    assert len(AutoTokenizer.from_pretrained(tmp_path / "original_tokenizer")) == spans.original_size


def test_incomplete_or_wrong_folders_are_refused(spans: SpanTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="extend stage"):
        SpanTokenizer.load(tmp_path)
    spans.save(tmp_path)
    with pytest.raises(ModelError, match="<TH>"):
        SpanTokenizer.load(tmp_path, language=LANGUAGES["th"])
    facts = json.loads((tmp_path / "vocabulary.json").read_text())
    (tmp_path / "vocabulary.json").write_text(json.dumps({**facts, "size": 7}))
    with pytest.raises(ModelError, match=r"on size\."):
        SpanTokenizer.load(tmp_path)
    (tmp_path / "vocabulary.json").write_text("{")
    with pytest.raises(ModelError, match="complete"):
        SpanTokenizer.load(tmp_path)
    (tmp_path / "vocabulary.json").write_text(json.dumps(facts))
    shutil.rmtree(tmp_path / "original_tokenizer")
    with pytest.raises(ModelError, match="complete"):
        SpanTokenizer.load(tmp_path)


def test_tokenizers_that_do_not_belong_together_are_refused(kind: str, spans: SpanTokenizer, texts: Any, make_original: Any) -> None:
    other: Fast = make_original("llama3" if kind == "gpt2" else "gpt2")
    with pytest.raises(ModelError, match="not an extension"):
        SpanTokenizer(other, spans.extended, LANGUAGES["es"])
    with pytest.raises(ModelError, match="lacks the marker"):
        SpanTokenizer(spans.original, spans.original, LANGUAGES["es"])
    english = learn_merges(spans.original, texts.spanish, texts.english, size=5, min_count=3)
    partial = extend_tokenizer(spans.original, english, markers=["<EN>", "<RESPONSE>"], pad=None)
    with pytest.raises(ModelError, match="<ES>"):
        SpanTokenizer(spans.original, partial, LANGUAGES["es"])
    plain = extend_tokenizer(spans.original, Learned([], [], {}), markers=marker_texts(LANGUAGES["es"]), pad=None)
    plain.pad_token = plain.eos_token
    with pytest.raises(ModelError, match="pad token"):
        SpanTokenizer(spans.original, plain, LANGUAGES["es"])
