"""recover: the original chat model answers English prompts. Its own words are what teaches the transformed model not to forget.

What it leaves, a row a reply (``conversations.jsonl``: what becomes chains; ``samples.jsonl``: second answers at temperature 1, for
recovery; ``rejects.jsonl``: conversations that a filter dropped, with a ``reason``):

    id        unique and stable: the conversation, the turn and the answer's number
    system    the system prompt, or null
    history   the earlier turns in English, oldest first: [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]; [] for the first
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

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from transllm.data import Counts
from transllm.data.prompts import PromptFilter, read_prompts, seed_prompts
from transllm.data.split import text_key
from transllm.errors import DataError, ModelError
from transllm.files import JsonLines, read_jsonl
from transllm.generation import LocalEngine, Sampling
from transllm.model import LoadedModel, compute_dtype, default_device, end_of_turn_ids, load_chat_model, place
from transllm.pipeline.stage import Context, Result
from transllm.recipe.schema import Source

_CHUNK = 4  # batches between two writes
_GIVE_UP = 8  # rounds of self-prompting that bring nothing new


def recover(context: Context) -> Result:
    """Write ``candidates.jsonl`` (prompts as they come), ``conversations.jsonl`` and ``samples.jsonl`` (as answers come).

    The conversations become chains. Samples are second answers to some of the prompts, drawn at temperature 1, for recovery: their
    cross-entropy is, up to a constant, the KL to the original model; that of greedy answers is lowest for a model surer than it.
    """
    recipe, settings = context.recipe, context.recipe.recover
    loaded = load_chat_model(recipe.model, folder=recipe.folder, cache=context.cache)
    device = default_device()
    place(loaded.model, device, compute_dtype(recipe.training.precision, device))
    stops = frozenset(end_of_turn_ids(loaded.model, loaded.tokenizer))
    engine = LocalEngine(loaded.model, pad_id=loaded.tokenizer.pad_token_id or 0, batch_size=settings.batch_size,
                         vocabulary=len(loaded.tokenizer))
    prompts, counts = _prompts(context, loaded, engine, stops)
    result = Result(counts={"prompts": counts}, metrics={"held_out": sum(row["held_out"] for row in prompts)})
    learned = _in_order([row for row in prompts if not row["held_out"]])
    asked = {"conversations": prompts, "samples": learned[: round(settings.sampled * len(learned))]}
    for name, temperature, seed in (("conversations", settings.temperature, recipe.seed), ("samples", 1.0, recipe.seed + 1)):
        sampling = Sampling(settings.max_new_tokens, temperature=temperature, stop_ids=stops, seed=seed)
        answers = _answers(context, loaded, engine, asked[name], sampling, name=name)
        whole = sum(row["finish"] == "stop" for row in answers)
        result.counts[name] = {"read": len(answers), "kept": whole, "dropped": {"cut": len(answers) - whole}}
        result.tokens += sum(row["tokens"] for row in answers)
    return result


def _answers(context: Context, loaded: LoadedModel, engine: LocalEngine, rows: Sequence[dict[str, Any]], sampling: Sampling, *,
             name: str) -> list[dict[str, Any]]:
    """Answer what an earlier sitting left, some batches on disk before the next begin; gives all answers."""
    file = context.folder / f"{name}.jsonl"
    done = read_jsonl(file)
    answered = {row["prompt"] for row in done}
    waiting = [row for row in rows if row["prompt"] not in answered]
    with JsonLines(file) as lines, context.progress.task(f"{name} with the original model", len(rows), "answers") as bar:
        bar.advance(len(done))
        for chunk in _chunks(waiting, context.recipe.recover.batch_size * _CHUNK):
            for made in engine.generate([_prompt_ids(loaded, row["prompt"]) for row in chunk], sampling=sampling):
                ids = made.ids[:-1] if made.finish == "stop" else made.ids
                lines.write({**chunk[made.index], "answer": str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).strip(),
                             "finish": made.finish, "tokens": len(made.ids)})
                bar.advance(1)
    return read_jsonl(file)


def _prompts(context: Context, loaded: LoadedModel, engine: LocalEngine,
             stops: frozenset[int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
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
            candidates = (_written_by_model(loaded, engine, stops, settings.self_prompt_temperature, settings.batch_size, seed, keep, start)
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


def _written_by_model(loaded: LoadedModel, engine: LocalEngine, stops: frozenset[int], temperature: float, batch: int, seed: int,
                      keep: PromptFilter, start: int) -> Iterator[tuple[str | None, int]]:
    """User turns that the chat model writes when it is given only its template's user header (Magpie, arXiv 2406.08464).

    Each comes with the number of its round, which decides its random numbers: after a stop, the last round is done again. None stands
    for one that found no end.
    """
    header = _user_header(loaded)
    barren = 0
    for number in range(start, 10**9):
        before = keep.counts.kept
        sampling = Sampling(96, temperature=temperature, top_p=0.95, stop_ids=stops, seed=seed * 1000 + number)
        for made in engine.generate([header] * batch, sampling=sampling):
            yield str(loaded.tokenizer.decode(made.ids[:-1], skip_special_tokens=True)) if made.finish == "stop" else None, number
        barren = barren + 1 if keep.counts.kept == before else 0
        if barren >= _GIVE_UP:
            raise ModelError(f"The model wrote no new usable prompt in {_GIVE_UP * batch} tries, after {keep.counts.kept} prompts. "
                             "Lower recover.count, or give prompts in a file.")


def _user_header(loaded: LoadedModel) -> list[int]:
    """Ids of the template up to where the user's words begin."""
    stand_in = "\ue000"
    rendered = str(loaded.tokenizer.apply_chat_template([{"role": "user", "content": stand_in}], tokenize=False))
    return list(loaded.tokenizer(rendered[: rendered.index(stand_in)], add_special_tokens=False)["input_ids"])


def _prompt_ids(loaded: LoadedModel, prompt: str) -> list[int]:
    turns = [{"role": "user", "content": prompt}]
    return cast(list[int], loaded.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


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
