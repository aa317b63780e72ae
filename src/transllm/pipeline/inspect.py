"""Show what a training stage really learns from: its encoded rows, token by token, with the loss mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transllm.errors import RunError
from transllm.pipeline.training_stages import row_folder
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
    if not (row_folder(run, stage) / "rows.json").exists():
        raise RunError(f"The stage '{stage}' of '{run}' has no rows yet. Run it first: transllm run RECIPE --until {stage}")
    spans = SpanTokenizer.load(run / "extend")
    encoded = Rows.open(row_folder(run, stage))
    return [_pieces(spans, encoded.row(number)) for number in range(min(rows, len(encoded)))]


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
