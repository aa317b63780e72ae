"""``transllm check``: all problems of a recipe, or what it will do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from transllm.cli.console import count, listing, out
from transllm.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transllm.data import Pair, SourceReport
    from transllm.data.sources import Reading
    from transllm.recipe import Recipe, Source

SAMPLE = 200
"""Rows of each source that ``--data`` reads."""

Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE",
                                                     help="Replace a value: finetune.tokens=1000. May be repeated.")]


def check(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe.")],
    overrides: Overrides = None,
    data: Annotated[bool, typer.Option("--data", help="Also read the first rows of each source (fetches what is not there).")] = False,
) -> None:
    """Report all problems of a recipe at once, or say what it will do."""
    from transllm.recipe import load_recipe, missing_here, notices

    recipe = load_recipe(recipe_file, overrides=overrides or ())
    refuse_problems(recipe, recipe_file, more=missing_here(recipe))
    console = out()
    console.print(_summary(recipe))
    for notice in notices(recipe):
        console.print(f"Note: {notice}", markup=False)
    if data:
        problems = _read_samples(recipe)
        if problems:
            raise RecipeError(problems, where=str(recipe_file))
    console.print(f"{recipe_file} is in order. Size it: transllm plan {recipe_file}   Run it: transllm run {recipe_file}", markup=False)


def refuse_problems(recipe: Recipe, path: Path, *, more: Sequence[str] = ()) -> None:
    """Raise a ``RecipeError`` with everything that ``check_recipe`` finds, and more."""
    from transllm.recipe import check_recipe

    if problems := [*check_recipe(recipe), *more]:
        raise RecipeError(problems, where=str(path))


def _summary(recipe: Recipe) -> Table:
    """What each stage will do, a line each."""
    data, target = recipe.data, recipe.target
    table = listing("Stage", "What it will do",
                    title=f"{recipe.name}: {recipe.model.source} to {target.name} ({target.native}), marker {target.marker}")
    table.add_row("data", f"sources: {len(data.parallel)} of pairs, {len(data.target)} of {target.name}, {len(data.english)} of English; "
                  f"{data.held_out:.1%} held out, {data.development:.1%} for development")
    table.add_row("extend", f"up to {recipe.extend.at_most:,} new sub-words" if recipe.extend.vocab_size else "markers only")
    for name in ("pretrain", "bitext", "finetune"):
        stage = getattr(recipe, name)
        what = (f"{count(stage.tokens)} tokens in {-(-stage.tokens // stage.batch_tokens):,} steps, learning rate {stage.learning_rate:g}"
                if stage.tokens else "skipped")
        if name == "finetune":
            prompts = ", ".join(prompt if isinstance(prompt, str) else prompt.origin for prompt in recipe.recover.prompts)
            turns = f", {recipe.recover.multi_turn:.0%} of up to {recipe.recover.most_turns} turns" if recipe.recover.multi_turn else ""
            table.add_row("recover", f"{recipe.recover.count:,} conversations with the original model{turns}; prompts: {prompts}")
            table.add_row("bridge", f"up to {recipe.bridge.count:,} chains, translator '{recipe.bridge.translator.name}'")
        table.add_row(name, what)
    table.add_row("trained", _trained(recipe))
    table.add_row("evaluate", f"{recipe.evaluate.sentences} sentences each way, {recipe.evaluate.query_count} queries, "
                  f"{recipe.evaluate.documents} documents a language")
    return table


def _trained(recipe: Recipe) -> str:
    training, lora = recipe.training, recipe.training.lora
    if training.train == "full":
        return "all weights"
    rows = f"{training.embeddings} embedding rows"
    if training.train == "rows":
        return f"{rows} only"
    name = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}[lora.variant]
    frozen = ", on weights of 4 bits" if training.quantize != "none" else ""
    return f"{name} r={lora.r}, alpha={lora.alpha:g}{frozen}, and {rows}"


def _read_samples(recipe: Recipe) -> list[str]:
    """Read the first rows of each source; print what became of them, and return the problems."""
    from transllm.data.sources import read_documents
    from transllm.recipe import sources_of

    problems: list[str] = []
    table = listing("Source", "Origin", "Rows", "Kept", "Dropped", "First", title=f"The first rows of each source ({SAMPLE} kept at most)")
    for where, source in sources_of(recipe):
        try:
            pairs = _pairs(recipe, where, source)
            if pairs is not None:
                first = [f"{pair.english} | {pair.target}" for pair in pairs]
                reports = pairs.reports
            else:
                english = where.startswith(("data.english", "recover."))
                documents = read_documents([source], side="english" if english else "target", language=recipe.target,
                                           folder=recipe.folder, limit=SAMPLE, max_dropped=1.0)
                first = [document.text for document in documents]
                reports = documents.reports
        except DataError as error:
            problems.append(f"{where}: {error}")
            continue
        if not first and not source.optional:
            problems.append(f"{where}: none of the first rows of {source.origin} can be used. {_why(reports)}")
        _add_row(table, where, source, reports, first)
    if table.row_count:
        out().print(table)
    return problems


def _pairs(recipe: Recipe, where: str, source: Source) -> Reading[Pair] | None:
    """The first rows of a source that gives pairs; None for one of documents."""
    from transllm.data.sources import read_pairs, read_words

    if where.split("[")[0].endswith(".lexicon"):
        return read_words([source], language=recipe.target, folder=recipe.folder, limit=SAMPLE)
    if where.startswith(("data.parallel", "evaluate.test_pairs")):
        # Short test pairs are not dropped: evaluate uses them all.
        shortest = recipe.data.min_characters if where.startswith("data.") else 2
        return read_pairs([source], language=recipe.target, folder=recipe.folder, limit=SAMPLE, min_characters=shortest, max_dropped=1.0)
    return None


def _add_row(table: Table, where: str, source: Source, reports: list[SourceReport], first: list[str]) -> None:
    missing = next((report.missing for report in reports if report.missing), None)
    sample = " ".join(first[0].split())[:60] if first else missing or ""
    numbers = (str(sum(getattr(report.counts, key) for report in reports)) for key in ("read", "kept"))
    table.add_row(escape(where), escape(source.origin), *numbers, _why(reports), escape(sample))


def _why(reports: list[SourceReport]) -> str:
    return ", ".join(f"{number} {reason}" for report in reports for reason, number in report.counts.dropped.items())
