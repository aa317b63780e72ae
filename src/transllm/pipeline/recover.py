"""recover: the original chat model answers English prompts. Its own words are what teaches the transformed model not to forget.

What it leaves, a row a reply (``conversations.jsonl``: what becomes chains; ``samples.jsonl``: second answers at temperature 1, for
recovery; ``rejects.jsonl``: what a filter dropped, with a ``reason``):

    id        unique and stable: conversation, turn and number of the answer ("0", or "s0" for a sample), with hyphens between
    system    the system prompt, or null
    history   the earlier turns in English, oldest first: [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...], or []
    prompt    what the user says in this turn
    answer    what the original model answers, stripped
    finish    "stop", or "length" where it met ``recover.max_new_tokens``
    tokens    that were generated, with the one that ends the answer
    origin    where the conversation's first prompt came from
    held_out  kept for measuring. Such conversations have one turn and no system prompt
    delicate  whether the first prompt is one of ``recover.delicate``
    refusal   whether the answer begins as refusals do (``data.refusals``): a counter, no judge

A conversation of three turns is three rows; the third has four messages of history. The messages of history are those of its earlier
rows, word for word (with the greedy answers, in ``samples.jsonl`` too).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from transllm.data import Counts
from transllm.data.prompts import PromptFilter
from transllm.data.split import text_key
from transllm.files import read_jsonl, write_text
from transllm.pipeline.answering import Replies, Talk, converse, draw
from transllm.pipeline.engine import engine_of
from transllm.pipeline.prompting import filtered, find_prompts, read_given
from transllm.pipeline.stage import Context, Result


def recover(context: Context) -> Result:
    """Find prompts, let the original answer them, and sort what it said.

    ``candidates.jsonl`` (prompts) and ``replies.jsonl`` grow as they come and are what a stopped run goes on from; the files above are
    written from them at the end. The conversations become chains. Samples are second answers, drawn at temperature 1, for recovery: their
    cross-entropy is, up to a constant, the KL to the original model; that of greedy answers is lowest for a model surer than it.
    """
    settings = context.recipe.recover
    given = read_given(context)
    with closing(engine_of(context)) as engine:
        keep, keep_delicate = PromptFilter(), PromptFilter()
        prompts = [row | {"delicate": False} for row in find_prompts(context, engine, given, keep)]
        # One memory for all: nobody is to ask twice.
        keep_delicate.near = keep.near
        delicate = [{"prompt": prompt, "origin": settings.delicate.origin, "held_out": False, "delicate": True}
                    for prompt in filtered(given.delicate, keep_delicate)] if settings.delicate is not None else []
        turns = PromptFilter(near=keep.near)
        replies = Replies(context, engine)
        talks = [Talk.begin(row, settings, given.system) for row in _in_order([*prompts, *delicate])]
        rows = converse(context, replies, talks, turns)
        samples = draw(context, replies, _chosen(rows, talks, settings.sampled))
    rejects = [row for row in [*rows, *samples] if row["reason"]]
    for name, wanted in (("conversations", _kept(rows)), ("samples", _kept(samples)), ("rejects", rejects)):
        _write(context.folder / f"{name}.jsonl", wanted, reasons=name == "rejects")
    counts = {"prompts": keep.counts, "delicate prompts": keep_delicate.counts, "later turns": turns.counts}
    return Result(
        counts={"conversations": count_rejects(rows), "samples": count_rejects(samples),
                **{name: found.as_dict() for name, found in counts.items() if found.read}},
        tokens=sum(row["tokens"] for row in [*rows, *samples]), sources=given.sources,
        metrics=_told(_kept(rows), _kept(samples)) | {"engine": engine.choice})


def _chosen(rows: Sequence[dict[str, Any]], talks: Sequence[Talk], share: float) -> list[dict[str, Any]]:
    """All turns of a share of the conversations that are not held out, dropped answers too: what the original said instead is no matter."""
    learned = [talk.key for talk in talks if not talk.first["held_out"]]
    drawn = set(learned[: round(share * len(learned))])
    return [row for row in rows if row["id"].split("-")[0] in drawn and row["id"].endswith("-0")]


def _kept(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row["reason"]]


def _told(rows: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures about what is kept."""
    first = [row for row in rows if row["id"].endswith("-0")]
    groups = {"conversations": [row for row in first if not row["delicate"]], "delicate": [row for row in first if row["delicate"]]}
    return {
        "held_out": sum(row["held_out"] for row in rows),
        "cut": {"conversations": sum(row["finish"] != "stop" for row in rows), "samples": sum(row["finish"] != "stop" for row in samples)},
        "answers_by_turn": dict(sorted(Counter(str(1 + len(row["history"]) // 2) for row in first).items())),
        "with_system_prompt": sum(row["system"] is not None for row in first),
        "refusals": {name: {"answers": len(found), "refused": sum(row["refusal"] for row in found)}
                     for name, found in groups.items() if found}}


def _write(path: Path, rows: Iterable[dict[str, Any]], *, reasons: bool) -> None:
    write_text(path, "".join(
        json.dumps({key: value for key, value in row.items() if reasons or key != "reason"}, ensure_ascii=False) + "\n" for row in rows))


def conversations_to_train_on(run: Path) -> list[dict[str, Any]]:
    """All conversations that are not held out, in the order of a hash of what the user says."""
    return _in_order([row for row in read_jsonl(run / "recover" / "conversations.jsonl") if not row["held_out"]])


def recovery_rows(run: Path) -> list[dict[str, Any]]:
    """What recovery learns, best first: the sampled answers, then those that were not drawn a second time. None is empty."""
    samples = read_jsonl(run / "recover" / "samples.jsonl")
    drawn = {_asked(row) for row in samples}
    rest = [row for row in conversations_to_train_on(run) if _asked(row) not in drawn]
    return [row for row in [*_in_order(samples), *rest] if row["answer"]]


def _asked(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row answers: the same words after another history are another question."""
    return (row.get("system") or "", *(turn["content"] for turn in row.get("history", ())), row["prompt"])


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By a hash of the prompt, second answers after all first ones: the first few are a fair choice, and the same one whenever and wherever
    it is made."""
    asked: Counter[tuple[str, ...]] = Counter()
    keys = []
    for row in rows:
        keys.append((asked[_asked(row)], text_key(row["prompt"])))
        asked[_asked(row)] += 1
    return [rows[number] for number in sorted(range(len(rows)), key=lambda number: keys[number])]


def count_rejects(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of rows by their 'reason'; rows without one are kept."""
    counts = Counts()
    for row in rows:
        if row.get("reason"):
            counts.drop(row["reason"])
        else:
            counts.keep()
    return counts.as_dict()
