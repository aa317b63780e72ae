"""Sentence pairs as rows to learn: all of *bitext*, and what *finetune* rehearses of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping

from transllm.pipeline.stage import Context
from transllm.tcot import Renderer, Span
from transllm.training import EncodedRow


def pair_rows(context: Context, pairs: Iterable[Mapping[str, str]]) -> Iterator[EncodedRow]:
    """Pairs in the directions, and with the sources learned, that the recipe gives *bitext*.

    Each pair serves one direction: two passes over different text beat one over the same.
    """
    stage, drawn = context.recipe.bitext, random.Random(context.recipe.seed)
    for pair in pairs:
        to = "target" if drawn.random() < stage.to_target else "english"
        own = stage.source_loss is True or (stage.source_loss == "target" and to == "english")
        yield pair_row(context.renderer, pair, to=to, source_loss=own)


def pair_row(renderer: Renderer, pair: Mapping[str, str], *, to: str, source_loss: bool) -> EncodedRow:
    """A sentence pair as *bitext* learns it: ``<EN> sentence <XX> sentence END``; for ``to="english"`` the other way round."""
    markers = renderer.spans.markers
    english, target = Span(markers.english, pair["english"], "english"), Span(markers.target, pair["target"], "target")
    spans = [english, target] if to == "target" else [target, english]
    source = renderer.answer(spans[:1], end=False)
    ids = [*source, *renderer.answer(spans[1:])]
    trained = [source_loss] * len(source) + [True] * (len(ids) - len(source))
    trained[0] = False  # nothing stands before it
    trained[len(source)] = False  # which direction is asked for is not to be guessed
    return EncodedRow(ids, trained, len((spans[1].text + (spans[0].text if source_loss else "")).encode()))
