"""Extension: nothing that was there moves, what is new is where it should be, and files say the same as memory."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerFast as Fast

from transllm.errors import ModelError
from transllm.tokenizer import Learned, extend_tokenizer, fertility, id_limit, learn_merges, load_tokenizer, save_tokenizer, sub_tokens
from transllm.tokenizer.backend import plain_backend
from transllm.tokenizer.family import family_of

MARKERS = ["<EN>", "<RESPONSE>", "<ES>"]
NOTHING = Learned([], [], {})
# What the original itself does not give back: other forms of a letter, a space at the head of a text, characters that it does not know.
LOSSY = ("qwen", "mistral", "unigram_unknown")


def test_old_ids_stay_and_new_ones_follow(original: Fast, extended: Fast, learned: Learned) -> None:
    old, new = original.get_vocab(), extended.get_vocab()
    assert {token: new[token] for token in old} == old
    added = [*learned.pieces, *MARKERS, "<|pad|>"]
    assert [new[token] for token in added] == list(range(len(original), len(original) + len(added)))
    assert len(extended) == len(old) + len(added) == id_limit(extended)
    assert extended.convert_ids_to_tokens(list(range(len(original)))) == original.convert_ids_to_tokens(list(range(len(original))))
    assert not set(learned.pieces) & {token.content for token in extended.added_tokens_decoder.values()}


def test_any_text_round_trips(kind: str, original: Fast, extended: Fast, random_texts: list[str], texts: Any) -> None:
    plain, before = plain_backend(extended), plain_backend(original)
    for text in random_texts + texts.spanish + texts.thai:
        ids = plain.encode(text).ids
        assert max(ids, default=0) < len(extended)
        if kind not in LOSSY or before.decode(before.encode(text).ids) == text:
            assert plain.decode(ids) == text
        if kind in ("gpt2", "llama3"):
            assert extended.decode(extended.encode(text, add_special_tokens=False)) == text
    assert len(original.encode("añadió", add_special_tokens=False)) >= len(extended.encode("añadió", add_special_tokens=False))


def test_pad_is_its_own(original: Fast, extended: Fast) -> None:
    assert original.pad_token_id == original.eos_token_id
    assert extended.pad_token == "<|pad|>"
    assert extended.pad_token_id not in (extended.eos_token_id, extended.bos_token_id, None)
    named = extend_tokenizer(original, NOTHING, markers=MARKERS, pad="<fill>")
    assert named.pad_token == "<fill>"
    again = extend_tokenizer(named, NOTHING, markers=["<TH>"], pad="<other>")
    assert again.pad_token == "<fill>"
    assert len(again) == len(named) + 1


def test_markers_are_atomic_and_special(extended: Fast) -> None:
    vocabulary = extended.get_vocab()
    for marker in MARKERS:
        assert extended.encode(f"sí{marker}no", add_special_tokens=False).count(vocabulary[marker]) == 1
        assert extended.decode([vocabulary[marker]], skip_special_tokens=True) == ""


def test_the_rest_of_the_tokenizer_survives(original: Fast, extended: Fast, texts: Any) -> None:
    turns = [{"role": "user", "content": texts.english[0]}]
    assert extended.chat_template == original.chat_template
    assert extended.apply_chat_template(turns, tokenize=False) == original.apply_chat_template(turns, tokenize=False)
    assert extended.encode(texts.english[1]) == original.encode(texts.english[1])
    assert (extended.model_max_length, extended.bos_token, extended.eos_token, extended.unk_token) == (
        2048, "<|im_start|>", "<|im_end|>", original.unk_token)


def test_padding_set_on_the_original_does_not_stay(gpt2_like: Fast) -> None:
    padded = copy.deepcopy(gpt2_like)
    padded(["a", "the city library"], padding="max_length", truncation=True, max_length=30)
    assert padded.backend_tokenizer.padding and padded.backend_tokenizer.truncation
    extended = extend_tokenizer(padded, NOTHING, markers=MARKERS, pad=None)
    assert extended.backend_tokenizer.padding is None
    assert extended.backend_tokenizer.truncation is None
    assert "max_length" not in extended.init_kwargs
    assert extended(["a", "the city library"], padding=True)["input_ids"][0][-1] == extended.pad_token_id


def test_the_original_is_left_as_it_is(original: Fast, learned: Learned) -> None:
    before = original.backend_tokenizer.to_str()
    extend_tokenizer(original, learned, markers=MARKERS, pad=None)
    assert original.backend_tokenizer.to_str() == before
    assert original.pad_token == "<|im_end|>"


def test_saving_and_loading_keep_every_id(extended: Fast, tmp_path: Path, random_texts: list[str], texts: Any) -> None:
    save_tokenizer(extended, tmp_path)
    sample = random_texts + texts.spanish + texts.english
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded(sample)["input_ids"] == extended(sample)["input_ids"]
        assert (len(loaded), loaded.pad_token_id, loaded.chat_template) == (len(extended), extended.pad_token_id, extended.chat_template)
    # Beside a model's config.json, transformers may choose another class for the tokenizer.
    for model_type in ("llama", "qwen3", "gpt2", "mistral"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert AutoTokenizer.from_pretrained(tmp_path)(sample)["input_ids"] == extended(sample)["input_ids"]


def test_holes_are_filled_not_moved(gpt2_like: Fast, texts: Any) -> None:
    parsed = json.loads(gpt2_like.backend_tokenizer.to_str())
    vocabulary = parsed["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary[last] += 5
    holed = Fast(tokenizer_object=Tokenizer.from_str(json.dumps(parsed)), eos_token="<|im_end|>")  # type: ignore[no-untyped-call]
    assert len(holed) + 5 == id_limit(holed)
    learned = learn_merges(holed, texts.spanish, texts.english, size=20, min_count=3)
    extended = extend_tokenizer(holed, learned, markers=["<EN>"], pad=None)
    new = extended.get_vocab()
    assert new[last] == holed.get_vocab()[last]
    assert new[learned.pieces[0]] == id_limit(holed)
    assert len(extended) == id_limit(extended) == id_limit(holed) + 22
    assert sorted(sub_tokens(holed, extended)) == list(range(id_limit(holed), len(extended)))


@pytest.mark.parametrize(("markers", "pad", "complaint"), [
    (["<EN>", "<EN>"], None, "given twice"),
    (["<|im_end|>"], None, "already"),
    (["ing"], None, "already"),
    ([""], None, "empty"),
    ([" <EN>"], None, "space around"),
    (["<EN>"], "<EN>", "given twice"),
    (["<EN>"], "<|im_start|>", "already"),
])
def test_markers_that_would_clash_are_refused(gpt2_like: Fast, markers: list[str], pad: str | None, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        extend_tokenizer(gpt2_like, NOTHING, markers=markers, pad=pad)


def test_merges_of_another_tokenizer_are_refused(original: Fast, learned: Learned, extended: Fast) -> None:
    for bad in (Learned([("xyzzy", "y")], ["xyzzyy"], {}), Learned(learned.merges, learned.pieces[1:], {}),
                Learned(learned.merges[:1] * 2, learned.pieces[:1] * 2, {})):
        with pytest.raises(ModelError, match="this very tokenizer"):
            extend_tokenizer(original, bad, markers=MARKERS, pad=None)
    with pytest.raises(ModelError, match="already"):
        extend_tokenizer(extended, learned, markers=["<TH>"], pad=None)


def test_sub_tokens_are_the_original_ids_in_order(kind: str, original: Fast, extended: Fast, learned: Learned) -> None:
    found = sub_tokens(original, extended, descriptions={"<ES>": "the city"})
    new, old = extended.get_vocab(), original.get_vocab()
    assert list(found) == list(range(len(original), len(extended)))
    bytes_of, plain = family_of(original).bytes_of, plain_backend(original)
    for piece in learned.pieces:
        parts = original.convert_ids_to_tokens(found[new[piece]])
        if kind == "unigram_unknown" and original.unk_token in parts:
            continue
        raw = bytes_of(piece)
        assert b"".join(map(bytes_of, parts)) == raw or plain.decode(found[new[piece]]).strip() == raw.decode().strip()
        assert len(parts) > 1
    assert all(token_id < len(original) for ids in found.values() for token_id in ids)
    assert found[new["<ES>"]] == original.encode("the city", add_special_tokens=False)
    assert old["<|im_end|>"] not in found[new["<|pad|>"]]


def test_a_token_that_stands_for_nothing_is_an_error(gpt2_like: Fast) -> None:
    parsed = json.loads(gpt2_like.backend_tokenizer.to_str())
    parsed["normalizer"] = {"type": "Replace", "pattern": {"String": "<EN>"}, "content": ""}
    odd = Fast(tokenizer_object=Tokenizer.from_str(json.dumps(parsed)), eos_token="<|im_end|>")  # type: ignore[no-untyped-call]
    extended = extend_tokenizer(odd, NOTHING, markers=["<EN>"], pad=None)
    with pytest.raises(ModelError, match="'<EN>' stands for no original token"):
        sub_tokens(odd, extended)
    assert sub_tokens(odd, extended, descriptions={"<EN>": "English:"})


def test_thai_grows_too(kind: str, original: Fast, texts: Any, random_texts: list[str]) -> None:
    learned = learn_merges(original, texts.thai, texts.english, size=200, min_count=3, latin=False)
    extended = extend_tokenizer(original, learned, markers=["<EN>", "<RESPONSE>", "<TH>"], pad=None)
    # Without bytes, a text of unknown characters is one token.
    assert fertility(extended, texts.thai).tokens < 0.4 * fertility(original, texts.thai).tokens or kind == "unigram_unknown"
    plain = plain_backend(extended)
    for text in texts.thai if kind in LOSSY else random_texts + texts.thai:
        assert plain.decode(plain.encode(text).ids) == text
    found = sub_tokens(original, extended)
    first = original.convert_ids_to_tokens(found[len(original)])
    assert "".join(first) == learned.pieces[0] or first == [f"<0x{byte:02X}>" for byte in learned.pieces[0].encode()] or first == ["<unk>"]
