"""extend: learn target-language sub-words, merge them into the tokenizer, grow and initialise the model. Writes a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from transllm.data.sources import read_pairs
from transllm.model import check_sizes, grow, load_chat_model, save_folder, start_of
from transllm.pipeline.new_rows import PAD, SAMPLE_CHARACTERS, Texts, known, new_sub_tokens, sample
from transllm.pipeline.prepare import read_part
from transllm.pipeline.stage import Context, Result
from transllm.progress import Task
from transllm.tokenizer import Learned, SpanTokenizer, compare, extend_tokenizer, fertility, learn_merges, marker_texts

_MEASURED = 1_000_000  # characters of held-out text that fertility is measured on


def extend(context: Context) -> Result:
    """Write the extended model and both tokenizers, and prove what the extension promises on text that no filter saw."""
    recipe, settings = context.recipe, context.recipe.extend
    loaded = load_chat_model(recipe.model, folder=recipe.folder, cache=context.cache)
    model, original = loaded.model, loaded.tokenizer
    learned = Learned([], [], {})
    if settings.vocab_size:
        with context.progress.task("learning sub-words", settings.vocab_size, "sub-words") as bar:
            learned = learn_merges(
                original, sample(_train(context, "target"), settings.sample_characters),
                sample(_train(context, "english"), settings.sample_characters),
                size=settings.vocab_size, min_count=settings.min_count, latin=recipe.target.latin, progress=_absolute(bar))
    markers = marker_texts(recipe.target)
    extended = extend_tokenizer(original, learned, markers=markers, pad=PAD)
    spans = SpanTokenizer(original, extended, recipe.target)
    parts = new_sub_tokens(spans)
    texts, sources = _texts(context)
    facts = known(spans, parts, texts, seed=recipe.seed)
    start, head_start = (start_of(name, facts) if name is not None else None for name in (settings.init, settings.head_init))
    grow(model, size=spans.size, sub_tokens=parts, start=start, head_start=head_start)
    check_sizes(model, extended, where="the extended model")
    save_folder(model, context.folder)
    spans.save(context.folder)
    metrics = _measure(context, spans) | {"new_pieces": len(learned.pieces), "vocabulary": spans.size, "original_size": spans.original_size,
                                          "dropped_for_english": learned.dropped.get("english", 0),
                                          "rows_started": {name: len(one.ids) for name, one in
                                                           ((settings.init, start), (settings.head_init, head_start)) if one is not None}}
    return Result(counts={"pieces": {"read": len(learned.pieces) + sum(learned.dropped.values()), "kept": len(learned.pieces),
                                     "dropped": dict(learned.dropped)}}, metrics=metrics, sources=sources)


def _absolute(bar: Task) -> Callable[[int, int], None]:
    """A callback of (done so far, total) on a bar that takes steps."""
    shown = 0

    def report(done: int, total: int) -> None:
        nonlocal shown
        bar.advance(done - shown)
        shown = done

    return report


def _texts(context: Context) -> tuple[Texts, list[dict[str, Any]]]:
    """What the methods of the recipe's choice learn from, and where the lexicon comes from."""
    settings = context.recipe.extend
    lexicon: list[tuple[str, str]] = []
    sources: list[dict[str, Any]] = []
    if settings.lexicon is not None:
        reading = read_pairs([settings.lexicon], language=context.recipe.target, folder=context.recipe.folder, cache=context.cache,
                             min_characters=1, max_dropped=1.0)  # words that are alike in both languages are dropped: they are many
        lexicon = [(pair.english, pair.target) for pair in reading]
        sources = [{**report.as_dict(), "used_as": "lexicon"} for report in reading.reports]
    if not {settings.init, settings.head_init} & {"focus", "omp"}:
        return Texts(lexicon=lexicon), sources
    pairs = [(row["english"], row["target"]) for row in read_part(context.run, "pairs", "train")]
    target, english = (sample(_train(context, side), SAMPLE_CHARACTERS) for side in ("target", "english"))
    return Texts(target, english, pairs, lexicon), sources


def _train(context: Context, name: str) -> Iterator[str]:
    return (row["text"] for row in read_part(context.run, name, "train"))


def _measure(context: Context, spans: SpanTokenizer) -> dict[str, Any]:
    """Fertility on held-out text, and how much held-out English tokenises differently."""
    held = {name: sample([row["text"] for row in read_part(context.run, name, "held_out")], _MEASURED) for name in ("target", "english")}
    figures = {name: {"before": asdict(fertility(spans.original, texts)), "after": asdict(fertility(spans.extended, texts))}
               for name, texts in held.items()}
    sentences = [line for text in held["english"] for line in text.split("\n") if line.strip()]
    return {"fertility": figures, "english_identical": asdict(compare(spans.original, spans.extended, sentences))}
