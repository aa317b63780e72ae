"""The prompts of *recover*: given ones, then those that the chat model writes itself, through one filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transllm.data.prompts import PromptFilter, read_prompts, seed_prompts
from transllm.data.split import text_key
from transllm.data.types import Counts, SourceReport
from transllm.errors import DataError, ModelError
from transllm.files import JsonLines, read_jsonl
from transllm.generation.conversation import Conversation, ConversationEngine, ReplySampling
from transllm.pipeline.stage import Context
from transllm.recipe.schema import Source

USER_TOKENS = 96
"""Tokens of a user's turn that the model writes; a longer one found no end."""
TOP_P = 0.95
_GIVE_UP = 8  # rounds of self-prompting that bring nothing new


@dataclass
class Given:
    """Prompts that are there before the model says a word.

    Attributes:
        prompts: by origin, in the order of the recipe. ``self`` is not among them.
        delicate: those of ``recover.delicate``.
        system: system prompts.
        reports: one for each source.
    """

    prompts: dict[str, list[str]] = field(default_factory=dict)
    delicate: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    reports: list[SourceReport] = field(default_factory=list)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The form of the manifest, with the places of the first rows that are broken."""
        return [report.as_dict() | ({"places": report.places} if report.places else {}) for report in self.reports]


def read_given(context: Context) -> Given:
    """Read all sources of the section, before a model is loaded: what is wrong with one shows at once."""
    settings, given = context.recipe.recover, Given()

    def read(source: Source) -> list[str]:
        given.reports.append(SourceReport(source.origin, source.licence))
        return read_prompts(source, side="english", language=context.recipe.target, folder=context.recipe.folder, cache=context.cache,
                            max_broken=settings.max_broken, report=given.reports[-1])

    for origin in settings.prompts:
        if origin != "self":
            name = origin.origin if isinstance(origin, Source) else origin
            given.prompts.setdefault(name, []).extend(read(origin) if isinstance(origin, Source) else seed_prompts())
    given.delicate = read(settings.delicate) if settings.delicate is not None else []
    system = settings.system_prompts
    given.system = read(system) if isinstance(system, Source) else list(system)
    return given


def find_prompts(context: Context, engine: ConversationEngine, given: Given, keep: PromptFilter) -> list[dict[str, Any]]:
    """The prompts, each with ``origin`` and ``held_out``: a first few, by hash, are held out for measuring.

    Every candidate is on disk (``candidates.jsonl``) before the filter sees it. After a stop the filter sees them again, so its memory and
    its counts are those of a run that was not stopped; candidates come in the same order each time, so those on disk are passed over.

    Raises:
        DataError: there are none beside those that are held out.
        ModelError: the model writes none that can be used.
    """
    wanted = context.recipe.recover.count + context.recipe.evaluate.answers
    prompts: list[dict[str, Any]] = []

    def take(candidate: Mapping[str, Any]) -> bool:
        if candidate["text"] is None:
            keep.counts.drop("cut")
            return False
        prompt = keep(candidate["text"])
        if prompt is not None:
            prompts.append({"prompt": prompt, "origin": candidate["origin"]})
        return prompt is not None

    known = read_jsonl(context.folder / "candidates.jsonl")
    for candidate in known:
        take(candidate)
    passed = Counter((candidate["origin"], candidate["round"]) for candidate in known)
    with JsonLines(context.folder / "candidates.jsonl") as lines, context.progress.task("prompts", wanted, "prompts") as bar:
        bar.advance(len(prompts))
        start = max((candidate["round"] for candidate in known), default=0)
        for candidate in _candidates(context, engine, given, keep.counts, start) if len(prompts) < wanted else ():
            place = candidate["origin"], candidate["round"]
            if passed[place]:
                passed[place] -= 1
                continue
            lines.write(candidate)
            bar.advance(take(candidate))
            if len(prompts) >= wanted:
                break
    if len(prompts) <= context.recipe.evaluate.answers:
        raise DataError(f"There are only {len(prompts)} prompts, {context.recipe.evaluate.answers} of which are held out for measuring. "
                        "Add 'self' or a file to recover.prompts.")
    held = set(sorted(text_key(row["prompt"]) for row in prompts)[: context.recipe.evaluate.answers])
    return [row | {"held_out": text_key(row["prompt"]) in held} for row in prompts]


def _candidates(context: Context, engine: ConversationEngine, given: Given, counts: Counts, start: int) -> Iterator[dict[str, Any]]:
    """All that could be prompts, in the recipe's order; ``round`` is that of self-prompting."""
    for origin in dict.fromkeys(source.origin if isinstance(source, Source) else source for source in context.recipe.recover.prompts):
        if origin == "self":
            yield from _written_by_model(context, engine, counts, start)
        else:
            yield from ({"text": text, "origin": origin, "round": 0} for text in given.prompts[origin])


def _written_by_model(context: Context, engine: ConversationEngine, counts: Counts, start: int) -> Iterator[dict[str, Any]]:
    """User turns that the chat model writes when it is given only its template's user header (Magpie, arXiv 2406.08464).

    The number of a round decides its random numbers: after a stop, the last round is done again. A text of None found no end.
    """
    settings = context.recipe.recover
    barren = 0
    for number in range(start, 10**9):
        before = counts.kept
        asked = [Conversation(speaker="user")] * settings.batch_size
        # In the order in which they were asked for: which are taken, and which a stopped run passes over, must not hang on who was faster.
        for reply in sorted(engine.generate(asked, sampling=user_sampling(context, number)), key=lambda reply: reply.index):
            yield {"text": reply.text if reply.finish == "stop" else None, "origin": "self", "round": number}
        barren = barren + 1 if counts.kept == before else 0
        if barren >= _GIVE_UP:
            raise ModelError(f"The model wrote no new usable prompt in {_GIVE_UP * settings.batch_size} tries, after {counts.kept} "
                             "prompts. Lower recover.count, or give prompts in a file.")


def user_sampling(context: Context, number: int) -> ReplySampling:
    """How a user's turn is written."""
    return ReplySampling(USER_TOKENS, temperature=context.recipe.recover.self_prompt_temperature, top_p=TOP_P,
                         seed=context.recipe.seed * 1000 + number)


def filtered(prompts: Sequence[str], keep: PromptFilter) -> list[str]:
    """The prompts that the filter leaves, clean."""
    return [prompt for text in prompts if (prompt := keep(text)) is not None]
