"""Plots as inline SVG whose colours the page's style sheet decides, so that one drawing serves light, dark and print.

matplotlib draws with four stand-in colours; each becomes a CSS variable in the SVG. Text stays text, in the page's font.
Figures are small and of one width, so that a phone shows them at full size, one below the other. Plots hold fixed English
words only: everything that a recipe or a model may say (any script, any markup) belongs to the template, which escapes it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

_WIDTH = 340
"""CSS pixels; the page scales no plot below this on a phone 380 wide."""
_DPI = 72
"""matplotlib's SVG unit is the point: at 72 a point is a pixel."""

_COLOURS = {"#010203": "var(--plot-ink)", "#040506": "var(--plot-grid)", "#070809": "var(--plot-a)", "#0a0b0c": "var(--plot-b)"}
_INK, _GRID, _A, _B = _COLOURS


def curve_plot(line: Points, points: Points = (), *, name: str, label: str) -> str:
    """Values over training tokens: each log line thin, their running mean bold, held-out points as connected dots.

    Args:
        line: (tokens, value) of the training log.
        points: (tokens, value) measured on held-out text.
        name: unique on the page; prefixes the SVG's ids.
        label: unit of the values, written above the axis.
    """
    figure, axes = _figure(200, left=40, top=24, bottom=38)
    if line:
        tokens, values = zip(*line, strict=True)
        mean = running_mean(values)
        smooth = len(line) >= 20  # fewer points are their own trend
        axes.plot(tokens, values, color=_A, linewidth=1.0 if smooth else 1.8, alpha=0.35 if smooth else 1.0,
                  marker="o" if len(line) == 1 else "", markersize=4.5)
        if smooth:
            axes.plot(tokens, mean, color=_A, linewidth=1.8)
    if points:
        tokens, values = zip(*points, strict=True)
        axes.plot(tokens, values, color=_B, linewidth=1.4, marker="o", markersize=4.5)
    axes.set_xlim(0, 1.02 * max((tokens for tokens, _ in (*line, *points)), default=0) or 1)
    axes.set_xlabel("tokens", color=_INK, fontsize=11, loc="right")
    _dress(axes, label)
    return _svg(figure, name)


def size_plot(line: Points, *, chosen: float, name: str, label: str) -> str:
    """Values over numbers of sub-words, with a dot at the chosen one.

    Args:
        line: (sub-words, value).
        chosen: how many there are now.
        name: unique on the page; prefixes the SVG's ids.
        label: unit of the values, written above the axis.
    """
    figure, axes = _figure(200, left=40, top=24, bottom=38)
    sizes, values = zip(*line, strict=True)
    axes.plot(sizes, values, color=_A, linewidth=1.8)
    at = min(line, key=lambda point: abs(point[0] - chosen))
    axes.plot([at[0]], [at[1]], color=_B, marker="o", markersize=6, linestyle="")
    axes.set_xlim(0, 1.02 * max(sizes) or 1)
    axes.set_ylim(0, 1.05 * max(values) or 1)
    axes.set_xlabel("new sub-words", color=_INK, fontsize=11, loc="right")
    _dress(axes, label)
    return _svg(figure, name)


def bar_plot(before: float, after: float, *, limit: float, name: str, label: str, digits: int = 2) -> str:
    """Two bars, before above after, with their values at the end.

    Args:
        limit: right end of the axis, so that bars of several plots can be compared.
        name: unique on the page; prefixes the SVG's ids.
        label: unit of the values, below the axis.
    """
    figure, axes = _figure(118, left=52, top=2, bottom=24)
    axes.barh([1, 0], [before, after], height=0.62, color=[_INK, _A], alpha=1.0)
    axes.patches[0].set_alpha(0.45)
    for place, value in ((1, before), (0, after)):
        axes.annotate(f"{value:.{digits}f}", (value, place), xytext=(5, 0), textcoords="offset points",
                      va="center", color=_INK, fontsize=12)
    axes.set_yticks([1, 0], ["before", "after"])
    axes.set_xlim(0, limit * 1.18)  # room for the value behind the longest bar
    axes.set_xlabel(label, color=_INK, fontsize=11, loc="left")
    _dress(axes, "")
    axes.grid(False)
    axes.set_xticks([])
    axes.tick_params(axis="y", labelsize=12)
    axes.spines["bottom"].set_visible(False)
    return _svg(figure, name)


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a tenth of the values, centred; the window shrinks at the ends, and a NaN spoils only its own window."""
    half = max(1, len(values) // 20)
    windows = [values[max(0, i - half):i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def short_count(value: float) -> str:
    """12,500 as ``12.5k``, for axes."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def _figure(height: int, *, left: int, top: int, bottom: int) -> tuple[Figure, Axes]:
    """A figure with margins in pixels: fixed ones, so that plots above each other have their axes in one line."""
    from matplotlib.figure import Figure  # slow to import, and only a report needs it

    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI)
    figure.patch.set_visible(False)
    width, depth = _WIDTH - left - 8, height - top - bottom
    return figure, figure.add_axes((left / _WIDTH, bottom / height, width / _WIDTH, depth / height))


def _dress(axes: Axes, label: str) -> None:
    """No box, hair-line grid, few ticks: the data is the darkest thing in the picture."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=11, labelcolor=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    if label:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.annotate(label, (0, 1), xycoords="figure fraction", xytext=(8, -12), textcoords="offset points", color=_INK, fontsize=11)


def _svg(figure: Figure, name: str) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    # The two settings exist only as rcParams; the context puts the caller's own back.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg"):]  # inline: no XML declaration, no doctype
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in _COLOURS.items():
        svg = svg.replace(stand_in, variable)
    # The page's font and line ends take over. (matplotlib writes the font as one property or as two, by version.)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--font)", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
