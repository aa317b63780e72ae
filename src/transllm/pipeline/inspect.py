"""Show what a training stage really learns from: its encoded rows, token by token, with the loss mask; and what *bridge* rejected."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transllm.errors import RunError
from transllm.files import read_jsonl
from transllm.pipeline.mixture import KINDS, mixture
from transllm.pipeline.stage import Context
from transllm.pipeline.training_stages import row_folder
from transllm.progress import Silent
from transllm.recipe import load_recipe
from transllm.tcot import parse
from transllm.tokenizer import SpanTokenizer
from transllm.training import IGNORE, EncodedRow, Rows
from transllm.training.guards import NOT_A_NUMBER, SPIKE

TRAINING = ("pretrain", "bitext", "finetune")


def inspect_rows(run: Path, stage: str, rows: int = 3) -> list[list[tuple[str, bool]]]:
    """The first rows of a stage: for each token its text and whether it is trained.

    Args:
        run: a run folder.
        stage: "pretrain", "bitext" or "finetune".

    Raises:
        RunError: the stage trains nothing, or has not built its rows yet.
    """
    _training(stage)
    if not Rows.are_in(row_folder(run, stage)):
        raise RunError(f"The stage '{stage}' of '{run}' has no rows yet. Run it first: transllm run RECIPE --until {stage}")
    spans = SpanTokenizer.load(run / "extend")
    encoded = Rows.open(row_folder(run, stage))
    return [_pieces(spans, encoded.row(number)) for number in range(min(rows, len(encoded)))]


@dataclass(frozen=True, slots=True)
class Example:
    """One example of *finetune*, or one that *bridge* rejected.

    Attributes:
        kind: "chain", "recovery", "translation" or "direct"; of a reject its reason.
        parts: names and texts of what it consists of.
        scores: of *bridge*, by name; empty where it gave none.
        pieces: the encoded row, as ``inspect_rows`` gives it; empty for a reject, which is no row.
    """

    kind: str
    parts: dict[str, str]
    scores: dict[str, float]
    pieces: list[tuple[str, bool]]


def inspect_tcot(run: Path, *, kind: str | None = None, rejects: bool = False, count: int = 2) -> list[Example]:
    """The first examples of each kind that *finetune* learns from what *bridge* made, or the first rejects of each reason.

    Args:
        run: a run folder in which *bridge* is done.
        kind: only this kind; for rejects, only reasons that hold this word.
        rejects: what was rejected, not what is learned.
        count: examples of each kind, or of each reason.

    Raises:
        RunError: *bridge* is not done, or there is no such kind.
    """
    if not (run / "bridge" / "chains.jsonl").is_file():
        raise RunError(f"The stage 'bridge' of '{run}' is not done. Run it first: transllm run RECIPE --until bridge")
    if rejects:
        return _rejects(read_jsonl(run / "bridge" / "rejects.jsonl"), kind or "", count)
    if kind is not None and kind not in KINDS:
        raise RunError(f"There is no kind '{kind}'. Choose one of {', '.join(KINDS)}, or look at what was rejected with --rejects.")
    context = Context(load_recipe(run / "recipe.yaml"), run, run / "finetune", Silent())
    chains = read_jsonl(run / "bridge" / "chains.jsonl")
    spans, stop_ids = context.spans, context.renderer.stop_ids
    found = []
    for name in KINDS if kind is None else (kind,):
        for number, row in enumerate(mixed.row for mixed in islice(mixture(context, (name,)), count)):
            start = row.trained.index(True)
            said = parse(row.ids[start:], markers=spans.markers, stop_ids=stop_ids)
            texts = {part: spans.decode(getattr(said, part)).strip() for part in ("query_en", "answer_en", "answer")}
            # Of other kinds than chains the parser names the one text twice.
            parts = {key: text for key, text in texts.items() if text and (name == "chain" or key == "answer")}
            scores = _scores(chains[number]) if name == "chain" else {}
            found.append(Example(name, {"prompt": str(spans.extended.decode(list(row.ids[:start])))} | parts, scores,
                                 _pieces(spans, row)))
    return found


def _rejects(rows: Sequence[dict[str, Any]], word: str, count: int) -> list[Example]:
    reasons = Counter(row["reason"] for row in rows if word in row["reason"])
    return [Example(reason, {key: row[key] for key in ("query", "query_en", "answer_en", "answer") if row[key]}, _scores(row), [])
            for reason, _ in reasons.most_common() for row in [row for row in rows if row["reason"] == reason][:count]]


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: row[name] for name in ("score", "similarity", "round_trip") if name in row}


def inspect_failed(run: Path, stage: str) -> tuple[dict[str, Any], list[tuple[str, list[tuple[str, bool]]]]]:
    """The step at which a guard stopped training, as it saved it.

    Returns:
        what the guard noted beside the rows, and for each row its name ("bin 1, row 17") and its pieces, as ``inspect_rows`` gives them.

    Raises:
        RunError: no guard stopped the stage.
    """
    _training(stage)
    saved = [run / stage / name for name in (NOT_A_NUMBER, SPIKE) if (run / stage / name).exists()]
    if not saved:
        raise RunError(f"No step of the stage '{stage}' of '{run}' was stopped by a guard. Leave out --failed to see its rows.")
    noted = json.loads(max(saved, key=lambda file: file.stat().st_mtime).read_text(encoding="utf-8"))
    spans = SpanTokenizer.load(run / "extend")
    shown = []
    for number, packed in enumerate(noted.pop("bins"), 1):
        start = 0
        for row, length in zip(packed["rows"], packed["lengths"], strict=True):
            span = slice(start, start + length)
            # A label stands where the token before the learned one is.
            trained = [False, *(label != IGNORE for label in packed["labels"][span])][:length]
            shown.append((f"bin {number}, row {row}", _pieces(spans, EncodedRow(packed["ids"][span], trained, 0))))
            start += length
    return noted, shown


def _training(stage: str) -> None:
    if stage not in TRAINING:
        raise RunError(f"The stage '{stage}' trains nothing. Choose one of {', '.join(TRAINING)}.")


def _pieces(spans: SpanTokenizer, row: EncodedRow) -> list[tuple[str, bool]]:
    """For each token its text and whether it is trained."""
    special = set(spans.extended.all_special_ids)
    return [(str(spans.extended.convert_ids_to_tokens(token) if token in special else spans.extended.decode([token])), trained)
            for token, trained in zip(row.ids, row.trained, strict=True)]
