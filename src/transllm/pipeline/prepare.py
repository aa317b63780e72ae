"""prepare: read all text once, cut it into training, development and held-out parts, and write what each later stage reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transllm.data import Counts
from transllm.data.sources import Side, documents_of_pairs, read_documents, read_pairs
from transllm.data.split import exclude, held_texts, part
from transllm.errors import DataError
from transllm.files import JsonLines, read_jsonl
from transllm.pipeline.stage import Context, Result
from transllm.progress import Task
from transllm.recipe.schema import Source

PARTS = ("train", "development", "held_out")
_TOLD = 1000


def prepare(context: Context) -> Result:
    """Write ``{pairs,target,english}.{train,development,held_out}.jsonl``.

    Held-out parts are collected first, in a pass of their own, so that a training row which repeats a held-out text
    under another key is found and dropped, wherever it stands.
    """
    data, language, folder = context.recipe.data, context.recipe.target, context.recipe.folder
    options: dict[str, Any] = {"language": language, "folder": folder, "cache": context.cache,
                               "min_characters": data.min_characters, "max_dropped": data.max_dropped}
    kept: dict[str, list[Any]] = {}
    dropped: dict[str, Counts] = {}
    sources: list[dict[str, Any]] = []
    with context.progress.task("reading text", 0, "rows") as bar:
        pairs = read_pairs(data.parallel, **options)
        kept["pairs"] = _listed(pairs, bar)
        sources += [{**report.as_dict(), "used_as": "pairs"} for report in pairs.reports]
        sides: tuple[tuple[Side, list[Source]], ...] = (("target", data.target), ("english", data.english))
        for side, own in sides:
            if own:
                documents = read_documents(own, side=side, **options)
                kept[side] = _listed(documents, bar)
                sources += [{**report.as_dict(), "used_as": side} for report in documents.reports]
            else:
                dropped[side] = Counts()
                kept[side] = list(documents_of_pairs(kept["pairs"], side=side, counts=dropped[side]))
    held = held_texts(row for rows in kept.values() for row in rows
                      if part(row.key, held_out=data.held_out, development=0.0) == "held_out")
    counts = {name: _write(rows, held, context, name) for name, rows in kept.items()}
    for name, extra in dropped.items():
        counts[name][0].dropped.update(extra.dropped)
    metrics = {f"{name}_{key}": value for name, (_, sizes) in counts.items() for key, value in sizes.items()}
    _check(metrics)
    return Result(counts={name: count.as_dict() for name, (count, _) in counts.items()}, metrics=metrics, sources=sources)


def _listed(rows: Iterable[Any], bar: Task) -> list[Any]:
    """All rows, with a word about them now and then: how many there will be is known at the end."""
    kept: list[Any] = []
    for row in rows:
        kept.append(row)
        if len(kept) % _TOLD == 0:
            bar.advance(_TOLD)
    bar.advance(len(kept) % _TOLD)
    return kept


def read_part(run: Path, name: str, which: str) -> list[dict[str, Any]]:
    """Rows of one part: pairs (english, target, key, source) or documents (text, key, source)."""
    return read_jsonl(run / "prepare" / f"{name}.{which}.jsonl")


def sample_part(run: Path, name: str, which: str, *, characters: int) -> list[str]:
    """Texts of one part of the documents, up to so many characters, spread evenly over the part: sources stand one behind the other.

    The part is read line by line, and held only as far as it is taken.
    """
    path = run / "prepare" / f"{name}.{which}.jsonl"
    with path.open(encoding="utf-8") as file:
        share = min(1.0, characters / max(1, sum(len(line) for line in file)))
    taken: list[str] = []
    seen = held = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            seen += len(line)
            if held < share * seen and held < characters:
                text: str = json.loads(line)["text"]
                taken.append(text[:characters - held])
                held += len(taken[-1])
    return taken


def _write(rows: Iterable[Any], held: set[int], context: Context, name: str) -> tuple[Counts, dict[str, int]]:
    data = context.recipe.data
    counts, sizes = Counts(), dict.fromkeys(PARTS, 0)
    for which in PARTS:
        (context.folder / f"{name}.{which}.jsonl").unlink(missing_ok=True)  # of a sitting that was killed
    with ExitStack() as stack:
        files = {which: stack.enter_context(JsonLines(context.folder / f"{name}.{which}.jsonl")) for which in PARTS}
        for row in rows:
            which = part(row.key, held_out=data.held_out, development=data.development)
            if which != "held_out" and not list(exclude([row], held, counts=counts)):
                continue
            counts.keep()
            sizes[which] += 1
            files[which].write(asdict(row))
    return counts, sizes


def _check(metrics: dict[str, int]) -> None:
    for name in ("target", "english"):
        if not metrics[f"{name}_train"] or not metrics[f"{name}_held_out"]:
            raise DataError(f"The cut leaves {metrics[f'{name}_train']} training and {metrics[f'{name}_held_out']} held-out documents of "
                            f"'{name}' text. Give more text, or raise data.held_out.")
