"""Learning: the right merges, none that touch English, whatever the kind of tokenizer; other kinds are refused."""

from __future__ import annotations

import copy
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast as Fast

from transllm.errors import ModelError
from transllm.tokenizer import Learned, compare, extend_tokenizer, family_of, fertility, learn_merges
from transllm.tokenizer.backend import plain_backend
from transllm.tokenizer.bytelevel import piece_bytes


def _lone(learned: Learned) -> list[str]:
    """Pieces that no merge makes."""
    made = {left + right for left, right in learned.merges}
    return [piece for piece in learned.pieces if piece not in made]


def test_each_merge_makes_its_piece_of_known_parts(kind: str, original: Fast, learned: Learned) -> None:
    assert len(learned.pieces) == len(set(learned.pieces))
    assert len(learned.scores) == (len(learned.pieces) if "unigram" in kind else 0)
    if "unigram" in kind:
        assert 120 < len(learned.pieces) <= 150
        assert learned.merges == []
        return
    assert len(learned.pieces) == 150
    lone = _lone(learned)
    assert ("ñ" in lone and not any(map(str.isascii, lone))) if kind in ("llama2", "mistral", "gemma") else lone == []
    assert lone + [left + right for left, right in learned.merges] == learned.pieces
    known = {*original.get_vocab(), *lone}
    for left, right in learned.merges:
        assert left in known and right in known
        assert left + right not in known
        known.add(left + right)


def test_the_order_of_the_texts_does_not_matter(original: Fast, learned: Learned, texts: Any) -> None:
    spanish, english = texts.spanish[:], texts.english[:]
    random.Random(7).shuffle(spanish)
    random.Random(8).shuffle(english)
    assert learn_merges(original, iter(spanish), iter(english), size=150, min_count=3) == learned


@pytest.mark.parametrize("language", ["spanish", "thai"])
def test_the_merges_are_those_of_plain_bpe(gpt2_like: Fast, texts: Any, language: str) -> None:
    """Against a slow training that counts all pairs anew for each merge."""
    backend = plain_backend(gpt2_like)
    model = backend.model
    counted = Counter(word for text in getattr(texts, language) for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    words = [([token.value for token in model.tokenize(word)], times) for word, times in counted.items()]
    vocabulary = gpt2_like.get_vocab()
    expected: list[tuple[str, str]] = []
    refused: set[tuple[str, str]] = set()
    while len(expected) < 80:
        counts: Counter[tuple[str, str]] = Counter()
        for word, times in words:
            for pair in pairwise(word):
                counts[pair] += times
        best = min(counts.keys() - refused, key=lambda pair: (-counts[pair], *(vocabulary[part] for part in pair)))
        if any(char.isdecimal() for char in piece_bytes("".join(best)).decode(errors="ignore")) or "".join(best) in vocabulary:
            refused.add(best)
            continue
        expected.append(best)
        vocabulary["".join(best)] = len(vocabulary)
        words = [(_join(word, best), times) for word, times in words]
    assert learn_merges(gpt2_like, getattr(texts, language), [], size=80, min_count=1).merges == expected


def _join(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in word:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def test_english_is_cut_as_before(original: Fast, extended: Fast, learned: Learned, texts: Any) -> None:
    assert learned.dropped["english"] > 0
    compared = compare(original, extended, texts.english)
    assert (compared.sentences, compared.identical, compared.differences) == (500, 500, [])
    words = sorted({word.strip(".!?") for sentence in texts.english for word in sentence.split()})
    cased = [case for word in words for case in (word.capitalize(), f"a {word.upper()}", f"({word.lower()})", f"the {word.capitalize()}")]
    assert compare(original, extended, cased).identical == len(cased)


def test_without_the_filter_english_would_change(original: Fast, texts: Any) -> None:
    """Otherwise the test above could not fail."""
    careless = extend_tokenizer(original, learn_merges(original, texts.spanish, [], size=150, min_count=3), markers=["<EN>"], pad=None)
    compared = compare(original, careless, texts.english, keep=3)
    assert compared.identical < 400
    assert len(compared.differences) == 3
    assert "".join(compared.differences[0]["before"]) == "".join(compared.differences[0]["after"]) == compared.differences[0]["text"]


def test_the_target_language_costs_less(original: Fast, extended: Fast, texts: Any) -> None:
    assert fertility(extended, texts.spanish).tokens < 0.7 * fertility(original, texts.spanish).tokens


def test_learning_knows_the_final_cut(kind: str, original: Fast, extended: Fast, learned: Learned, texts: Any) -> None:
    """No piece is dead weight: each occurs in the cut of the sample, or is a part of one that does."""
    used = {token for ids in extended(texts.spanish)["input_ids"] for token in extended.convert_ids_to_tokens(ids)}
    if "unigram" in kind:  # there, a cut is the shortest, not the one that was learned step by step
        assert len(used & set(learned.pieces)) > len(learned.pieces) / 3
        return
    for left, right in reversed(learned.merges):
        assert left + right in used
        used.update((left, right))
    assert used >= set(_lone(learned))


def test_rare_pairs_and_digits_are_not_joined(original: Fast, texts: Any) -> None:
    years = [f"año {year} ١٩٨٧" for year in (1987, 2004)] * 50
    learned = learn_merges(original, texts.spanish + years, texts.english, size=10_000, min_count=20)
    assert 0 < len(learned.pieces) < 10_000
    assert learned.dropped["digits"] > 0
    bytes_of = family_of(original).bytes_of
    assert not any(char.isdecimal() for piece in learned.pieces if len(piece) > 1 for char in bytes_of(piece).decode(errors="ignore"))
    assert len(learn_merges(original, texts.spanish, texts.english, size=10_000, min_count=200).pieces) < len(learned.pieces)
    assert learn_merges(original, texts.spanish, texts.english, size=0, min_count=1).pieces == []
    assert learn_merges(original, [], texts.english, size=10, min_count=1).pieces == []


def test_another_script_leaves_all_of_english_alone(kind: str, original: Fast, texts: Any) -> None:
    loan = learn_merges(original, texts.thai, texts.english, size=200, min_count=3)
    assert any("indows" in piece or "Facebook" in piece for piece in loan.pieces)
    learned = learn_merges(original, texts.thai, texts.english, size=200, min_count=3, latin=False)
    assert learned.dropped["latin"] > 0
    bytes_of = family_of(original).bytes_of
    assert not any(char in "abcdefghijklmnopqrstuvwxyz" for piece in learned.pieces for char in bytes_of(piece).decode(errors="ignore"))
    extended = extend_tokenizer(original, learned, markers=["<EN>"], pad=None)
    # Without bytes, a text of unknown characters is one token.
    assert fertility(extended, texts.thai).tokens < 0.4 * fertility(original, texts.thai).tokens or kind == "unigram_unknown"
    unseen = ["Facebook Windows", "Zebras quietly juxtapose xylophones.", *texts.spanish]
    assert compare(original, extended, unseen).identical == len(unseen)


def test_progress_is_told(original: Fast, texts: Any) -> None:
    told: list[tuple[int, int]] = []
    learn_merges(original, texts.spanish, texts.english, size=150, min_count=3, progress=lambda done, size: told.append((done, size)))
    assert told == [(100, 150), (150, 150)]


def test_english_words_inside_target_words_stay_with_ignore_merges(llama_like: Fast) -> None:
    """There, a pre-token that is in the vocabulary is taken whole: a piece learned inside a longer word must not become one."""
    learned = learn_merges(llama_like, ["ñquxozk"] * 50 + ["quxo"] * 50, ["quxo"], size=50, min_count=2)
    assert learned.pieces
    assert learned.dropped["english"] > 0
    extended = extend_tokenizer(llama_like, learned, markers=["<EN>"], pad=None)
    assert compare(llama_like, extended, ["quxo", "Quxo", "a quxo"]).identical == 3


def _trained(model: Any, trainer: Any, pre_tokenizer: Any, **parts: Any) -> Fast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.train_from_iterator(["some plain text to train on"] * 20, trainer)
    return Fast(tokenizer_object=backend)  # type: ignore[no-untyped-call]


def _bpe(pre_tokenizer: Any, *, parts: dict[str, Any] | None = None, **options: Any) -> Fast:
    return _trained(models.BPE(**options), trainers.BpeTrainer(show_progress=False), pre_tokenizer, **parts or {})


@pytest.mark.parametrize(("reason", "make"), [
    ("WordPiece", lambda: _trained(models.WordPiece(unk_token="[UNK]"),
                                   trainers.WordPieceTrainer(special_tokens=["[UNK]"], show_progress=False), pre_tokenizers.Whitespace())),
    ("WordLevel", lambda: _trained(models.WordLevel(unk_token="[UNK]"),
                                   trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False), pre_tokenizers.Whitespace())),
    ("character-level BPE", lambda: _bpe(pre_tokenizers.Whitespace())),
    ("writes a space as '_'", lambda: _trained(models.Unigram(), trainers.UnigramTrainer(show_progress=False),
                                               pre_tokenizers.Metaspace(replacement="_"))),
    ("BPE with marks", lambda: _trained(models.BPE(end_of_word_suffix="</w>"), trainers.BpeTrainer(
        end_of_word_suffix="</w>", show_progress=False), pre_tokenizers.ByteLevel())),
    ("BPE with dropout", lambda: _bpe(pre_tokenizers.ByteLevel(), dropout=0.1)),
])
def test_other_kinds_are_refused_by_name(reason: str, make: Any) -> None:
    with pytest.raises(ModelError, match=f"{reason}.*Take a model with a byte-level BPE"):
        learn_merges(make(), ["texto"], ["text"], size=10, min_count=1)


@pytest.mark.parametrize(("normalizer", "target", "letter"), [
    (normalizers.Lowercase(), "La Ñ y la A", "Ñ"),
    (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "niño", "ñ"),
    (normalizers.Sequence([normalizers.Lowercase(), normalizers.ByteLevel()]), "La Ñ y la A", "Ñ"),
    (normalizers.NFKC(), "ทำ", "ำ"),
])
def test_a_normaliser_that_loses_letters_is_refused(make_original: Any, normalizer: Any, target: str, letter: str) -> None:
    for kind in ("qwen", "gemma"):
        changed = copy.deepcopy(make_original(kind))
        changed.backend_tokenizer.normalizer = normalizers.Sequence([normalizer, changed.backend_tokenizer.normalizer])
        with pytest.raises(ModelError, match=f"rewrites .* \\('{letter}' becomes"):
            learn_merges(changed, [target] * 5, ["text"], size=10, min_count=1)
        # What it does to other scripts does not matter, nor does a form that Unicode calls the same.
        learn_merges(changed, ["ภาษา ไทย"] * 5, ["text"], size=10, min_count=1)


def test_canonical_forms_are_no_loss(make_original: Any) -> None:
    changed = copy.deepcopy(make_original("qwen"))
    changed.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.ByteLevel()])
    changed.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("x"), "isolated")
    assert learn_merges(changed, ["niño"] * 5, ["text"], size=10, min_count=1).pieces
