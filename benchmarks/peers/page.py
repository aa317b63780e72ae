"""Results as Markdown, and the place of generated text in a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WANTED = {"pretrain_vs_trl": "at least 2.0", "pretrain_vs_llamafactory": "at least 2.0", "finetune_vs_trl": "at least 2.0",
           "finetune_vs_llamafactory": "at least 2.0", "share_of_floor": "at least 0.70", "memory_vs_trl": "at most 0.70"}
_NONE = "–"  # noqa: RUF001


def results_page(figures: Mapping[str, Any]) -> str:
    """All that was measured, in tables."""
    lines = [f"{figures['date']}, commit {figures['commit']}, {figures['machine']}; {figures['rounds']} rounds, turns of "
             f"{figures['steps_a_turn']} step{'s' if figures['steps_a_turn'] > 1 else ''}{' (--quick)' if figures['quick'] else ''}.", "",
             "| figure | reach | median over rounds | smallest – largest |", "|---|---|---|---|"]  # noqa: RUF001
    for name, wanted in _WANTED.items():
        lines.append(f"| {name} | {wanted} | {_cell(figures.get(name))} | {_cell(figures.get(f'{name}_spread'))} |")
    if figures.get("floor_tflops") is not None:
        lines += ["", f"The floor's products ran at {figures['floor_tflops']} TFLOP/s."]
    for task in ("pretrain", "finetune"):
        if task in figures:
            lines += ["", f"### {task}", "", *_contenders(figures[task])]
    if "lengths" in figures:
        lines += ["", "### Lengths of rows", "", *_lengths(figures["lengths"])]
    if "data" in figures:
        lines += ["", "### 1, 4 and 16 times the data (ours)", "", *_contenders(figures["data"])]
    return "\n".join(lines)


def write_between(page: Path, name: str, text: str) -> None:
    """Put generated text between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        SystemExit: the page has no such place.
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = page.read_text(encoding="utf-8")
    if whole.count(first) != 1 or whole.count(last) != 1:
        raise SystemExit(f"{page} has no place for the {name}: write {first} and {last} into it, each on a line.")
    before, rest = whole.split(first)
    page.write_text(f"{before}{first}\n\n{text}\n\n{last}{rest.split(last)[1]}", encoding="utf-8")


def _lengths(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| tokens a row | tokens/s | smallest – largest | share of the floor | tokens/s besides attention | to the first row's | "  # noqa: RUF001
             "peak GiB | TRL, tokens/s | times as fast as TRL |", "|---|---|---|---|---|---|---|---|---|"]
    for length, seen in found.items():
        trl = seen.get("trl", {}).get("tokens_per_second")
        cells = [seen["tokens_per_second"], seen["spread"], _of(seen, "share_of_floor"), seen["besides_attention"],
                 _of(seen, "besides_attention_vs_first"), seen["peak_gib"], trl, _of(seen, "vs_trl")]
        lines.append(f"| {int(length):,} | " + " | ".join(map(_cell, cells)) + " |")
    return lines


def _of(seen: Mapping[str, Any], name: str) -> str | None:
    """A ratio with its spread."""
    return None if seen.get(name) is None else f"{seen[name]} ({_cell(seen[f'{name}_spread'])})"


def _contenders(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| contender | tokens/s | smallest – largest | labels/s | seconds a step | peak GiB | others took at most | settings |",  # noqa: RUF001
             "|---|---|---|---|---|---|---|---|"]
    for name, seen in found.items():
        cells = [seen[key] for key in ("tokens_per_second", "spread", "labels_per_second", "seconds_per_step", "peak_gib")]
        others = _NONE if seen["others"] is None else f"{seen['others']:.0%} of the machine"
        lines.append(f"| {name} | " + " | ".join(_cell(cell) for cell in cells) + f" | {others} | {seen.get('settings', '')} |")
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return _NONE
    return f"{value[0]} – {value[1]}" if isinstance(value, list) else str(value)  # noqa: RUF001
