"""The ways to answer side by side: what each says, in which language, at what cost.

    python benchmarks/ways.py runs/demo-es [--queries benchmarks/queries-es.txt] [--count 40] [--beams 1]

Each query is asked in a conversation of its own, one at a time, as in ``transllm chat``: ``merged`` (one chain), ``switched`` (the original
chat model between two translations) and, where the run has learned it, ``direct``. Ways take turns query by query, so what else happens on
the machine meets all alike. ``similar`` is the mean cosine of a multilingual sentence encoder (extra ``encoder``) between two texts that
should mean the same: the query and its English, the answer in English and what is shown. Prints the beginnings of the first answers, a
table, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np

from transllm import Chat, Reply, RunError, load_chat, load_recipe
from transllm.chat import Mode
from transllm.data.language import is_language
from transllm.translation import UniversalEncoder

WAYS: tuple[Mode, ...] = ("merged", "switched", "direct")


def main() -> None:
    """Ask, measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--queries", type=Path, default=Path(__file__).with_name("queries-es.txt"))
    arguments.add_argument("--count", type=int, default=40)
    arguments.add_argument("--beams", type=int, default=1)
    arguments.add_argument("--shown", type=int, default=5)
    given = arguments.parse_args()
    code = load_recipe(given.run / "recipe.yaml").target.code
    queries = [line for line in given.queries.read_text(encoding="utf-8").splitlines() if line.strip()][: given.count]
    chats = opened(given.run, beams=given.beams)
    replies: dict[str, list[Reply]] = {way: [] for way in chats}
    for number, query in enumerate(queries):
        for way, chat in chats.items():
            chat.reset()
            reply = chat.send(query)
            replies[way].append(reply)
            if number < given.shown:
                said = " | ".join(shorten(text, 200) for text in (reply.query_en, reply.answer_en, reply.answer))
                print(f"{query}\n  {way}: {said}", flush=True)
    encoder = UniversalEncoder()
    figures = {way: measured(found, code, encoder) for way, found in replies.items()}
    print("\n".join(table(figures)))
    print(json.dumps({"queries": len(queries), "beams": given.beams, **figures}))


def opened(run: Path, *, beams: int) -> dict[str, Chat]:
    """A chat for each way that this run can answer in."""
    chats: dict[str, Chat] = {}
    for way in WAYS:
        try:
            chats[way] = load_chat(run, max_new_tokens=512, mode=way, beams=beams)
        except RunError as error:
            print(f"{way}: left out. {error}")
    return chats


def measured(replies: Sequence[Reply], code: str, encoder: UniversalEncoder) -> dict[str, float]:
    """The figures of one way."""
    return {
        "in_language": float(np.mean([bool(reply.answer) and is_language(reply.answer, code) for reply in replies])),
        "without_problem": float(np.mean([not reply.problems for reply in replies])),
        "similar_query": similar(encoder, [(reply.query_en, reply.query) for reply in replies]),
        "similar_answer": similar(encoder, [(reply.answer_en, reply.answer) for reply in replies]),
        "tokens": float(np.mean([reply.tokens for reply in replies])),
        "seconds": float(np.mean([reply.seconds for reply in replies])),
        "seconds_a_token": sum(reply.seconds for reply in replies) / sum(reply.tokens for reply in replies),
    }


def similar(encoder: UniversalEncoder, pairs: Sequence[tuple[str, str]]) -> float:
    """Mean cosine of the pairs of (English, target) texts in which both say something."""
    english, target = zip(*[pair for pair in pairs if all(pair)], strict=True)
    sides = encoder.encode(english, language="english"), encoder.encode(target, language="target")
    first, second = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in sides)
    return float((first * second).sum(1).mean())


def table(figures: dict[str, dict[str, float]]) -> list[str]:
    """Rows of a table in Markdown."""
    names = list(next(iter(figures.values())))
    return [f"| way | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1),
            *(f"| {way} | {' | '.join(f'{found[name]:.3g}' for name in names)} |" for way, found in figures.items())]


if __name__ == "__main__":
    main()
