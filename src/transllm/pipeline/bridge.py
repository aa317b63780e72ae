"""bridge: recovery conversations become chains: query and answer of the original model, with both translated, each example checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from transllm.data.language import is_language
from transllm.errors import DataError
from transllm.files import JsonLines, read_jsonl, write_text
from transllm.pipeline.encoder import open_encoder
from transllm.pipeline.recover import conversations_to_train_on, count_rejects
from transllm.pipeline.stage import Context, Result
from transllm.pipeline.translators import make_translator
from transllm.recipe.schema import Bridge
from transllm.translation import Translator, combined, round_trip, similarities

# Not the mark of a list: "1." alone is no sentence.
_SENTENCE_END = re.compile(r"(?<=[^\W\d_])[.!?][\"'”’)*]*(?=\s)")
_TEXTS = ("query", "answer")
_WORST = "among the worst by score"
_REMEDIES = (  # by what a reason says
    ("answer cut", "Raise recover.max_new_tokens, or set bridge.cut_answers to 'trim'."),
    ("empty answer", "Look at recover/conversations.jsonl: the original model says nothing."),
    ("structure", "Choose another bridge.translator; what was lost is in bridge/translated.jsonl."),
    ("translation", "The translator finds no end or no words: give bitext more tokens, or choose another bridge.translator."),
    ("language", "Give bitext more tokens, choose another bridge.translator, or set bridge.check_language to false."),
    ("length", "Widen bridge.min_length_ratio and bridge.max_length_ratio."),
    ("repeats", "Raise bridge.max_repeats."),
    (_WORST, "Lower bridge.drop_worst."))


def bridge(context: Context) -> Result:
    """Write ``chains.jsonl`` and ``rejects.jsonl``, each example with its scores.

    Work goes in chunks, each on disk (``translated.jsonl``) before the next begins.

    Raises:
        DataError: no example is left.
    """
    settings = context.recipe.bridge
    rows = [_trimmed(row) if settings.cut_answers == "trim" else row for row in conversations_to_train_on(context.run)]
    early = [_chain(row) | {"reason": reason} for row in rows if (reason := _unusable(row, settings))]
    usable = [row for row in rows if not _unusable(row, settings)][: settings.count]
    _translate(context, usable)
    checked = [row | {"reason": _reason(row, settings, context.recipe.target.code)}
               for row in read_jsonl(context.folder / "translated.jsonl")]
    if settings.drop_worst:
        _score(context, [row for row in checked if not row["reason"]])
    checked = early + checked
    counts = count_rejects(checked)
    if not counts["kept"]:
        raise DataError(_nothing_left(counts["dropped"]))
    for name, wanted in (("chains", True), ("rejects", False)):
        chosen = [row for row in checked if (not row["reason"]) is wanted]
        hidden = {"cut", "lost", "back", *(("reason",) if wanted else ())}
        write_text(context.folder / f"{name}.jsonl", "".join(
            json.dumps({key: value for key, value in row.items() if key not in hidden}, ensure_ascii=False) + "\n" for row in chosen))
    return Result(counts={"chains": counts}, metrics={"translator": settings.translator.name} | _figures(checked, settings))


def _translate(context: Context, usable: Sequence[dict[str, Any]]) -> None:
    """Translate what an earlier sitting left."""
    settings, file = context.recipe.bridge, context.folder / "translated.jsonl"
    done = read_jsonl(file)
    known = {_key(row) for row in done}
    waiting = [row for row in map(_chain, usable) if _key(row) not in known]
    if not waiting:
        return
    with closing(make_translator(context)) as translator, JsonLines(file) as lines:
        for start in range(0, len(waiting), settings.batch_size):
            chunk = waiting[start: start + settings.batch_size]
            label = f"translating {len(done) + start + len(chunk)} of {len(usable)}"
            texts = [row[f"{name}_en"] for row in chunk for name in _TEXTS]
            made = translator.translate(texts, to="target", progress=context.progress, label=label)
            back = _back(context, translator, [one.text for one in made]) if settings.round_trip else []
            for number, row in enumerate(chunk):
                query, answer = made[2 * number: 2 * number + 2]
                lines.write(row | {"query": query.text, "answer": answer.text, "cut": query.cut or answer.cut,
                                   "lost": [*query.lost, *answer.lost]}
                            | ({"back": back[2 * number: 2 * number + 2]} if back else {}))


def _back(context: Context, translator: Translator, texts: Sequence[str]) -> list[str]:
    return [one.text for one in translator.translate(texts, to="english", progress=context.progress, label="translating back")]


def _key(row: Mapping[str, Any]) -> str:
    """What tells examples apart: a prompt can come again after another history."""
    return json.dumps([row.get("system"), row.get("history") or [], row["query_en"], row["answer_en"]], ensure_ascii=False)


def _score(context: Context, rows: Sequence[dict[str, Any]]) -> None:
    """Give each example its scores, and the worst of them a reason. An example is as good as the worse of its two texts."""
    settings = context.recipe.bridge
    context.progress.say(f"scoring {len(rows)} translated examples")
    encoder = open_encoder(context)
    pairs = [(row[f"{name}_en"], row[name]) for row in rows for name in _TEXTS]
    alike = similarities(encoder, [english for english, _ in pairs], [target for _, target in pairs])
    measures = {"similarity": [min(alike[place: place + 2]) for place in range(0, len(alike), 2)]}
    if settings.round_trip:
        back = round_trip([english for english, _ in pairs], [text for row in rows for text in row["back"]])
        measures["round_trip"] = [min(back[place: place + 2]) for place in range(0, len(back), 2)]
    for number, (row, score) in enumerate(zip(rows, combined(*measures.values()), strict=True)):
        row |= {name: round(values[number], 4) for name, values in measures.items()} | {"score": score}
    worst = sorted(range(len(rows)), key=lambda number: float(rows[number]["score"]))
    for number in worst[: round(settings.drop_worst * len(rows))]:
        rows[number]["reason"] = _WORST


def _figures(rows: Sequence[Mapping[str, Any]], settings: Bridge) -> dict[str, Any]:
    """Mean scores of what was kept and of what was dropped for them."""
    found: dict[str, Any] = {"encoder": settings.encoder} if settings.drop_worst else {}
    for name in ("similarity", "round_trip"):
        for label, reason in (("kept", ""), ("dropped", _WORST)):
            values = [row[name] for row in rows if name in row and row["reason"] == reason]
            if values:
                found[f"{name}_{label}"] = round(sum(values) / len(values), 4)
    return found


def _nothing_left(dropped: Mapping[str, int]) -> str:
    if not dropped:
        return "There is no conversation to make a chain of. Raise recover.count, or give more prompts in recover.prompts."
    reason, number = max(dropped.items(), key=lambda item: item[1])
    remedy = next((said for part, said in _REMEDIES if part in reason), "Look at bridge/translated.jsonl.")
    return (f"No example is left after the filters of bridge: '{reason}' dropped {number} of {sum(dropped.values())}, more than any other. "
            f"{remedy}")


def _chain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation as an example whose translations are to come; earlier turns and system prompt stay in English."""
    before = {key: row[key] for key in ("system", "history") if row.get(key)}
    return {"query": "", "query_en": row["prompt"], "answer_en": row["answer"], "answer": "", **before}


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
    if row.get("lost"):
        return "structure lost in translation"
    for key in ("query", "answer"):
        text, source = row[key], row[f"{key}_en"]
        if not text:
            return f"empty translation of {key}"
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
