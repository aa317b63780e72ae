"""What markers start as, and the text as methods read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from transllm import load_recipe, transform
from transllm.errors import ModelError
from transllm.languages import LANGUAGES
from transllm.model import load_folder, start_of
from transllm.pipeline.new_rows import Texts, known, new_sub_tokens
from transllm.pipeline.run import status
from transllm.pipeline.stage import read_manifest
from transllm.tokenizer import SpanTokenizer, extend_tokenizer, family_of, learn_merges, marker_texts


def test_a_marker_is_what_it_means(tiny_spans: SpanTokenizer) -> None:
    parts = new_sub_tokens(tiny_spans)
    for marker, words in ((tiny_spans.markers.english, "English:"), (tiny_spans.markers.response, "Answer:"),
                          (tiny_spans.markers.target, "Spanish:")):
        assert parts[marker] == tiny_spans.encode_english(words)


def test_pieces_are_known_and_markers_are_not(tiny_spans: SpanTokenizer) -> None:
    parts = new_sub_tokens(tiny_spans)
    facts = known(tiny_spans, parts, Texts(), seed=5)
    special = {*dataclasses.astuple(tiny_spans.markers), tiny_spans.pad_id}
    assert parts.keys() - facts.pieces.keys() == special & parts.keys()
    assert facts.seed == 5
    bytes_of = family_of(tiny_spans.original).bytes_of
    for new_id, ids in facts.pieces.items():
        assert sum(facts.n_bytes[part] for part in ids) == len(bytes_of(tiny_spans.extended.convert_ids_to_tokens(new_id)))


def test_a_known_word_starts_as_its_translation(tiny_spans: SpanTokenizer) -> None:
    texts = Texts(lexicon=[("searching", "buscando"), ("city", "qqq")])
    facts = known(tiny_spans, new_sub_tokens(tiny_spans), texts, seed=1)
    start = start_of("lexicon", facts)
    assert tiny_spans.extended.convert_ids_to_tokens(list(start.ids)) == ["uscan"], "the others make up less than half of the word"
    english = {token for text in (" searching", "searching") for token in tiny_spans.encode_english(text)}
    for row_V in start.rows(torch.eye(tiny_spans.original_size)):
        assert set(row_V.nonzero().flatten().tolist()) <= english


def test_documents_are_read_in_the_vocabulary_of_their_language(tiny_spans: SpanTokenizer) -> None:
    english, spanish = "The captain describes the city library.", "El capitán describía la biblioteca."
    facts = known(tiny_spans, new_sub_tokens(tiny_spans), Texts([spanish], [english], [(english, spanish)]), seed=1)
    target, source, pair = facts.documents()
    assert target == tiny_spans.encode_target(spanish) and max(target) >= tiny_spans.original_size
    assert source == tiny_spans.encode_english(english)
    assert sorted(pair) == sorted(target + source)


def test_a_language_without_spaces_has_none_before_its_words(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    original, thai = make_tokenizer(), LANGUAGES["th"]
    learned = learn_merges(original, ["ห้องสมุดของเมือง"] * 20, ["The library."], size=30, min_count=2, latin=False)
    spans = SpanTokenizer(original, extend_tokenizer(original, learned, markers=marker_texts(thai), pad=None), thai)
    facts = known(spans, new_sub_tokens(spans), Texts(lexicon=[("library", "ห้องสมุด")]), seed=1)
    assert list(facts.entries()) == [(spans.encode_target("ห้องสมุด"), spans.encode_english(" library"))]


@pytest.mark.parametrize("init", ["focus", "lexicon", "random"])
def test_a_run_starts_its_rows_as_the_recipe_says(home: Any, tmp_path: Path, init: str) -> None:
    mine = home.at(tmp_path / "home")
    words = mine.folder / "words.tsv"
    spanish = {"the": "la", "them": "las", "he": "el", "of": "de", "for": "por", "each": "cada", "one": "una", "radio": "radio",
               "library": "biblioteca", "bridge": "puente", "window": "ventana", "problem": "problema", "without": "sin"}
    words.write_text("".join(f"{english}\t{word}\n" for english, word in spanish.items()), encoding="utf-8")
    settings = {"init": init, **({"lexicon": {"files": "words.tsv", "licence": "CC0-1.0"}} if init == "lexicon" else {})}
    recipe = load_recipe(mine.write(extend=settings))
    folder = transform(recipe, runs=tmp_path, until="extend").folder / "extend"
    manifest = read_manifest(folder)
    assert manifest is not None
    started = manifest["metrics"]["rows_started"]
    assert started.keys() == {init} and 0 < started[init] <= manifest["metrics"]["new_pieces"] == 40
    assert started[init] == 40 or init != "random"
    assert started[init] < 15 or init != "lexicon", "of so many words"
    assert [source["used_as"] for source in manifest["sources"]] == (["lexicon"] if init == "lexicon" else [])

    rows = load_folder(folder)[0].get_input_embeddings().weight
    transform(recipe, runs=tmp_path, until="extend", start="extend")
    assert torch.equal(load_folder(folder)[0].get_input_embeddings().weight, rows), "the same seed, the same rows"
    if init == "lexicon":
        words.write_text("library\tbiblioteca\n", encoding="utf-8")
        assert [stage.state for stage in status(folder.parent)][:2] == ["done", "stale"], "a changed lexicon makes the stage stale"


def test_a_tied_head_cannot_start_otherwise(home: Any, tmp_path: Path) -> None:
    recipe = load_recipe(home.at(tmp_path / "home").write(extend={"head_init": "first"}))
    with pytest.raises(ModelError, match=r"tied.*extend\.head_init"):
        transform(recipe, runs=tmp_path, until="extend")
