"""Progress of long work: bars on a terminal, a line now and then where nobody looks at bars."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

from transllm.cli.console import count, duration, err

PLAIN_SECONDS = 10.0
"""Between two lines of one task, where there is no terminal."""

_MOMENT = 0.2  # seconds of which the last point is kept


@dataclass(slots=True)
class Pace:
    """How fast a task goes, from its last minute: work done before a stop arrives at once and must not count as speed.

    Nor must the first answer of a batch, which comes half a minute before its others: a pace is known when two later seconds saw progress.
    """

    total: float
    window: float = 60.0
    done: float = 0.0
    start: float = field(default_factory=time.monotonic)
    _points: deque[tuple[float, float]] = field(default_factory=deque)

    def advance(self, n: float, *, now: float | None = None) -> None:
        """``n`` more units are done."""
        now = time.monotonic() if now is None else now
        self.done += n
        if not n and not self._points:
            return  # the task begins
        if len(self._points) > 1 and now - self._points[-2][0] < _MOMENT:
            self._points.pop()
        self._points.append((now, self.done))
        while len(self._points) > 2 and self._points[0][0] < now - self.window:
            self._points.popleft()

    @property
    def rate(self) -> float | None:
        """Units a second; None before it can be known."""
        if len({int(when) for when, _ in self._points}) < 3:
            return None
        (start, before), (end, after) = self._points[0], self._points[-1]
        return (after - before) / (end - start) if end > start and after > before else None

    @property
    def remaining(self) -> float | None:
        """Seconds until the end; None before it can be known."""
        rate = self.rate
        return max(0.0, self.total - self.done) / rate if rate and self.total else None


class RichProgress:
    """Progress for the command line (the protocol ``transllm.progress.Progress``).

    Args:
        console: where to draw; None is the standard error.
        plain: lines, not bars; None: wherever the console is no terminal.
    """

    def __init__(self, console: Console | None = None, *, plain: bool | None = None) -> None:
        self._console = console or err()
        self._plain = not self._console.is_terminal if plain is None else plain
        self._bars: Bars | None = None
        self._open = 0
        self._start = time.monotonic()

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._console.print(Text(f"{name}  ", style="bold").append(f"(after {duration(time.monotonic() - self._start)})", style="dim"))

    def say(self, text: str) -> None:
        """A line of text; over the bars where there are any."""
        self._console.print(Text(f"  {text}"))

    @contextlib.contextmanager
    def task(self, label: str, total: float, unit: str) -> Iterator[_PlainTask | _BarTask]:
        """A long step with a known end. Tasks may be nested; their bars share the screen."""
        if self._plain:
            plain = _PlainTask(self._console, label, total, unit)
            yield plain
            plain.end()
            return
        if self._bars is None:
            self._bars = _bars(self._console)
            self._bars.start()
        bars = self._bars
        self._open += 1
        pace = Pace(total)
        bar = bars.add_task(label, total=total or None, unit=unit, note="", pace=pace)
        try:
            yield _BarTask(bars, bar, pace)
        finally:
            self._open -= 1
            if self._open == 0:
                bars.stop()
                self._bars = None


class _BarTask:
    """A task drawn as a bar."""

    def __init__(self, bars: Bars, bar: TaskID, pace: Pace) -> None:
        self._bars, self._bar, self._pace = bars, bar, pace

    def advance(self, n: float, note: str = "") -> None:
        """``n`` more units are done; ``note`` stands beside the bar."""
        self._pace.advance(n)
        self._bars.update(self._bar, advance=n)
        if note:
            self._bars.update(self._bar, note=note)


class _PlainTask:
    """A task told in lines: one when it begins, one every ten seconds or so, one at its end."""

    def __init__(self, console: Console, label: str, total: float, unit: str) -> None:
        self._console, self._label, self._unit, self._note = console, label, unit, ""
        self._pace = Pace(total)
        self._told = time.monotonic()

    def advance(self, n: float, note: str = "") -> None:
        """``n`` more units are done."""
        self._pace.advance(n)
        self._note = note or self._note
        if time.monotonic() - self._told >= PLAIN_SECONDS:
            self._told = time.monotonic()
            self._print(f", {duration(remaining)} remaining" if (remaining := self._pace.remaining) is not None else "")

    def end(self) -> None:
        """The task is over."""
        self._print(f", took {duration(time.monotonic() - self._pace.start)}")

    def _print(self, tail: str) -> None:
        pace = self._pace
        of = f"/{count(pace.total)}" if pace.total else ""
        rate = f", {_rate(pace, self._unit)}" if pace.rate else ""
        note = f", {self._note}" if self._note else ""
        self._console.print(Text(f"  {self._label}: {count(pace.done)}{of} {self._unit}{rate}{tail}{note}"))


def _rate(pace: Pace, unit: str) -> str:
    rate = pace.rate
    if rate is None:
        return ""
    return f"{count(rate) if rate >= 10 else f'{rate:.2g}'} {unit}/s"


class _Done(ProgressColumn):
    def render(self, task: Bar) -> Text:
        of = f"/{count(task.total)}" if task.total else ""
        return Text(f"{count(task.completed)}{of} {task.fields['unit']}")


class _Speed(ProgressColumn):
    max_refresh = 1.0

    def render(self, task: Bar) -> Text:
        return Text(_rate(task.fields["pace"], task.fields["unit"]), style="dim")


class _Remaining(ProgressColumn):
    max_refresh = 1.0

    def render(self, task: Bar) -> Text:
        remaining = task.fields["pace"].remaining
        return Text(f"{duration(remaining)} left" if remaining is not None and not task.finished else "", style="cyan")


def _bars(console: Console) -> Bars:
    return Bars(SpinnerColumn(finished_text="✓"), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), _Done(),
                _Speed(), TimeElapsedColumn(), _Remaining(), TextColumn("{task.fields[note]}", style="dim", markup=False),
                console=console, refresh_per_second=4)
