"""The proofs hold for an extension, and fail where something is broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast as Fast

from transllm.errors import ModelError
from transllm.tokenizer import extend_tokenizer, id_limit, learn_merges, prove_gguf, prove_kept, prove_round_trips, throughput


def _broken(extended: Fast, change: Any) -> Fast:
    parsed = json.loads(extended.backend_tokenizer.to_str())
    change(parsed)
    return Fast(tokenizer_object=Tokenizer.from_str(json.dumps(parsed)), eos_token="<|im_end|>")  # type: ignore[no-untyped-call]


def test_everything_comes_back(kind: str, original: Fast, extended: Fast, texts: Any) -> None:
    trips = prove_round_trips(original, extended, texts=texts.spanish, count=100)
    if kind == "unigram_unknown":
        assert (trips.single_bytes, trips.byte_strings) == (0, 0) and 0 < trips.texts < 600
    else:
        assert (trips.single_bytes, trips.byte_strings, trips.texts) == (256, 100, 600)


@pytest.mark.parametrize(("kind", "piece"), [("gpt2", "÷"), ("llama3", "÷"), ("qwen", "÷"), ("llama2", "<0xF7>"), ("gemma", "<0xF7>")])
def test_a_byte_that_is_lost_is_found(make_original: Callable[[str], Fast], kind: str, piece: str) -> None:
    def lose(parsed: dict[str, Any]) -> None:
        parsed["model"]["vocab"]["<lost>"] = parsed["model"]["vocab"].pop(piece)  # the byte 0xf7 in no character

    original = extended = make_original(kind)

    with pytest.raises(ModelError, match="loses the bytes f7"):
        prove_round_trips(original, _broken(extended, lose), count=5)


def test_a_byte_that_the_original_loses_is_told(make_original: Callable[[str], Fast]) -> None:
    def lose(parsed: dict[str, Any]) -> None:
        parsed["model"]["vocab"]["<lost>"] = parsed["model"]["vocab"].pop("÷")

    original = _broken(make_original("gpt2"), lose)
    trips = prove_round_trips(original, original, count=5)
    assert (trips.single_bytes, trips.byte_strings, trips.lacking) == (255, 5, [0xf7])


def test_a_text_that_changes_is_found(original: Fast, extended: Fast) -> None:
    def change(parsed: dict[str, Any]) -> None:
        parsed["normalizer"] = {"type": "Lowercase"}

    with pytest.raises(ModelError, match="does not give back the text 'Nandu'"):
        prove_round_trips(original, _broken(extended, change), texts=["Nandu"])


def test_english_is_held_to_its_share(original: Fast, extended: Fast, texts: Any) -> None:
    assert prove_kept(original, extended, texts.english, what="English", least=1.0).identical == 500
    careless = extend_tokenizer(original, learn_merges(original, texts.spanish, [], size=150, min_count=3), markers=["<EN>"], pad=None)
    with pytest.raises(ModelError, match=r"of 500 sentences of English .* at most 0\.2% may be"):
        prove_kept(original, careless, texts.english, what="English", least=0.998)
    found = prove_kept(original, careless, texts.english, what="English", least=0.0)
    assert len(found.differences) == found.sentences - found.identical > 100


def test_pieces_come_back_from_a_gguf_file(original: Fast, extended: Fast) -> None:
    assert prove_gguf(extended, first=id_limit(original)) == 150
    assert prove_gguf(original, first=id_limit(original)) == 0


def test_a_piece_that_a_gguf_file_loses_is_found(original: Fast, extended: Fast) -> None:
    first = id_limit(original)

    def lose(parsed: dict[str, Any]) -> None:
        model = parsed["model"]
        if model["type"] == "Unigram":
            model["vocab"][first + 100][1] = -1000.0
        else:
            piece = next(piece for piece, number in model["vocab"].items() if number == first + 100)
            model["merges"] = [merge for merge in model["merges"] if "".join(merge) != piece]

    with pytest.raises(ModelError, match="of 150 new pieces are not themselves"):
        prove_gguf(_broken(extended, lose), first=first)


def test_throughput_is_measured_in_turn(original: Fast, extended: Fast, texts: Any) -> None:
    found = throughput(original, extended, texts.spanish, rounds=4)
    assert len(found.before) == len(found.after) == 4 and min(found.before + found.after) > 0
    assert found.spread[0] <= found.ratio <= found.spread[1]
