"""extend: learn target-language sub-words, merge them into the tokenizer, grow and initialise the model. Writes a whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from transllm.languages import Language
from transllm.model import check_sizes, copy_rows, grow, load_chat_model, save_folder
from transllm.pipeline.corpus import ENGLISH, doubts, too_small
from transllm.pipeline.prepare import sample_part
from transllm.pipeline.proof import prove
from transllm.pipeline.stage import Context, Result
from transllm.progress import Task
from transllm.tokenizer import (
    Learned,
    SpanTokenizer,
    extend_tokenizer,
    fertility,
    id_limit,
    learn_merges,
    marker_texts,
    sub_tokens,
)

_PAD = "<|pad|>"
_MEASURED = 1_000_000  # characters of held-out text that fertility is measured on


def extend(context: Context) -> Result:
    """Write the extended model and both tokenizers, and prove what the extension promises on text that no filter saw."""
    recipe = context.recipe
    loaded = load_chat_model(recipe.model, folder=recipe.folder, cache=context.cache)
    model, original = loaded.model, loaded.tokenizer
    learned, warnings = Learned([], [], {}), list[str]()
    if recipe.extend.vocab_size:
        learned, warnings = _learn(context, original)
    for warning in warnings:
        context.progress.say(f"Warning: {warning}")
    extended = extend_tokenizer(original, learned, markers=marker_texts(recipe.target), pad=_PAD)
    spans = SpanTokenizer(original, extended, recipe.target)
    before = copy_rows(model, size=id_limit(original))
    grow(model, size=spans.size, sub_tokens=sub_tokens(original, extended, descriptions=_descriptions(recipe.target)))
    check_sizes(model, extended, where="the extended model")
    save_folder(model, context.folder)
    spans.save(context.folder)
    held = {name: sample_part(context.run, name, "held_out", characters=_MEASURED) for name in ("target", "english")}
    proof = prove(context, spans, learned, held, before, model)
    metrics = {"fertility": {name: {"before": asdict(fertility(original, texts)), "after": asdict(fertility(extended, texts))}
                             for name, texts in held.items()},
               **proof, "new_pieces": len(learned.pieces), "vocabulary": spans.size, "original_size": spans.original_size,
               "dropped_for_english": learned.dropped.get("english", 0), "only_parts": learned.only_parts, "curve": learned.curve,
               "pre_tokens": {"before": learned.pre_tokens[0], "after": learned.pre_tokens[1], "changed": learned.whole_words},
               "warnings": warnings}
    return Result(counts={"pieces": {"read": len(learned.pieces) + sum(learned.dropped.values()), "kept": len(learned.pieces),
                                     "dropped": {reason: times for reason, times in learned.dropped.items() if times}}}, metrics=metrics)


def _learn(context: Context, original: Any) -> tuple[Learned, list[str]]:
    """Learn on a part of the training text; also gives what is doubtful about that text."""
    recipe, settings = context.recipe, context.recipe.extend
    target, english = (sample_part(context.run, name, "train", characters=settings.sample_characters) for name in ("target", "english"))
    warnings = doubts(target, recipe.target) + doubts(english, ENGLISH)
    with (context.progress.task("cutting the sample", 100, "%") as reading,
          context.progress.task("learning sub-words", settings.at_most, "sub-words") as learning):
        learned = learn_merges(
            original, target, english, size=settings.at_most, min_count=settings.min_count, latin=recipe.target.latin,
            least_saving=settings.least_saving if settings.vocab_size == "auto" else None, whole_words=settings.whole_words,
            progress=_steps(learning, settings.at_most), reading=_steps(reading, 100))
    if settings.vocab_size != "auto" and len(learned.pieces) < settings.vocab_size:
        warnings.append(too_small(len(learned.pieces), settings.vocab_size, sum(map(len, target)), settings.min_count))
    return learned, warnings


def _steps(task: Task, total: int) -> Callable[[int, int], None]:
    """A callback of (done so far, all) on a task that takes steps and has ``total`` of them."""
    shown = 0.0

    def report(done: int, everything: int) -> None:
        nonlocal shown
        now = total * done / max(1, everything)
        task.advance(now - shown)
        shown = now

    return report


def _descriptions(language: Language) -> dict[str, str]:
    """English words whose mean starts the row of each marker and of the pad."""
    english, response, target = marker_texts(language)
    return {english: "English:", response: "Answer:", target: f"{language.name}:", _PAD: " "}
