"""Tokens made visible: in colour on a terminal and in HTML, with signs where there is no colour."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.style import Style
from rich.table import Table
from rich.text import Text

from transllm.cli.console import listing
from transllm.errors import RunError

if TYPE_CHECKING:
    from transllm.recipe import Source
    from transllm.tokenizer import SpanTokenizer

_INKS = ("black on #a8d1ff", "black on #ffd59e", "black on #b9e8b4", "black on #f3bde0", "black on #ffef9f")
_PAPERS = ("#a8d1ff", "#ffd59e", "#b9e8b4", "#f3bde0", "#ffef9f")
_SAMPLES = 3
_SAMPLE_CHARACTERS = 200
_TIMED_CHARACTERS = 200_000


def run_of(where: Path, *, runs: Path) -> Path:
    """The run folder of a recipe; any folder is itself."""
    from transllm.recipe import load_recipe

    return runs / load_recipe(where).name if where.is_file() else where


def tokenizers_of(where: Path, *, runs: Path) -> tuple[SpanTokenizer, Callable[[], list[str]]]:
    """The tokenizers before and after extension, and a function that gives sample texts of the run.

    Args:
        where: a run folder, the folder of an extended model, or a recipe.
        runs: where the recipe's run folder is.

    Raises:
        RunError: the tokenizer was not extended yet.
    """
    run = run_of(where, runs=runs)
    folder = next((place for place in (run / "extend", run) if (place / "original_tokenizer").is_dir()), None)
    if folder is None:
        hint = f"Run: transllm run {where} --until extend" if where.is_file() else "Name a run folder, its extend/ folder, or a recipe."
        raise RunError(f"There is no extended tokenizer in '{run}'. {hint}")
    from transllm.tokenizer import SpanTokenizer

    recipe = next((place / "recipe.yaml" for place in (run, run.parent) if (place / "recipe.yaml").is_file()), None)
    return SpanTokenizer.load(folder), lambda: _samples(recipe)


def _samples(recipe_file: Path | None) -> list[str]:
    """The beginnings of a few documents of the run's data."""
    if recipe_file is None:
        raise RunError("There is no text to cut. Give one: transllm inspect tokens FOLDER 'some text'")
    from transllm.data.sources import read_documents
    from transllm.recipe import load_recipe

    recipe = load_recipe(recipe_file)
    data = recipe.data
    sides: tuple[tuple[Literal["target", "english"], list[Source]], ...] = (("target", data.target), ("english", data.english))
    return [" ".join(document.text.split())[:_SAMPLE_CHARACTERS] for side, sources in sides
            for document in read_documents(sources, side=side, language=recipe.target, folder=recipe.folder, limit=_SAMPLES,
                                           max_dropped=1.0, parallel=data.parallel)]


def piece_line(label: str, tokenizer: Any, text: str, *, colour: bool, new_from: int) -> Text:
    """One text as cut by one tokenizer: neighbours in different colours, new sub-words underlined; without colour ``|`` stands between
    tokens and ``+`` before new ones."""
    from transllm.tokenizer import segment

    pieces = segment(tokenizer, text)
    line = Text(f"{label:>7} {len(pieces):4} ", style="dim")
    for index, (piece, token) in enumerate(pieces):
        new = token >= new_from
        if colour:
            line.append(_visible(piece), style=Style.parse(_INKS[index % len(_INKS)]) + Style(underline=new))
        else:
            line.append(("|" if index else "") + ("+" if new else "") + _visible(piece), style="default")
    return line


def mask_line(pieces: Sequence[tuple[str, bool]], *, colour: bool) -> Text:
    """A training row: trained stretches in green and underlined, or in brackets where there is no colour."""
    line, before = Text(), False
    for piece, trained in [*pieces, ("", False)]:
        if not colour and trained != before:
            line.append("⟦" if trained else "⟧")
        line.append(piece, style="green underline" if colour and trained else "dim" if colour else "")
        before = trained
    return line


def fertility_table(spans: SpanTokenizer, texts: Iterable[str]) -> Table:
    """Tokens of the texts, before and after."""
    from transllm.tokenizer import fertility

    texts = list(texts)
    numbers = ("Tokens", "per word", "per character", "per byte")
    table = listing("", *numbers, title=f"Fertility on {len(texts)} texts", numbers=numbers)
    for label, tokenizer in (("before", spans.original), ("after", spans.extended)):
        figures = fertility(tokenizer, texts)
        table.add_row(label, f"{figures.tokens:,}", f"{figures.tokens_per_word:.3f}", f"{figures.tokens_per_character:.3f}",
                      f"{figures.tokens_per_byte:.3f}")
    return table


def fertility_of_manifest(folder: Path) -> Table | None:
    """What *extend* measured on held-out text, of a stage's or an extended model's folder; None where there is no manifest."""
    from transllm.pipeline.stage import read_manifest

    manifest = read_manifest(folder) or read_manifest(folder / "extend")
    measured = manifest["metrics"].get("fertility") if manifest is not None else None
    if not measured:
        return None
    numbers = ("Tokens", "per word", "per character", "per byte", "fewer")
    table = listing("Held-out text", "", *numbers, title="Fertility", numbers=numbers)
    for name, both in measured.items():
        for when in ("before", "after"):
            figures = both[when]
            fewer = both["before"]["tokens"] / (figures["tokens"] or 1)
            table.add_row(name if when == "before" else "", when, f"{figures['tokens']:,}", f"{figures['tokens_per_word']:.3f}",
                          f"{figures['tokens_per_character']:.3f}", f"{figures['tokens_per_byte']:.3f}",
                          f"{fewer:.2f} times" if when == "after" else "")
    return table


def throughput_line(spans: SpanTokenizer, texts: Sequence[str]) -> str:
    """Characters a second of both tokenizers, measured in turn on the texts, repeated until there is something to measure."""
    from statistics import median

    from transllm.tokenizer import throughput

    repeated = list(texts) * max(1, -(-_TIMED_CHARACTERS // max(1, sum(map(len, texts)))))
    found = throughput(spans.original, spans.extended, repeated)
    low, high = found.spread
    return (f"Throughput, characters a second: {median(found.before):,.0f} before, {median(found.after):,.0f} after "
            f"(ratio {found.ratio:.2f}, quartiles {low:.2f} to {high:.2f} of {len(found.ratios)} rounds in turn)")


def html_page(spans: SpanTokenizer, texts: Sequence[str]) -> str:
    """One self-contained page with all texts, cut before and after."""
    from transllm.tokenizer import segment

    blocks = []
    for text in texts:
        rows = []
        for label, tokenizer in (("before", spans.original), ("after", spans.extended)):
            pieces = segment(tokenizer, text)
            marks = "".join(
                f'<span title="id {token}" style="background:{_PAPERS[index % len(_PAPERS)]}"'
                f'{" class=new" if token >= spans.original_size else ""}>{html.escape(_visible(piece))}</span>'
                for index, (piece, token) in enumerate(pieces))
            rows.append(f"<tr><th>{label}</th><td>{len(pieces)}</td><td>{marks}</td></tr>")
        blocks.append(f"<table>{''.join(rows)}</table>")
    return ("<!doctype html><meta charset=utf-8><title>Tokens before and after</title>"
            "<style>body{font:16px/1.7 system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#111;background:#fff}"
            "table{margin:0 0 1.5rem;border-spacing:.6rem .2rem}th{font-weight:400;text-align:left;color:#666}td,th{vertical-align:top}"
            "span{padding:.1em 0;border-radius:3px;white-space:pre-wrap}.new{border-bottom:2px solid #111}</style>"
            "<h1>Tokens before and after</h1><p>Each colour is a token, the number counts them; new sub-words are underlined.</p>"
            + "".join(blocks) + _fertility_rows(spans, texts) + "\n")


def _fertility_rows(spans: SpanTokenizer, texts: Sequence[str]) -> str:
    """The table of :func:`fertility_table` for the page."""
    from transllm.tokenizer import fertility

    rows = []
    for label, tokenizer in (("before", spans.original), ("after", spans.extended)):
        found = fertility(tokenizer, texts)
        rows.append(f"<tr><th>{label}</th><td>{found.tokens:,}</td><td>{found.tokens_per_word:.3f}</td>"
                    f"<td>{found.tokens_per_character:.3f}</td><td>{found.tokens_per_byte:.3f}</td></tr>")
    return ("<h2>Fertility</h2><table><tr><th></th><th>tokens</th><th>per word</th><th>per character</th><th>per byte</th></tr>"
            f"{''.join(rows)}</table>")


def _visible(piece: str) -> str:
    """Tokens that hold no character of their own (a part of one) and line ends, made visible."""
    return piece.replace("\n", "↵").replace("\t", "→") or "·"
