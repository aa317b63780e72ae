"""recover: the original chat model answers English prompts. Its own words are what teaches the transformed model not to forget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from transllm.data import Counts
from transllm.data.prompts import PromptFilter, read_prompts, seed_prompts
from transllm.data.split import text_key
from transllm.errors import DataError, ModelError
from transllm.files import JsonLines, read_jsonl
from transllm.generation import Conversation, ConversationEngine, ReplySampling, Turn
from transllm.pipeline.engine import ChosenEngine, engine_of
from transllm.pipeline.stage import Context, Result
from transllm.recipe.schema import Source

_CHUNK = 4  # batches between two writes
_GIVE_UP = 8  # rounds of self-prompting that bring nothing new


def recover(context: Context) -> Result:
    """Write ``candidates.jsonl`` (prompts as they come), ``conversations.jsonl`` and ``samples.jsonl`` (as answers come).

    The conversations become chains. Samples are second answers to some of the prompts, drawn at temperature 1, for recovery: their
    cross-entropy is, up to a constant, the KL to the original model; that of greedy answers is lowest for a model surer than it.
    """
    with closing(engine_of(context)) as engine:
        return _recover(context, engine)


def _recover(context: Context, engine: ChosenEngine) -> Result:
    recipe, settings = context.recipe, context.recipe.recover
    prompts, counts = _prompts(context, engine)
    result = Result(counts={"prompts": counts}, metrics={"held_out": sum(row["held_out"] for row in prompts), "engine": engine.choice})
    learned = _in_order([row for row in prompts if not row["held_out"]])
    asked = {"conversations": prompts, "samples": learned[: round(settings.sampled * len(learned))]}
    for name, temperature, seed in (("conversations", settings.temperature, recipe.seed), ("samples", 1.0, recipe.seed + 1)):
        sampling = ReplySampling(settings.max_new_tokens, temperature=temperature, seed=seed)
        answers = _answers(context, engine, asked[name], sampling, name=name)
        ends = Counter(str(row["finish"]) for row in answers)
        result.counts[name] = {"read": len(answers), "kept": ends["stop"], "dropped": {"cut": ends["length"], "too long": ends["too long"]}}
        result.tokens += sum(row["tokens"] for row in answers)
    return result


def _answers(context: Context, engine: ConversationEngine, rows: Sequence[dict[str, Any]], sampling: ReplySampling, *,
             name: str) -> list[dict[str, Any]]:
    """Answer what an earlier sitting left, some batches on disk before the next begin; gives all answers."""
    file = context.folder / f"{name}.jsonl"
    done = read_jsonl(file)
    answered = {row["prompt"] for row in done}
    waiting = [row for row in rows if row["prompt"] not in answered]
    with JsonLines(file) as lines, context.progress.task(f"{name} with the original model", len(rows), "answers") as bar:
        bar.advance(len(done))
        for chunk in _chunks(waiting, context.recipe.recover.batch_size * _CHUNK):
            for reply in engine.generate([Conversation((Turn("user", row["prompt"]),)) for row in chunk], sampling=sampling):
                lines.write({**chunk[reply.index], "answer": reply.text, "finish": reply.finish, "tokens": reply.tokens})
                bar.advance(1)
    return read_jsonl(file)


def _prompts(context: Context, engine: ConversationEngine) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The prompts, and what was dropped. A first few, by hash, are held out for measuring.

    Every candidate is on disk before the filter sees it. After a stop the filter sees them again, so its memory and its counts are those
    of a run that was not stopped; candidates come in the same order each time, so those that are on disk are passed over.
    """
    file = context.folder / "candidates.jsonl"
    settings, seed = context.recipe.recover, context.recipe.seed
    wanted = settings.count + context.recipe.evaluate.answers
    keep = PromptFilter()
    prompts: list[dict[str, Any]] = []

    def take(candidate: dict[str, Any]) -> bool:
        if candidate["text"] is None:
            keep.counts.drop("cut")
            return False
        prompt = keep(candidate["text"])
        if prompt is not None:
            prompts.append({"prompt": prompt, "origin": candidate["origin"]})
        return prompt is not None

    known = read_jsonl(file)
    for candidate in known:
        take(candidate)
    passed = Counter((candidate["origin"], candidate["round"]) for candidate in known)
    with JsonLines(file) as lines, context.progress.task("prompts", wanted, "prompts") as bar:
        bar.advance(len(prompts))
        for origin in settings.prompts:
            if len(prompts) >= wanted:
                break
            start = max((candidate["round"] for candidate in known), default=0)
            candidates = (_written_by_model(engine, settings.self_prompt_temperature, settings.batch_size, seed, keep, start)
                          if origin == "self" else _given(context, origin))
            name = origin.origin if isinstance(origin, Source) else origin
            for text, number in candidates:
                if passed[name, number]:
                    passed[name, number] -= 1
                    continue
                candidate = {"text": text, "origin": name, "round": number}
                lines.write(candidate)
                bar.advance(take(candidate))
                if len(prompts) >= wanted:
                    break
    if len(prompts) <= context.recipe.evaluate.answers:
        raise DataError(f"There are only {len(prompts)} prompts, {context.recipe.evaluate.answers} of which are held out for measuring. "
                        "Add 'self' or a file to recover.prompts.")
    held = set(sorted(text_key(row["prompt"]) for row in prompts)[: context.recipe.evaluate.answers])
    return [row | {"held_out": text_key(row["prompt"]) in held} for row in prompts], keep.counts.as_dict()


def _given(context: Context, origin: Any) -> Iterator[tuple[str, int]]:
    prompts = seed_prompts() if origin == "seed" else read_prompts(
        origin, side="english", language=context.recipe.target, folder=context.recipe.folder, cache=context.cache)
    yield from ((prompt, 0) for prompt in prompts)


def _written_by_model(engine: ConversationEngine, temperature: float, batch: int, seed: int, keep: PromptFilter,
                      start: int) -> Iterator[tuple[str | None, int]]:
    """User turns that the chat model writes when it is given only its template's user header (Magpie, arXiv 2406.08464).

    Each comes with the number of its round, which decides its random numbers: after a stop, the last round is done again. None stands
    for one that found no end.
    """
    barren = 0
    for number in range(start, 10**9):
        before = keep.counts.kept
        sampling = ReplySampling(96, temperature=temperature, top_p=0.95, seed=seed * 1000 + number)
        replies = engine.generate([Conversation(speaker="user")] * batch, sampling=sampling)
        # In the order of their numbers: after a stop, as many as are on disk of a round are passed over.
        for reply in sorted(replies, key=lambda reply: reply.index):
            yield reply.text if reply.finish == "stop" else None, number
        barren = barren + 1 if keep.counts.kept == before else 0
        if barren >= _GIVE_UP:
            raise ModelError(f"The model wrote no new usable prompt in {_GIVE_UP * batch} tries, after {keep.counts.kept} prompts. "
                             "Lower recover.count, or give prompts in a file.")


def _chunks(rows: Sequence[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Rows sorted by length, in chunks whose answers are on disk before the next begins."""
    order = sorted(rows, key=lambda row: -len(row["prompt"]))
    for start in range(0, len(order), size):
        yield order[start: start + size]


def conversations_to_train_on(run: Path) -> list[dict[str, Any]]:
    """All conversations that are not held out, in the order of a hash: in the file they stand as answers came, longest prompts first."""
    return _in_order([row for row in read_jsonl(run / "recover" / "conversations.jsonl") if not row["held_out"]])


def recovery_rows(run: Path) -> list[dict[str, Any]]:
    """What recovery learns, best first: the sampled answers, then those that were not drawn a second time. None is empty."""
    samples = _in_order(read_jsonl(run / "recover" / "samples.jsonl"))
    drawn = {row["prompt"] for row in samples}
    return [row for row in [*samples, *(row for row in conversations_to_train_on(run) if row["prompt"] not in drawn)] if row["answer"]]


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By a hash of the prompt: the first few of them are a fair choice, and the same one whenever and wherever it is made."""
    return sorted(rows, key=lambda row: text_key(row["prompt"]))


def count_rejects(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of rows by their 'reason'; rows without one are kept."""
    counts = Counts()
    for row in rows:
        if row.get("reason"):
            counts.drop(row["reason"])
        else:
            counts.keep()
    return counts.as_dict()
