"""The before/after table: one neutral structure that the terminal and the report both draw.

Each row compares the original model with the last measured one. A change is *better* or *worse* only beyond the tolerance of
its row; the tolerances are part of the table, so that the reader can disagree. Losses are found by the same rule as gains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from transllm.evaluation.metrics import SHARES, Metrics

if TYPE_CHECKING:
    import rich.table

Verdict = Literal["better", "same", "worse", "unknown"]
Direction = Literal["higher", "lower"]

PERCENT = "\N{NO-BREAK SPACE}%"
"""A percent sign that stays with its number."""

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
"""Before a factor, e.g. three times as many."""

NULL = "\N{EN DASH}"
"""What stands for a figure that is null."""


@dataclass(frozen=True, slots=True)
class Figure:
    """How one figure is named, drawn and judged.

    Attributes:
        key: field of ``StageMetrics``.
        label: ``{target}`` stands for the language.
        better: which way is good.
        digits: digits after the point (of percent, for a share).
        compare: ``relative`` changes are percentages of the original, ``absolute`` ones are differences in the figure's unit.
        tolerance: a change up to this counts as the same; in the unit of ``compare`` (0.05 relative is 5 %).
        by_definition: the original's value where it needs no measurement.
    """

    key: str
    group: str
    label: str
    unit: str
    better: Direction
    digits: int
    compare: Literal["relative", "absolute"]
    tolerance: float
    by_definition: float | None = None


FIGURES = (
    Figure("bits_per_byte_target", "{target} text", "{target} bits per byte", "bits/byte", "lower", 3, "relative", 0.005),
    Figure("chrf_en_target", "Translation", "chrF, English to {target}", "points", "higher", 1, "absolute", 0.5),
    Figure("chrf_target_en", "Translation", "chrF, {target} to English", "points", "higher", 1, "absolute", 0.5),
    Figure("chrfpp_en_target", "Translation", "chrF++, English to {target}", "points", "higher", 1, "absolute", 0.5),
    Figure("chrfpp_target_en", "Translation", "chrF++, {target} to English", "points", "higher", 1, "absolute", 0.5),
    Figure("bleu_en_target", "Translation", "BLEU, English to {target}", "points", "higher", 1, "absolute", 0.5),
    Figure("bleu_target_en", "Translation", "BLEU, {target} to English", "points", "higher", 1, "absolute", 0.5),
    Figure("tcot_well_formed", "{target} chat", "chains well-formed unguided", "share", "higher", 1, "absolute", 0.01, 0.0),
    Figure("answer_in_target", "{target} chat", "answers in {target}", "share", "higher", 1, "absolute", 0.01),
    Figure("bits_per_byte_english", "English kept", "English bits per byte", "bits/byte", "lower", 3, "relative", 0.05),
    Figure("kl_to_original", "English kept", "KL to the original", "nats/token", "lower", 3, "absolute", 0.01, 0.0),
    Figure("same_next_token", "English kept", "same next token", "share", "higher", 1, "absolute", 0.01, 1.0),
    Figure("tokens_per_answer", "Cost", "tokens per answer", "tokens", "lower", 1, "relative", 0.05),
    Figure("seconds_per_answer", "Cost", "seconds per answer", "seconds", "lower", 2, "relative", 0.10),
)


@dataclass(frozen=True, slots=True)
class Change:
    """From the original to the last model.

    Attributes:
        difference: in the figure's unit; None where either side is null.
        relative: difference over the original; None where the original is 0 or either side is null.
        text: signed and with its unit, e.g. ``+4.2``, ``+95.0 pp``, ``-23.4 %`` or a factor (with real minus
            and times signs, and no-break spaces).
    """

    difference: float | None
    relative: float | None
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One figure over all stages. ``stages`` excludes the original; nulls stay None."""

    figure: Figure
    label: str
    group: str
    original: float | None
    stages: dict[str, float | None]
    change: Change

    @property
    def key(self) -> str:
        return self.figure.key

    @property
    def unit(self) -> str:
        return "%" if self.figure.key in SHARES else self.figure.unit

    @property
    def suffix(self) -> str:
        """What follows a value of this row in running text, where that is short."""
        return PERCENT if self.figure.key in SHARES else ""

    @property
    def better(self) -> Direction:
        return self.figure.better

    def show(self, value: float | None) -> str:
        """A value of this row as text, without its unit."""
        return show_value(self.figure, value)


@dataclass(frozen=True, slots=True)
class Table:
    """The before/after table.

    Attributes:
        rows: figures that at least one model has, in a fixed order, grouped.
        stages: the measured models after the original, in order.
        final: the stage that ``change`` compares the original with; None where only the original is measured.
    """

    rows: tuple[Row, ...]
    stages: tuple[str, ...]
    final: str | None

    def row(self, key: str) -> Row | None:
        """The row of a figure, if any model has it."""
        return next((row for row in self.rows if row.key == key), None)

    def with_verdict(self, verdict: Verdict) -> tuple[Row, ...]:
        """The rows with this verdict."""
        return tuple(row for row in self.rows if row.change.verdict == verdict)


def before_after(metrics: Metrics, *, target: str | None = None) -> Table:
    """The table of a run.

    Args:
        metrics: what was measured; stages and figures may be missing.
        target: English name of the target language, for labels. None: ``settings["language"]``, or "target".
    """
    name = target or str(metrics.settings.get("language") or "target")
    later = tuple(stage for stage in metrics.stages if stage != "original")
    rows = []
    for figure in FIGURES:
        if all(_value(metrics, stage, figure.key) is None for stage in metrics.stages):
            continue  # nobody measured it
        measured = _value(metrics, "original", figure.key)
        original = figure.by_definition if measured is None else measured
        stages = {stage: _value(metrics, stage, figure.key) for stage in later}
        label, group = (_capitalised(text.replace("{target}", name)) for text in (figure.label, figure.group))
        after = stages[metrics.final] if metrics.final else None
        rows.append(Row(figure, label, group, original, stages, compare(figure, original, after)))
    return Table(rows=tuple(rows), stages=later, final=metrics.final)


def compare(figure: Figure, before: float | None, after: float | None) -> Change:
    """Judge a change by the figure's direction and tolerance. Null on either side gives ``unknown``, never a verdict."""
    if before is None or after is None:
        return Change(None, None, "unknown", NULL)
    difference = after - before
    relative = difference / abs(before) if before else None
    measure = relative if figure.compare == "relative" else difference
    if measure is None:  # relative to nothing: any change is beyond any tolerance
        measure = math.copysign(math.inf, difference) if difference else 0.0
    if abs(measure) <= figure.tolerance + 1e-12:
        verdict: Verdict = "same"
    else:
        verdict = "better" if (measure > 0) == (figure.better == "higher") else "worse"
    return Change(difference, relative, verdict, _change_text(figure, difference, relative))


def show_value(figure: Figure, value: float | None) -> str:
    """A figure as text: shares in percent, nulls as a dash, no sign on a rounded zero."""
    if value is None:
        return NULL
    return _number(value * 100 if figure.key in SHARES else value, figure.digits)


def show_tolerance(figure: Figure) -> str:
    """The tolerance as text, e.g. ``5 %`` or ``0.5``."""
    if figure.compare == "relative":
        return f"{figure.tolerance * 100:g}{PERCENT}"
    return f"{figure.tolerance * 100:g}\N{NO-BREAK SPACE}pp" if figure.key in SHARES else f"{figure.tolerance:g}"


def render_terminal(table: Table) -> rich.table.Table:
    """The table for a terminal, at most 100 columns wide: the original, the last model, the change and what it means.

    Colour is never the only sign: the arrow gives the direction of the number and a word says whether that is good.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, width=None, pad_edge=False)
    drawn.add_column("Figure", max_width=42, overflow="fold")
    drawn.add_column("Unit", style="dim", no_wrap=True)
    drawn.add_column("Original", justify="right", no_wrap=True)
    drawn.add_column(_capitalised(table.final or "after"), justify="right", no_wrap=True)
    drawn.add_column("Change", justify="right", no_wrap=True)
    drawn.add_column("", no_wrap=True)
    styles = {"better": "green", "worse": "bold red", "same": "dim", "unknown": "dim"}
    for index, row in enumerate(table.rows):
        style, verdict = styles[row.change.verdict], row.change.verdict
        after = row.stages[table.final] if table.final else None
        last_of_group = index + 1 == len(table.rows) or table.rows[index + 1].group != row.group
        # Text, not str: a language's name is the user's and may hold rich's own markup.
        change = Text(f"{arrow(row.change)} {row.change.text}".strip(), style)
        drawn.add_row(Text(row.label), row.unit, row.show(row.original), row.show(after), change,
                      Text("" if verdict == "unknown" else verdict, style), end_section=last_of_group)
    return drawn


def arrow(change: Change) -> str:
    """Which way the number went; nothing where it is unknown or did not move."""
    if not change.difference:
        return ""
    return "↑" if change.difference > 0 else "↓"


def _value(metrics: Metrics, stage: str, key: str) -> float | None:
    figures = metrics.stages.get(stage)
    value: float | None = getattr(figures, key) if figures is not None else None
    return value


def _change_text(figure: Figure, difference: float, relative: float | None) -> str:
    if figure.compare == "relative" and relative is not None:
        # From a doubling on, a factor reads better than a percentage.
        return f"{TIMES}{_number(1 + relative, 1)}" if relative >= 1 else _signed(relative * 100, 1) + PERCENT
    if figure.key in SHARES:
        return _signed(difference * 100, figure.digits) + "\N{NO-BREAK SPACE}pp"
    return _signed(difference, figure.digits)


def _signed(value: float, digits: int) -> str:
    text = _number(value, digits)
    return text if text.startswith(MINUS) or float(text.replace(",", "")) == 0 else "+" + text


def _number(value: float, digits: int) -> str:
    rounded = round(value, digits) or 0.0  # or: no "-0.0"
    return f"{rounded:,.{digits}f}".replace("-", MINUS)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith("chrF") else text
