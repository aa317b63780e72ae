"""Scripts whose marks cut words: found in a sample, kept whole in the pre-tokenizer, and nothing else is cut otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast as Fast

from transllm.tokenizer import Script, compare, extend_tokenizer, fertility, learn_merges, script_of
from transllm.tokenizer.backend import plain_backend
from transllm.tokenizer.script import whole_words, with_whole_words

OTHERS = {
    "KHMER": "ខ្ញុំចូលចិត្តអានសៀវភៅ", "LAO": "ຂ້ອຍມັກອ່ານປຶ້ມ", "MYANMAR": "ကျွန်တော်စာဖတ်ရတာကြိုက်တယ်", "DEVANAGARI": "मुझे किताबें पढ़ना पसंद है",
    "TAMIL": "எனக்கு புத்தகம் படிக்க பிடிக்கும்", "CJK": "我喜欢看书", "HIRAGANA": "ほんをよむのがすきです", "ARABIC": "أحب قراءة الكتب"}


@pytest.fixture(scope="module", params=["gpt2", "llama3", "qwen"])
def original(request: pytest.FixtureRequest, make_original: Callable[[str], Fast]) -> Fast:
    """Byte-level: SentencePiece words end at spaces, so no rule parts them at marks."""
    return make_original(request.param)


@pytest.mark.parametrize("name", OTHERS)
def test_the_script_of_a_sample_is_found(name: str) -> None:
    assert script_of([OTHERS[name], "with some Latin words"]).names == (name,)
    assert script_of(["only Latin, señor, naïve — 42 ”…"]) == Script()


def test_what_is_quoted_is_not_the_script() -> None:
    assert script_of([OTHERS["LAO"] * 30, "это"]).names == ("LAO",)


def test_bytes_that_only_the_script_has() -> None:
    thai = script_of(["ภาษาไทย"])
    for raw in ("ไ".encode(), "ไ".encode()[:2], b"\x81" + "ก".encode()[:2], " ก".encode()):
        assert thai.reached_by(raw), raw
    for raw in ("“".encode(), "…".encode()[:2], b"\xe0", b"abc", "é".encode(), "😀".encode()[:3]):
        assert not thai.reached_by(raw), raw


def test_a_text_without_the_script_is_cut_as_before(original: Fast, texts: Any, random_texts: list[str]) -> None:
    script = script_of(texts.thai)
    changed = Tokenizer.from_str(with_whole_words(plain_backend(original).to_str(), script) or "")
    changed.encode_special_tokens = True
    odd = "a  b \n\n c\t42 e\u0301 👩\u200d👩 don't x_y(z)"
    others = [text for text in [*random_texts, *texts.english, *texts.spanish, *OTHERS.values(), odd] if not script.found_in(text)]
    assert len(others) > 1000
    before, after = (backend.encode_batch(others) for backend in (plain_backend(original), changed))
    assert [(encoding.ids, encoding.offsets) for encoding in before] == [(encoding.ids, encoding.offsets) for encoding in after]


def test_runs_of_the_script_are_whole(original: Fast, texts: Any) -> None:
    parsed = json.loads(plain_backend(original).to_str())
    parsed["pre_tokenizer"] = whole_words(parsed["pre_tokenizer"], script_of(texts.thai))
    cut = Tokenizer.from_str(json.dumps(parsed)).pre_tokenizer
    text = "กำลังไป English ที่นี่ ไม่ (เคย)"
    assert [text[start:end] for _, (start, end) in cut.pre_tokenize_str(text)][:4] == ["กำลังไป", " English", " ที่นี่", " ไม่"]
    assert len(plain_backend(original).pre_tokenizer.pre_tokenize_str("กำลังที่นี่")) > 3


@pytest.mark.parametrize("step", [None, {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}, {"type": "Whitespace"}])
def test_rules_that_cannot_be_changed_are_left(step: dict[str, Any] | None) -> None:
    assert whole_words(step, script_of(["ไทย"])) is None
    assert whole_words({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, Script()) is None


def test_learning_keeps_words_whole_where_that_helps(original: Fast, texts: Any) -> None:
    options: dict[str, Any] = {"size": 300, "min_count": 3, "latin": False}
    learned = learn_merges(original, texts.thai, texts.english, **options)
    assert learned.whole_words and learned.pre_tokens[1] < 0.5 * learned.pre_tokens[0]
    assert learned.script.names == ("THAI",)
    kept = learn_merges(original, texts.thai, texts.english, whole_words=False, **options)
    assert not kept.whole_words and kept.pre_tokens == learned.pre_tokens
    changed, same = (extend_tokenizer(original, found, markers=["<EN>"], pad=None) for found in (learned, kept))
    assert fertility(changed, texts.thai).tokens < 0.6 * fertility(same, texts.thai).tokens
    assert compare(original, changed, [*texts.english, *texts.spanish]).identical == 1000


def test_a_script_without_marks_keeps_the_rule(original: Fast) -> None:
    learned = learn_merges(original, ["我喜欢看书也喜欢写字。"] * 20, [], size=20, min_count=3, latin=False)
    assert not learned.whole_words and learned.pre_tokens[0] == learned.pre_tokens[1] > 0
    assert learned.pieces
