"""extend: learn target-language sub-words, merge them into the tokenizer, grow and initialise the model. Writes a whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from transllm.data.sources import read_words
from transllm.model import check_sizes, copy_rows, grow, load_chat_model, save_folder, start_of
from transllm.pipeline.corpus import ENGLISH, doubts, fixed_rule, too_small
from transllm.pipeline.new_rows import PAD, SAMPLE_CHARACTERS, Texts, known, new_sub_tokens
from transllm.pipeline.prepare import read_part, sample_part
from transllm.pipeline.proof import prove
from transllm.pipeline.stage import Context, Result
from transllm.progress import Task
from transllm.tokenizer import Learned, SpanTokenizer, extend_tokenizer, fertility, id_limit, keeps_rule, learn_merges, marker_texts

_MEASURED = 1_000_000  # characters of held-out text that fertility is measured on


def extend(context: Context) -> Result:
    """Write the extended model and both tokenizers, and prove what the extension promises on text that no filter saw."""
    recipe, settings = context.recipe, context.recipe.extend
    loaded = load_chat_model(recipe.model, folder=recipe.folder, cache=context.cache)
    model, original = loaded.model, loaded.tokenizer
    learned, warnings = Learned([], [], {}), list[str]()
    if settings.vocab_size:
        learned, warnings = _learn(context, original, model.config)
    for warning in warnings:
        context.progress.say(f"Warning: {warning}")
    extended = extend_tokenizer(original, learned, markers=marker_texts(recipe.target), pad=PAD)
    spans = SpanTokenizer(original, extended, recipe.target)
    before = copy_rows(model, size=id_limit(original))
    parts = new_sub_tokens(spans)
    texts, sources = _texts(context)
    facts = known(spans, parts, texts, seed=recipe.seed)
    start, head_start = (start_of(name, facts) if name is not None else None for name in (settings.init, settings.head_init))
    grow(model, size=spans.size, sub_tokens=parts, start=start, head_start=head_start)
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
               "rows_started": {name: len(one.ids) for name, one in
                                ((settings.init, start), (settings.head_init, head_start)) if one is not None},
               "warnings": warnings}
    return Result(counts={"pieces": {"read": len(learned.pieces) + sum(learned.dropped.values()), "kept": len(learned.pieces),
                                     "dropped": {reason: times for reason, times in learned.dropped.items() if times}}},
                  metrics=metrics, sources=sources)


def _learn(context: Context, original: Any, config: Any) -> tuple[Learned, list[str]]:
    """Learn on a part of the training text; also gives what is doubtful about that text."""
    recipe, settings = context.recipe, context.recipe.extend
    target, english = (sample_part(context.run, name, "train", characters=settings.sample_characters) for name in ("target", "english"))
    warnings = doubts(target, recipe.target) + doubts(english, ENGLISH)
    kept = keeps_rule(original, config)
    with (context.progress.task("cutting the sample", 100, "%") as reading,
          context.progress.task("learning sub-words", settings.at_most, "sub-words") as learning):
        learned = learn_merges(
            original, target, english, size=settings.at_most, min_count=settings.min_count, latin=recipe.target.latin,
            least_saving=settings.least_saving if settings.vocab_size == "auto" else None, whole_words=settings.whole_words and kept,
            progress=_steps(learning, settings.at_most), reading=_steps(reading, 100))
    if settings.vocab_size != "auto" and len(learned.pieces) < settings.vocab_size:
        warnings.append(too_small(len(learned.pieces), settings.vocab_size, sum(map(len, target)), settings.min_count))
    if settings.whole_words and not kept and learned.pre_tokens[1] < learned.pre_tokens[0]:
        warnings.append(fixed_rule(config.model_type, *learned.pre_tokens))
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


def _texts(context: Context) -> tuple[Texts, list[dict[str, Any]]]:
    """What the methods of the recipe's choice learn from, and where the lexicon comes from."""
    settings = context.recipe.extend
    lexicon: list[tuple[str, str]] = []
    sources: list[dict[str, Any]] = []
    if settings.lexicon is not None:
        reading = read_words([settings.lexicon], language=context.recipe.target, folder=context.recipe.folder, cache=context.cache)
        lexicon = [(pair.english, pair.target) for pair in reading]
        sources = [{**report.as_dict(), "used_as": "lexicon"} for report in reading.reports]
    if not {settings.init, settings.head_init} & {"focus", "omp"}:
        return Texts(lexicon=lexicon), sources
    pairs = [(row["english"], row["target"]) for row in read_part(context.run, "pairs", "train")]
    target, english = (sample_part(context.run, side, "train", characters=SAMPLE_CHARACTERS) for side in ("target", "english"))
    return Texts(target, english, pairs, lexicon), sources
