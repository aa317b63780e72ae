"""The SVG of a plot: colours left to the page, text as text, nothing global touched."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import matplotlib

from transllm.report.plots import bar_plot, curve_plot, running_mean, short_count

LINE = [(1000 * i, 4.0 / i) for i in range(1, 61)]


def test_colours_are_the_pages_and_text_is_text() -> None:
    settings = dict(matplotlib.rcParams)
    svg = curve_plot(LINE, [(20_000, 1.0), (60_000, 0.8)], name="pretrain-bits", label="bits per byte")
    assert dict(matplotlib.rcParams) == settings
    ET.fromstring(svg)
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"bits per byte", "tokens", "20k"} <= set(words)
    for variable in ("--plot-a", "--plot-b", "--plot-ink", "--plot-grid", "--font"):
        assert f"var({variable})" in svg
    assert not re.search(r"#(?!pretrain-bits)[0-9a-f]{6}", svg.replace("#ffffff", ""))


def test_ids_are_the_plots_own_and_references_meet_them() -> None:
    svg = curve_plot(LINE, [(1000, 1.0)], name="one", label="x")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids and all(name.startswith("one-") for name in ids) and len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(ids)


def test_one_point_is_visible_and_a_nan_leaves_a_gap() -> None:
    assert "<use" in curve_plot([(10, 2.0)], name="n", label="x").split("axis")[-1]
    ET.fromstring(curve_plot([(i, math.nan if i == 5 else 1.0) for i in range(30)], name="n", label="x"))
    ET.fromstring(curve_plot([], name="n", label="x"))


def test_bars_carry_their_values() -> None:
    svg = bar_plot(2.41, 1.52, limit=2.41, name="bars", label="tokens per word")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"before", "after", "2.41", "1.52", "tokens per word"} <= set(words)


def test_running_mean_keeps_length_and_level() -> None:
    assert running_mean([2.0] * 50) == [2.0] * 50
    smooth = running_mean([0.0, 1.0] * 50)
    assert len(smooth) == 100 and all(0.4 < value < 0.6 for value in smooth[10:-10])


def test_short_counts() -> None:
    assert [short_count(value) for value in (0, 500, 12_500, 2_000_000, 1.5e9)] == ["0", "500", "12.5k", "2M", "1.5B"]
