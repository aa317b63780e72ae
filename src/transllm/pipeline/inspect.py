"""Show what a training stage really learns from: its encoded rows, token by token, with the loss mask."""

from __future__ import annotations

from pathlib import Path

from transllm.errors import RunError
from transllm.pipeline.training_stages import row_folder
from transllm.tokenizer import SpanTokenizer
from transllm.training import Rows

TRAINING = ("pretrain", "bitext", "finetune")


def inspect_rows(run: Path, stage: str, rows: int = 3) -> list[list[tuple[str, bool]]]:
    """The first rows of a stage: for each token its text and whether it is trained.

    Args:
        run: a run folder.
        stage: "pretrain", "bitext" or "finetune".

    Raises:
        RunError: the stage trains nothing, or has not built its rows yet.
    """
    if stage not in TRAINING:
        raise RunError(f"The stage '{stage}' trains nothing. Choose one of {', '.join(TRAINING)}.")
    if not (row_folder(run, stage) / "rows.json").exists():
        raise RunError(f"The stage '{stage}' of '{run}' has no rows yet. Run it first: transllm run RECIPE --until {stage}")
    spans = SpanTokenizer.load(run / "extend")
    encoded = Rows.open(row_folder(run, stage))
    special = set(spans.extended.all_special_ids)
    shown = []
    for number in range(min(rows, len(encoded))):
        row = encoded.row(number)
        pieces = []
        for token, trained in zip(row.ids, row.trained, strict=True):
            text = str(spans.extended.convert_ids_to_tokens(token) if token in special else spans.extended.decode([token]))
            pieces.append((text, trained))
        shown.append(pieces)
    return shown
