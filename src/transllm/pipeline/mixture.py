"""The rows that *finetune* learns: chains, recovery, translation instructions, direct answers, pairs and the model's own, in the recipe's
shares."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

from transllm.files import read_jsonl
from transllm.pipeline.instructions import to_english, to_target
from transllm.pipeline.own_words import Mixed, Reading
from transllm.pipeline.pair_rows import pair_row, pair_rows
from transllm.pipeline.prepare import read_part
from transllm.pipeline.recover import recovery_rows
from transllm.pipeline.stage import Context
from transllm.tcot import Message, Renderer, Span
from transllm.training import ByOriginal, EncodedRow

KINDS = ("chain", "recovery", "translation", "direct", "pairs", "own")


def mixture(context: Context, kinds: Sequence[str] = KINDS) -> Iterator[Mixed]:
    """All rows of some kinds. Chains set the number; the shares of the others are of rows. A kind that has too few says so."""
    stage, renderer = context.recipe.finetune, context.renderer
    chains = read_jsonl(context.run / "bridge" / "chains.jsonl")
    shares = stage.shares
    asked = {kind: round(len(chains) * share / shares["chain"]) for kind, share in shares.items()}
    pairs = shuffled(read_part(context.run, "pairs", "train"), context)
    heard = context.recipe.recover.logits.chains
    made: dict[str, Iterator[EncodedRow | Mixed]] = {
        "chain": (_chain_row(renderer, row, after=_earlier(chains, number, stage.history), heard=heard,
                             by_distribution=stage.own_words == "distribution") for number, row in enumerate(chains)),
        "recovery": (_recovery_row(renderer, row) for row in recovery_rows(context.run)[: asked["recovery"]]),
        "translation": _instruction_rows(context, pairs, asked["translation"]),
        "direct": (_direct_row(renderer, chains[number], after=_earlier(chains, number, stage.history))
                   for number in _spread(asked["direct"], len(chains))),
        # From the end of the order in which *bitext* takes them (at random): those that it came to last, or not at all.
        "pairs": iter(pair_rows(context, islice(reversed(pairs), asked["pairs"]))),
        "own": (_own_row(renderer, chains[number], text) for number, text in _texts(len(chains), asked["own"]))}
    for kind in kinds:
        count = 0
        for row in made[kind]:
            count += 1
            yield row if isinstance(row, Mixed) else Mixed(kind, row)
        if count < asked[kind]:
            context.progress.say(f"Note: finetune.{kind} asks for {asked[kind]} rows, {shares[kind]:.0%} of the mixture; there are only "
                                 f"{count}. {_MORE[kind]}")


_MORE = {"recovery": "Raise recover.count or recover.sampled, or lower finetune.recovery.",
         "translation": "Add pairs to data.parallel, or lower finetune.translation.",
         "direct": "There is one for each chain: lower finetune.direct, or raise bridge.count.",
         "pairs": "Add pairs to data.parallel, or lower finetune.pairs.",
         "own": "There are two for each chain: lower finetune.own, or raise bridge.count."}


def shuffled(rows: Sequence[dict[str, Any]], context: Context) -> list[dict[str, Any]]:
    """In the order of the run's seed."""
    order = list(rows)
    random.Random(context.recipe.seed).shuffle(order)
    return order


def _earlier(chains: Sequence[dict[str, Any]], number: int, share: float) -> Sequence[dict[str, Any]]:
    """The chains whose turns come before this one: one or two for a share of the chains, spread evenly, and none for the others."""
    before = int(number * share)
    if int((number + 1) * share) == before:
        return []
    return chains[max(0, number - 1 - before % 2): number]


def _spread(count: int, of: int) -> list[int]:
    """So many numbers below ``of``, spread evenly; all of them if more are asked."""
    count = min(count, of)
    return [number * of // count for number in range(count)]


def _chain_row(renderer: Renderer, row: dict[str, Any], *, after: Sequence[dict[str, Any]], heard: bool,
               by_distribution: bool) -> Mixed:
    spans = renderer.chain(query_en=row["query_en"], answer_en=row["answer_en"], answer=row["answer"])
    turns = _before(row) or [message for turn in after for message in (Message("user", turn["query_en"]),
                                                                       Message("assistant", turn["answer_en"]))]
    made = _conversation(renderer, [*turns, Message("user", row["query"], "target")], spans)
    begins = _last(made.ids, renderer.spans.markers.target) + 1
    own = len(made.ids) - 1 - begins  # not the end of the turn, which is form
    read = pair_row(renderer, {"english": row["answer_en"], "target": row["answer"]}, to="target", source_loss=False)
    if heard:
        made = _with_original(renderer, made, [*turns, Message("user", row["query_en"])], row["answer_en"], end=False)
    return Mixed("chain", made, Reading(read.ids[:-1], own, begins) if by_distribution and own else None)


def _texts(chains: int, count: int) -> Iterator[tuple[int, Literal["query", "answer"]]]:
    """Queries and answers of chains, so many: first one of each chain, in turn, then the other."""
    order: Iterator[tuple[int, Literal["query", "answer"]]] = (
        (number, "query" if number % 2 == other else "answer") for other in (0, 1) for number in range(chains))
    return islice(order, count)


def _own_row(renderer: Renderer, chain: Mapping[str, Any], text: Literal["query", "answer"]) -> Mixed:
    """A text that was translated for a chain, as a pair."""
    row = pair_row(renderer, {"english": chain[f"{text}_en"], "target": chain[text]}, to="target", source_loss=False)
    learned = row.trained.index(True)
    return Mixed("own", row, Reading(row.ids, len(row.ids) - learned, learned))


def _direct_row(renderer: Renderer, row: dict[str, Any], *, after: Sequence[dict[str, Any]]) -> EncodedRow:
    """A chain's answer without the chain. Who answers directly has no English of earlier turns, so these are in the target language."""
    turns = _before(row) or [message for turn in after for message in (Message("user", turn["query"], "target"),
                                                                       Message("assistant", turn["answer"], "target"))]
    return _conversation(renderer, [*turns, Message("user", row["query"], "target")], renderer.direct(row["answer"]))


def _before(row: Mapping[str, Any]) -> list[Message]:
    """The system prompt and the earlier turns that belong to a conversation, in English."""
    system = [Message("system", row["system"])] if row.get("system") else []
    return [*system, *(Message(turn["role"], turn["content"]) for turn in row.get("history") or ())]


def _recovery_row(renderer: Renderer, row: dict[str, Any]) -> EncodedRow:
    # An answer that was cut teaches all its words, and no end.
    messages, end = [*_before(row), Message("user", row["prompt"])], row["finish"] == "stop"
    made = _conversation(renderer, messages, renderer.recovery(row["answer"]), end=end)
    return _with_original(renderer, made, messages, row["answer"], end=end)


def _with_original(renderer: Renderer, row: EncodedRow, messages: Sequence[Message], answer: str, *, end: bool) -> EncodedRow:
    """The row with what the original said in it: an answer to an English conversation, after the marker that opens it."""
    words = [*renderer.spans.encode_english(answer), *([renderer.end_id] if end else [])]
    opening = _last(row.ids, renderer.spans.markers.response)
    return replace(row, by_original=ByOriginal([*renderer.prompt(messages), *words], opening + 1, len(words), len(answer.encode())))


def _last(ids: Sequence[int], marker: int) -> int:
    """Where a marker stands in an answer: what a user types is never one, and neither is a history's."""
    return len(ids) - 1 - list(reversed(ids)).index(marker)


def _instruction_rows(context: Context, pairs: Sequence[Mapping[str, str]], asked: int) -> Iterator[EncodedRow]:
    """Requests to translate. Half of those into English are about questions, as far as there are any.

    Chains are about questions and orders, sentence pairs hardly ever are (2 % in catalogues and scripture), and both answers open with
    ``<EN>``: by the pairs' own mixture a model learns to answer every question in the target language, also one that it is to translate.
    """
    into_target = round(asked * context.recipe.finetune.to_target)
    into_english = asked - into_target
    rest = pairs[into_target:]
    questions = [pair for pair in rest if pair["english"].rstrip().endswith("?")][: into_english // 2]
    others = [pair for pair in rest if not pair["english"].rstrip().endswith("?")][: into_english - len(questions)]
    kinds: list[tuple[Literal["target", "english"], Sequence[Mapping[str, str]]]] = [
        ("target", pairs[:into_target]), ("english", questions), ("english", others)]
    for to, texts in kinds:
        for number, pair in enumerate(texts):  # counted anew for each, so that all words of a request meet all kinds of text
            yield _instruction_row(context, pair, number, to=to)


def _instruction_row(context: Context, pair: Mapping[str, str], number: int, *,
                     to: Literal["target", "english"]) -> EncodedRow:
    renderer, language, more = context.renderer, context.recipe.target, context.recipe.finetune.requests
    message = (to_target(pair["english"], language, number, more=more.to_target) if to == "target" else
               to_english(pair["target"], language, number, more=more.to_english))
    return _conversation(renderer, [message], renderer.translation(pair[to], to=to))


def _conversation(renderer: Renderer, messages: Sequence[Message], spans: Sequence[Span], *, end: bool = True) -> EncodedRow:
    ids, trained = renderer.row(messages, spans, end=end)
    return EncodedRow(ids, trained, sum(len(span.text.encode()) for span in spans))
