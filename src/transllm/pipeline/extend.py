"""extend: learn target-language sub-words, merge them into the tokenizer, grow and initialise the model. Writes a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from transllm.languages import Language
from transllm.model import check_sizes, grow, load_chat_model, save_folder
from transllm.pipeline.prepare import read_part
from transllm.pipeline.stage import Context, Result
from transllm.progress import Task
from transllm.tokenizer import Learned, SpanTokenizer, compare, extend_tokenizer, fertility, learn_merges, marker_texts, sub_tokens

_PAD = "<|pad|>"
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
                original, _sample(_train(context, "target"), settings.sample_characters),
                _sample(_train(context, "english"), settings.sample_characters),
                size=settings.vocab_size, min_count=settings.min_count, latin=recipe.target.latin, progress=_absolute(bar))
    markers = marker_texts(recipe.target)
    extended = extend_tokenizer(original, learned, markers=markers, pad=_PAD)
    spans = SpanTokenizer(original, extended, recipe.target)
    parts = sub_tokens(original, extended, descriptions=_descriptions(recipe.target))
    grow(model, size=spans.size, sub_tokens=parts)
    check_sizes(model, extended, where="the extended model")
    save_folder(model, context.folder)
    spans.save(context.folder)
    metrics = _measure(context, spans) | {"new_pieces": len(learned.pieces), "vocabulary": spans.size, "original_size": spans.original_size,
                                          "dropped_for_english": learned.dropped.get("english", 0)}
    return Result(counts={"pieces": {"read": len(learned.pieces) + sum(learned.dropped.values()), "kept": len(learned.pieces),
                                     "dropped": dict(learned.dropped)}}, metrics=metrics)


def _absolute(bar: Task) -> Callable[[int, int], None]:
    """A callback of (done so far, total) on a bar that takes steps."""
    shown = 0

    def report(done: int, total: int) -> None:
        nonlocal shown
        bar.advance(done - shown)
        shown = done

    return report


def _descriptions(language: Language) -> dict[str, str]:
    """English words whose mean starts the row of each marker and of the pad."""
    english, response, target = marker_texts(language)
    return {english: "English:", response: "Answer:", target: f"{language.name}:", _PAD: " "}


def _train(context: Context, name: str) -> Iterator[str]:
    return (row["text"] for row in read_part(context.run, name, "train"))


def _sample(texts: Iterable[str], characters: int) -> Sequence[str]:
    """Texts up to so many characters."""
    taken: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        taken.append(text[:characters])
        characters -= len(text)
    return taken


def _measure(context: Context, spans: SpanTokenizer) -> dict[str, Any]:
    """Fertility on held-out text, and how much held-out English tokenises differently."""
    held = {name: _sample([row["text"] for row in read_part(context.run, name, "held_out")], _MEASURED) for name in ("target", "english")}
    figures = {name: {"before": asdict(fertility(spans.original, texts)), "after": asdict(fertility(spans.extended, texts))}
               for name, texts in held.items()}
    sentences = [line for text in held["english"] for line in text.split("\n") if line.strip()]
    return {"fertility": figures, "english_identical": asdict(compare(spans.original, spans.extended, sentences))}
