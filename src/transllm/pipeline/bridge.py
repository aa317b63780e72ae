"""bridge: recovery conversations become chains: query and answer of the original model, with both translated, each example checked."""

from __future__ import annotations

import json
import re
from typing import Any

from transllm.data.language import is_language
from transllm.files import JsonLines, read_jsonl, write_text
from transllm.pipeline.recover import conversations_to_train_on, count_rejects
from transllm.pipeline.stage import Context, Result
from transllm.pipeline.translators import make_translator
from transllm.recipe.schema import Bridge

# Not the mark of a list: "1." alone is no sentence.
_SENTENCE_END = re.compile(r"(?<=[^\W\d_])[.!?][\"'”’)*]*(?=\s)")


def bridge(context: Context) -> Result:
    """Write ``chains.jsonl`` and ``rejects.jsonl``.

    Work goes in chunks, each on disk (``translated.jsonl``) before the next begins.
    """
    settings = context.recipe.bridge
    rows = [_trimmed(row) if settings.cut_answers == "trim" else row for row in conversations_to_train_on(context.run)]
    early = [_chain(row) | {"reason": reason} for row in rows if (reason := _unusable(row, settings))]
    usable = [row for row in rows if not _unusable(row, settings)][: settings.count]
    done = read_jsonl(context.folder / "translated.jsonl")
    known = {row["query_en"] for row in done}
    waiting = [row for row in usable if row["prompt"] not in known]
    if waiting:
        translator = make_translator(context)
        size = settings.batch_size
        with JsonLines(context.folder / "translated.jsonl") as file:
            for start in range(0, len(waiting), size):
                chunk = waiting[start: start + size]
                label = f"translating {len(done) + start + len(chunk)} of {len(usable)}"
                texts = [text for row in chunk for text in (row["prompt"], row["answer"])]
                made = translator.translate(texts, to="target", progress=context.progress, label=label)
                for row, query, answer in zip(chunk, made[::2], made[1::2], strict=True):
                    file.write(_chain(row) | {"query": query.text, "answer": answer.text, "cut": query.cut or answer.cut})
    checked = early + [row | {"reason": _reason(row, settings, context.recipe.target.code)}
                       for row in read_jsonl(context.folder / "translated.jsonl")]
    for name, wanted in (("chains", True), ("rejects", False)):
        chosen: list[dict[str, Any]] = [row for row in checked if (not row["reason"]) is wanted]
        keys = ("query", "query_en", "answer_en", "answer") + (() if wanted else ("reason",))
        write_text(context.folder / f"{name}.jsonl",
                   "".join(json.dumps({key: row[key] for key in keys}, ensure_ascii=False) + "\n" for row in chosen))
    return Result(counts={"chains": count_rejects(checked)}, metrics={"translator": settings.translator})


def _chain(row: dict[str, Any]) -> dict[str, Any]:
    return {"query": "", "query_en": row["prompt"], "answer_en": row["answer"], "answer": ""}


def _trimmed(row: dict[str, Any]) -> dict[str, Any]:
    """A cut answer without its last, unfinished sentence; as it is if no whole sentence is left."""
    ends = list(_SENTENCE_END.finditer(row["answer"])) if row["finish"] != "stop" else []
    return row | {"answer": row["answer"][: ends[-1].end()].rstrip(), "finish": "stop"} if ends else row


def _unusable(row: dict[str, Any], settings: Bridge) -> str:
    """Why an answer of the original model is not worth translating; empty if it is."""
    if not row["answer"]:
        return "empty answer"
    if row["finish"] != "stop":
        return "answer cut"
    return "answer repeats itself" if _repeats(row["answer"], settings.max_repeats) else ""


def _reason(row: dict[str, Any], settings: Bridge, code: str) -> str:
    """Why a translated example is no good; empty if it is."""
    if row["cut"]:
        return "translation cut"
    for key in ("query", "answer"):
        text, source = row[key], row[f"{key}_en"]
        if not text:
            return f"empty {key}"
        if not settings.min_length_ratio <= len(text) / len(source) <= settings.max_length_ratio:
            return f"length of {key}"
        if _repeats(text, settings.max_repeats):
            return f"{key} repeats itself"
        if settings.check_language and not is_language(text, code):
            return f"language of {key}"
    return ""


def _repeats(text: str, most: int) -> bool:
    """Whether some run of four words stands in the text more than so many times: a model in a loop."""
    words = text.split()
    runs = [tuple(words[place: place + 4]) for place in range(len(words) - 3)]
    return bool(runs) and max(runs.count(run) for run in set(runs)) > most
