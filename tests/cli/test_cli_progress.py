"""Progress on a terminal and off it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from transllm.cli import progress
from transllm.cli.progress import Pace, RichProgress
from transllm.progress import Progress


def drawn(*, terminal: bool) -> tuple[io.StringIO, Progress]:
    stream = io.StringIO()
    return stream, RichProgress(Console(file=stream, force_terminal=terminal, width=160))


def test_plain_lines_have_count_and_unit() -> None:
    stream, shown = drawn(terminal=False)
    shown.stage("pretrain")
    with shown.task("training", 200, "tokens") as task:
        for _ in range(4):
            task.advance(50, "loss 2.1")
    shown.say("done [well]")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("pretrain") and lines[-1] == "  done [well]"
    assert lines[1].startswith("  training: 200/200 tokens") and "loss 2.1" in lines[1] and len(lines) == 3


def test_plain_lines_come_seldom_and_tell_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    stream, shown = drawn(terminal=False)
    with shown.task("training", 1000, "tokens") as task:
        for _ in range(100):
            task.advance(5)
    lines = stream.getvalue().splitlines()
    assert 5 <= len(lines) <= 45 and all("remaining" in line for line in lines[1:-1]) and "tokens/s" in lines[1]


def test_bars_are_drawn_nested_and_end_with_the_last() -> None:
    stream, shown = drawn(terminal=True)
    with shown.task("outer [x]", 2, "models") as outer:
        with shown.task("inner", 0, "rows") as inner:
            inner.advance(3)
        outer.advance(2, "half [way]")
        shown.say("a line")
    with shown.task("again", 1, "rows") as again:
        again.advance(1)
    text = stream.getvalue()
    for words in ("outer [x]", "2/2 models", "inner", "a line", "half [way]", "again"):
        assert words in text, words


def test_a_failing_task_leaves_the_terminal_clean() -> None:
    stream, shown = drawn(terminal=True)
    with pytest.raises(ZeroDivisionError), shown.task("broken", 2, "rows"):
        raise ZeroDivisionError
    with shown.task("next", 1, "rows") as task:
        task.advance(1)
    assert "\x1b[?25h" in stream.getvalue(), "the cursor is shown again"


def test_work_that_was_done_before_a_stop_is_no_speed() -> None:
    pace = Pace(1000.0, start=0.0)
    pace.advance(900, now=0.0)
    assert pace.rate is None and pace.remaining is None
    pace.advance(10, now=1.0)
    pace.advance(10, now=2.0)
    assert pace.rate == pytest.approx(10) and pace.remaining == pytest.approx(8)


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = Pace(10_000.0, start=0.0)
    for second in range(200):
        pace.advance(1 if second < 100 else 5, now=float(second))
    assert pace.rate == pytest.approx(5, rel=0.02)


@pytest.mark.parametrize("before", [0, 10])
def test_the_first_answer_of_a_batch_is_no_pace(before: int) -> None:
    """It comes after half a minute, the others soon after it: four hours were said to remain."""
    pace = Pace(477.0, start=0.0)
    pace.advance(before, now=0.0)
    pace.advance(1, now=32.0)
    assert pace.rate is None and pace.remaining is None
    for moment in range(1, 21):
        pace.advance(5, now=32.0 + moment / 4)
    assert pace.remaining is not None and pace.remaining < 140


def test_many_small_steps_take_no_memory() -> None:
    pace = Pace(1e6, start=0.0)
    for step in range(100_000):
        pace.advance(1, now=step / 1000)
    assert len(pace._points) < 700 and pace.rate == pytest.approx(1000, rel=0.01)
