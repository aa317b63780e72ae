"""The figures against values worked out by hand, and metrics.json against what can be wrong in it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from transllm.errors import DataError
from transllm.evaluation.metrics import (
    Metrics,
    StageMetrics,
    bits_per_byte,
    bleu_tokenizer,
    share,
    translation_scores,
)
from transllm.languages import LANGUAGES

CONTRACT = ["bits_per_byte_target", "bits_per_byte_english", "chrf_en_target", "chrf_target_en", "chrfpp_en_target", "chrfpp_target_en",
            "bleu_en_target", "bleu_target_en", "kl_to_original", "same_next_token", "tcot_well_formed", "answer_in_target",
            "tokens_per_answer", "seconds_per_answer"]


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    assert bits_per_byte(12 * math.log(256), 12) == pytest.approx(8.0)


@pytest.mark.parametrize(("nats", "n_bytes"), [(1.0, 0), (1.0, -3), (math.nan, 5), (math.inf, 5), (-0.1, 5)])
def test_bits_per_byte_refuses_what_has_no_meaning(nats: float, n_bytes: int) -> None:
    with pytest.raises(DataError):
        bits_per_byte(nats, n_bytes)


def test_share() -> None:
    assert share([True, False, True, True]) == 0.75
    assert share(flag for flag in [False]) == 0.0
    assert share([]) is None


def test_translation_scores_of_copies_are_full_and_signed() -> None:
    text = ["He opened the door and went out.", "I have never been to Mexico."]
    scores = translation_scores(text, text)
    assert scores["chrf"] == scores["chrfpp"] == pytest.approx(100.0)
    assert scores["bleu"] == pytest.approx(100.0)
    assert "nw:0" in scores["signatures"]["chrf"]
    assert "nw:2" in scores["signatures"]["chrfpp"]
    assert "tok:13a" in scores["signatures"]["bleu"]


def test_chrfpp_counts_words_and_chrf_does_not() -> None:
    scores = translation_scores(["gatito perritos"], ["gatitos perrito"])  # alike in characters, no word in common
    assert 0 < scores["chrfpp"] < scores["chrf"] < 100


def test_an_empty_translation_scores_nothing() -> None:
    scores = translation_scores([""], ["Hello there, my friend."])
    assert scores["chrf"] == scores["bleu"] == 0.0


def test_bleu_of_an_unspaced_script_needs_its_tokenizer() -> None:
    hypothesis, reference = ["กรุงเทพเป็นเมืองหลวงของไทย"], ["กรุงเทพเป็นเมืองหลวงของประเทศไทย"]
    assert translation_scores(hypothesis, reference)["bleu"] == 0.0
    assert translation_scores(hypothesis, reference, tokenize=bleu_tokenizer(LANGUAGES["th"]))["bleu"] > 50
    assert bleu_tokenizer(LANGUAGES["es"]) == "13a"
    assert bleu_tokenizer(LANGUAGES["zh"]) == "zh"


@pytest.mark.parametrize(("hypotheses", "references", "says"), [([], [], "no translations"), (["a"], ["a", "b"], "1 translations but 2")])
def test_translation_scores_need_pairs(hypotheses: list[str], references: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        translation_scores(hypotheses, references)


def test_stage_metrics_have_exactly_the_keys_of_the_contract() -> None:
    assert list(StageMetrics().to_dict()) == CONTRACT
    assert set(StageMetrics().to_dict().values()) == {None}


def test_unknown_figure_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'chrf_en_traget'.*Did you mean 'chrf_en_target'"):
        StageMetrics.from_dict({"chrf_en_traget": 1.0})


@pytest.mark.parametrize(("key", "value"), [("kl_to_original", math.nan), ("chrf_en_target", "16"), ("bleu_en_target", True),
                                            ("tcot_well_formed", 95.0), ("same_next_token", -0.1)])
def test_figures_must_be_finite_numbers_and_shares_shares(key: str, value: object) -> None:
    with pytest.raises(DataError, match=key):
        StageMetrics.from_dict({key: value})


def test_metrics_round_trip_in_order_with_nulls(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    metrics = Metrics(stages={"merge": StageMetrics(tcot_well_formed=0.95), "original": StageMetrics(kl_to_original=0.0)},
                      settings={"sentences": 100}).with_stage("bitext", StageMetrics(chrf_en_target=22.9))
    metrics.write(path)
    assert Metrics.read(path) == metrics
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert list(raw) == ["original", "bitext", "merge", "settings"]
    assert raw["original"]["kl_to_original"] == 0.0 and raw["original"]["chrf_en_target"] is None
    assert metrics.final == "merge"
    assert Metrics(stages={"original": StageMetrics()}).final is None
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(("text", "says"), [
    ("{", "not valid JSON"), ("[]", "no table"), ('{"original": 3}', "'original'"), ('{"orignal": {}}', "Did you mean 'original'"),
    ('{"merge": {"kl_to_original": NaN}}', "In 'merge'")])
def test_a_broken_metrics_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says) as caught:
        Metrics.read(path)
    assert str(path) in str(caught.value)


def test_a_missing_metrics_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="evaluate"):
        Metrics.read(tmp_path / "metrics.json")
