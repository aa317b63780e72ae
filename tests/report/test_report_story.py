"""The headline's words against the numbers that they are made from."""

from __future__ import annotations

import pytest

from transllm.evaluation.metrics import Metrics, StageMetrics
from transllm.evaluation.table import before_after
from transllm.report.story import headline, recovery, tally


def metrics_of(before: dict[str, float | None], after: dict[str, float | None]) -> Metrics:
    return Metrics(stages={"original": StageMetrics.from_dict(before), "merge": StageMetrics.from_dict(after)})


def told(before: dict[str, float | None], after: dict[str, float | None]) -> str:
    return headline(before_after(metrics_of(before, after), target="Thai"), target="Thai").replace("\N{NO-BREAK SPACE}", " ")


def test_gains_and_losses_in_one_sentence() -> None:
    keys = ("bits_per_byte_target", "chrf_en_target", "chrf_target_en", "bits_per_byte_english", "tokens_per_answer")
    sentence = told(dict(zip(keys, (2.0, 16, 18, 1.0, 80), strict=True)), dict(zip(keys, (1.5, 20, 25, 1.1, 200), strict=True)))
    assert sentence == ("Thai text takes 25.0 % fewer bits per byte and translation gained 4.0 points of chrF into Thai and 7.0 from Thai; "
                        "on the other side, English text takes 10.0 % more bits per byte and an answer takes 2.5 times the tokens.")


def test_only_gains_only_losses_nothing() -> None:
    assert told({"chrf_en_target": 10}, {"chrf_en_target": 20}) == ("Translation gained 10.0 points of chrF into Thai; "
                                                                    "nothing that was measured got worse beyond its tolerance.")
    assert told({}, {"kl_to_original": 0.3}) == ("English answers moved 0.300 nats a token away from the original's; "
                                                 "nothing that was measured got better beyond its tolerance.")
    assert told({"chrf_en_target": 10}, {"chrf_en_target": 10.2}) == "Nothing that was measured changed beyond its tolerance."


def test_every_figure_that_can_get_better_or_worse_has_words() -> None:
    keys = [key for key in StageMetrics().to_dict() if not key.startswith(("bleu", "chrfpp"))]
    for key in keys:
        for before, after in ((0.2, 0.9), (0.9, 0.2), (0.5, 0.9)):
            if key.startswith("chrf"):
                before, after = before * 100, after * 100
            assert "it" in told({key: before}, {key: after})
            assert "Nothing" not in told({key: before}, {key: after})


def test_opposite_directions_of_translation_are_told_apart() -> None:
    sentence = told({"chrf_en_target": 10, "chrf_target_en": 10}, {"chrf_en_target": 20, "chrf_target_en": 5})
    assert sentence == "Translation gained 10.0 points of chrF into Thai; on the other side, translation lost 5.0 points of chrF from Thai."


def test_tally_counts_all_figures() -> None:
    table = before_after(metrics_of({"chrf_en_target": 10, "chrf_target_en": 10, "bleu_en_target": 1.0, "answer_in_target": 0.1},
                                    {"chrf_en_target": 20, "chrf_target_en": 5, "bleu_en_target": 1.1}))
    assert tally(table) == "Original against merge, 4 figures: 1 better, 1 worse, 1 the same, 1 not comparable."


@pytest.mark.parametrize(("after", "verdict", "says"), [(0.1, "better", "75"), (0.4, "same", "0"), (0.6, "worse", "50")])
def test_recovery_says_whether_fine_tuning_repaired_english(after: float, verdict: str, says: str) -> None:
    remark = recovery(Metrics(stages={"bitext": StageMetrics(kl_to_original=0.4), "finetune": StageMetrics(kl_to_original=after)}))
    assert remark is not None
    assert remark.verdict == verdict and f"({says}\N{NO-BREAK SPACE}%" in remark.text


def test_no_recovery_without_both_figures() -> None:
    assert recovery(Metrics(stages={"bitext": StageMetrics(kl_to_original=0.4)})) is None
    assert recovery(Metrics(stages={"bitext": StageMetrics(), "finetune": StageMetrics(kl_to_original=0.1)})) is None
