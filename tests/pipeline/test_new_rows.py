"""What markers start as, and the text as methods read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from transllm.languages import LANGUAGES
from transllm.model import start_of
from transllm.pipeline.new_rows import Texts, known, new_sub_tokens
from transllm.tokenizer import SpanTokenizer, extend_tokenizer, learn_merges, marker_texts


def test_a_marker_is_half_its_words_and_half_what_opens_a_conversation(tiny_spans: SpanTokenizer) -> None:
    original, parts = tiny_spans.original, new_sub_tokens(tiny_spans)
    opening = original.convert_tokens_to_ids("<|begin|>")
    for marker, words in ((tiny_spans.markers.english, " English"), (tiny_spans.markers.response, " Answer"),
                          (tiny_spans.markers.target, " Spanish")):
        ids = tiny_spans.encode_english(words)
        assert parts[marker] == [*ids, *[opening] * len(ids)]
        assert ":" not in original.decode(parts[marker])
    assert len({tuple(parts[marker]) for marker in dataclasses.astuple(tiny_spans.markers)}) == 3, "no two markers start alike"


def test_text_or_an_end_is_no_opening(make_spans: Callable[..., SpanTokenizer]) -> None:
    """A template that opens with a word, and one that opens with the token that also ends: the words stand alone."""
    for template, eos in (("{% for m in messages %}User: {{ m.content }}{% endfor %}", "<|endoftext|>"),
                          ("{% for m in messages %}<|im_end|>{{ m.content }}{% endfor %}", "<|im_end|>")):
        spans = make_spans(template=template, eos=eos, bos=None)
        assert new_sub_tokens(spans)[spans.markers.target] == spans.encode_english(" Spanish")


def test_pieces_are_known_and_markers_are_not(tiny_spans: SpanTokenizer) -> None:
    parts = new_sub_tokens(tiny_spans)
    facts = known(tiny_spans, parts, Texts(), seed=5)
    special = {*dataclasses.astuple(tiny_spans.markers), tiny_spans.pad_id}
    assert parts.keys() - facts.pieces.keys() == special & parts.keys()
    assert facts.seed == 5
    for new_id, ids in facts.pieces.items():
        token = tiny_spans.extended.convert_ids_to_tokens(new_id)
        assert sum(facts.n_bytes[part] for part in ids) == len(tiny_spans.extended.backend_tokenizer.decoder.decode([token]).encode())


def test_a_known_word_starts_as_its_translation(tiny_spans: SpanTokenizer) -> None:
    texts = Texts(lexicon=[("library", "biblioteca"), ("city", "qqq")])
    facts = known(tiny_spans, new_sub_tokens(tiny_spans), texts, seed=1)
    start = start_of("lexicon", facts)
    words = [ids for text in (" biblioteca", "biblioteca") for ids in [tiny_spans.encode_target(text)]]
    assert start.ids and set(start.ids) <= {token for ids in words for token in ids}
    english = {token for text in (" library", "library") for token in tiny_spans.encode_english(text)}
    assert all(row.keys() <= english for row in _mixtures(start, tiny_spans.original_size))


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


def _mixtures(start: object, size: int) -> list[dict[int, float]]:
    import torch

    rows = start.rows(torch.eye(size))  # type: ignore[attr-defined]
    return [{place: float(row[place]) for place in row.nonzero().flatten().tolist()} for row in rows]
