"""Which change counts as better, worse or the same, and that the terminal shows it within 100 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from transllm.evaluation.metrics import Metrics, StageMetrics
from transllm.evaluation.table import FIGURES, MINUS, NULL, PERCENT, TIMES, Table, before_after, render_terminal


def table_of(before: dict[str, float | None], after: dict[str, float | None], **options: str) -> Table:
    return before_after(Metrics(stages={"original": StageMetrics.from_dict(before), "merge": StageMetrics.from_dict(after)}), **options)


@pytest.mark.parametrize(("key", "before", "after", "verdict", "text"), [
    ("bits_per_byte_target", 1.4, 1.12, "better", f"{MINUS}20.0{PERCENT}"),
    ("bits_per_byte_target", 1.4, 1.54, "worse", f"+10.0{PERCENT}"),
    ("bits_per_byte_english", 1.0, 1.04, "same", f"+4.0{PERCENT}"),
    ("bits_per_byte_english", 1.0, 1.05, "same", f"+5.0{PERCENT}"),
    ("bits_per_byte_english", 1.0, 1.06, "worse", f"+6.0{PERCENT}"),
    ("chrf_en_target", 16.0, 22.0, "better", "+6.0"),
    ("chrf_en_target", 16.0, 15.0, "worse", f"{MINUS}1.0"),
    ("chrf_en_target", 16.0, 16.3, "same", "+0.3"),
    ("kl_to_original", None, 0.2, "worse", "+0.200"),
    ("kl_to_original", 0.0, 0.004, "same", "+0.004"),
    ("same_next_token", None, 0.9, "worse", f"{MINUS}10.0\N{NO-BREAK SPACE}pp"),
    ("tcot_well_formed", None, 0.95, "better", "+95.0\N{NO-BREAK SPACE}pp"),
    ("answer_in_target", None, 0.95, "unknown", NULL),
    ("answer_in_target", 0.5, None, "unknown", NULL),
    ("tokens_per_answer", 80.0, 240.0, "worse", f"{TIMES}3.0"),
    ("seconds_per_answer", 2.0, 1.0, "better", f"{MINUS}50.0{PERCENT}"),
    ("tokens_per_answer", 0.0, 10.0, "worse", "+10.0"),
])
def test_verdicts(key: str, before: float | None, after: float | None, verdict: str, text: str) -> None:
    row = table_of({key: before}, {key: after}).row(key)
    assert row is not None
    assert (row.change.verdict, row.change.text) == (verdict, text)


def test_rows_cover_every_figure_once_and_hide_the_unmeasured() -> None:
    assert sorted(figure.key for figure in FIGURES) == sorted(StageMetrics().to_dict())
    table = table_of({"chrf_en_target": 16.0}, {"chrf_en_target": 20.0})
    assert [row.key for row in table.rows] == ["chrf_en_target"]
    assert before_after(Metrics()).rows == ()


def test_all_stages_are_in_the_table_and_nulls_stay_null() -> None:
    stages = {"original": StageMetrics(chrf_en_target=16.0), "extend": StageMetrics(), "bitext": StageMetrics(chrf_en_target=20.0)}
    metrics = Metrics(stages=stages, settings={"language": "Thai"})
    table = before_after(metrics)
    row = table.rows[0]
    assert table.final == "bitext"
    assert row.stages == {"extend": None, "bitext": 20.0}
    assert row.show(row.stages["extend"]) == NULL
    assert row.label == "chrF, English to Thai"


def test_only_the_original_gives_no_verdict() -> None:
    table = before_after(Metrics(stages={"original": StageMetrics(kl_to_original=0.0, chrf_en_target=16.0)}))
    assert table.final is None
    assert {row.change.verdict for row in table.rows} == {"unknown"}


def test_shares_show_as_percent_and_zero_has_no_sign() -> None:
    table = table_of({"answer_in_target": 0.311, "kl_to_original": -0.00001}, {"answer_in_target": 0.95, "kl_to_original": -0.00001})
    rows = {row.key: row for row in table.rows}
    assert rows["answer_in_target"].show(0.311) == "31.1"
    assert rows["kl_to_original"].show(-0.00001) == "0.000"
    assert rows["kl_to_original"].change.text == "0.000"


@pytest.mark.parametrize("target", ["Spanish", "Haitian Creole [bold]not markup[/]",
                                    "A language with a very long name, longer than any other"])
def test_terminal_table_fits_and_says_what_got_worse(target: str) -> None:
    keys = StageMetrics().to_dict()
    before: dict[str, float | None] = {key: 0.5 for key in keys}
    after: dict[str, float | None] = {key: 0.9 for key in keys}
    before.update(tokens_per_answer=12345.6, seconds_per_answer=1234.56)
    after.update(tokens_per_answer=99999.9, seconds_per_answer=12345.67, answer_in_target=None)
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(render_terminal(table_of(before, after, target=target)))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in output.splitlines()) <= 100
    assert "[bold]" in output or "[bold]" not in target
    kl = next(line for line in output.splitlines() if "KL to the original" in line)
    assert "worse" in kl and "↑" in kl
    assert any(NULL in line and "nswers in" in line for line in output.splitlines())
    assert "…" not in output


def test_terminal_table_of_the_original_alone() -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(render_terminal(before_after(Metrics(stages={"original": StageMetrics(chrf_en_target=16.0)}))))
    assert "16.0" in console.file.getvalue()  # type: ignore[attr-defined]
